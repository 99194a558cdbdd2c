"""The zoo as tasks: for each of its models, what to calibrate on, what to test on, and how good an output is.

A zoo is a folder with `models/` and `data/` of trained models and real data that is no part of this project. No item
of a test was seen by its calibration. The arithmetic here is the referee's own: it uses no code of a tool it judges.

    python tools/zoo.py --zoo PATH --out FOLDER [--test N]

writes KEY_calibration.npz and KEY_test.npz for every task, with one array per model input and `labels`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Feeds = Mapping[str, Array]
Scores = dict[str, float]

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)
TOKENS = 128
"""Tokens per text of the encoder: shorter texts are padded, longer ones cut."""
TEXTS = 64
"""Texts for the encoder's calibration, and as many others whose embeddings are compared."""
PAIRS = 500
"""Pairs of sentences for the rank correlation, if nothing else is asked for."""
STORIES = 64
"""Rows of text for the perplexity, if nothing else is asked for."""
YOLOX_SIDE = 416


class ZooError(Exception):
    """The zoo is not there, or lacks a file."""


@dataclass(frozen=True)
class Items:
    """Inputs of a model, items along axis 0 of every array, and by name whatever is known of those items."""

    feeds: Feeds
    labels: Feeds = field(default_factory=lambda: MappingProxyType({}))

    def item(self, index: int, repeat: int = 1) -> dict[str, Array]:
        """The inputs for one item as a batch, the item repeated so many times."""
        return {name: np.repeat(array[index : index + 1], repeat, axis=0) for name, array in self.feeds.items()}

    def __len__(self) -> int:
        return min(len(array) for array in self.feeds.values())


@dataclass(frozen=True)
class Task:
    """One model with its data.

    Args:
        key: its name on the command line.
        model: its file in the zoo's `models/`.
        split: (the zoo's folder, how many labelled items to test on at most, None for the task's own number) -> items
            for calibration, items for the test. More of them change nothing about the first ones.
        judge: (float outputs, outputs, test items) -> scores. Outputs are stacked along axis 0, one per test item.
        main: the score that says how well the task is done.
        batches: batch sizes whose latency is measured.
        transformer: whether recipes that are meant for transformers apply.
        reduce: (one output, its inputs) -> what is kept of it for `judge`.
    """

    key: str
    model: str
    split: Callable[[Path, int | None], tuple[Items, Items]]
    judge: Callable[[Array, Array, Items], Scores]
    main: str
    batches: tuple[int, ...] = (1,)
    transformer: bool = False
    reduce: Callable[[Array, Feeds], Array] = lambda output, feeds: output

    def path(self, zoo: Path) -> Path:
        """The model's file. Raises ZooError if it is not there."""
        path = zoo / "models" / self.model
        if not path.is_file():
            raise ZooError(f"No model '{path}'. --zoo wants the folder that holds models/ and data/.")
        return path


# ---- scores -------------------------------------------------------------------------------------------------------


def sqnr_db(reference: Array, output: Array) -> float:
    """Signal to quantization noise ratio, 10 log10(sum r^2 / sum (r - o)^2), in dB; inf where there is no error."""
    wide = reference.astype(np.float64)
    noise = np.square(wide - output).sum()
    return float(10 * np.log10(np.square(wide).sum() / noise)) if noise else float("inf")


def agreement(reference: Array, output: Array) -> float:
    """Share of rows of the last axis with the same largest element, in percent."""
    return float(100 * np.mean(reference.argmax(-1) == output.argmax(-1)))


def spearman(x: Array, y: Array) -> float:
    """Rank correlation; equal values share the mean of their ranks."""
    return float(np.corrcoef(_ranks(x), _ranks(y))[0, 1])


def _ranks(x: Array) -> Array:
    _, inverse, counts = np.unique(x, return_inverse=True, return_counts=True)
    ranks: Array = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def judge_classes(reference: Array, output: Array, test: Items) -> Scores:
    """Top-1 in percent, its change in points, and how near the outputs are to the float model's.

    The standard error is that of the change: both models see the same images, so it is smaller than that of top-1.
    """
    right, float_right = (x.argmax(-1) == test.labels["labels"] for x in (output, reference))
    change = 100 * (right.astype(float) - float_right)
    return {
        "top-1 %": 100 * float(right.mean()),
        "delta pp": float(change.mean()),
        "std. error pp": float(change.std(ddof=1) / np.sqrt(len(change))),
        "agree %": agreement(reference, output),
        "SQNR dB": sqnr_db(reference, output),
    }


def judge_embeddings(reference: Array, output: Array, test: Items) -> Scores:
    """Cosine to the float embedding on the first texts, and rank correlation with the human scores of the pairs.

    Rows of the outputs: the first sentence of every pair, then the second of every pair; each of length 1.
    """
    cosines = np.sum(reference[:TEXTS] * output[:TEXTS], axis=1)
    pairs = len(test.labels["labels"])
    rank, float_rank = (
        spearman(np.sum(x[:pairs] * x[pairs:], axis=1), test.labels["labels"]) for x in (output, reference)
    )
    return {
        "cos mean": float(cosines.mean()),
        "cos min": float(cosines.min()),
        "SQNR dB": sqnr_db(reference[:TEXTS], output[:TEXTS]),
        "Spearman": rank,
        "delta Spearman": rank - float_rank,
    }


def judge_text(reference: Array, output: Array, test: Items) -> Scores:
    """Perplexity (exp of the mean negative log likelihood of the next token, in nats), and its change in percent."""
    perplexity, float_perplexity = (_perplexity(x, test.labels["labels"]) for x in (output, reference))
    return {
        "perplexity": perplexity,
        "delta %": 100 * (perplexity / float_perplexity - 1),
        "agree %": agreement(reference, output),
        "SQNR dB": sqnr_db(reference, output),
    }


def _perplexity(logits: Array, tokens: Array) -> float:
    """logits: [row, position, vocabulary]; tokens: [row, position], the true next ones."""
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    chosen = np.take_along_axis(wide, tokens[..., None], -1)[..., 0]
    return float(np.exp(np.mean(np.log(np.exp(wide).sum(-1)) - chosen)))


def judge_boxes(reference: Array, output: Array, test: Items) -> Scores:
    """Mean average precision (COCO, IoU 0.50 to 0.95) in percent, its change in points, and SQNR."""
    precision, float_precision = mean_average_precision(output, test), mean_average_precision(reference, test)
    return {
        "mAP %": precision,
        "delta pp": precision - float_precision,
        "SQNR dB": sqnr_db(reference, output),
    }


# ---- boxes --------------------------------------------------------------------------------------------------------


def mean_average_precision(outputs: Array, test: Items) -> float:
    """COCO mAP in percent of raw YOLOX outputs [image, anchor, 85]; 0 where nothing is detected."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    images = test.labels["image_id"]
    found = [
        (int(image), *box) for image, raw, scale in zip(images, outputs, test.labels["scale"], strict=True)
        for box in _detections(raw, float(scale))
    ]  # fmt: skip
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        truth = COCO()
        truth.dataset = _coco(test)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(_results(found, test.labels["category_id"])), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return 100 * float(evaluation.stats[0])


def _coco(test: Items) -> dict[str, Any]:
    """The true boxes as a COCO data set. Columns of `truth`: image, category, crowd, area, x, y, width, height."""
    annotations = [
        {"id": i + 1, "image_id": int(row[0]), "category_id": int(row[1]), "iscrowd": int(row[2]),
         "area": float(row[3]), "bbox": row[4:].tolist()}
        for i, row in enumerate(test.labels["truth"])
    ]  # fmt: skip
    return {
        "info": {},
        "images": [{"id": int(i)} for i in test.labels["image_id"]],
        "categories": [{"id": int(c)} for c in test.labels["category_id"]],
        "annotations": annotations,
    }


def _results(found: list[tuple[int, Array, int, float]], categories: Array) -> list[dict[str, Any]]:
    return [
        {"image_id": image, "category_id": int(categories[category]), "score": score,
         "bbox": [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]}
        for image, box, category, score in found
    ]  # fmt: skip


def _detections(raw: Array, scale: float) -> list[tuple[Array, int, float]]:
    """The best 100 (box as x0 y0 x1 y1 in image pixels, category, score) of one raw output [anchor, 85]."""
    boxes = _boxes(raw) / scale
    scores = raw[:, 4:5] * raw[:, 5:]
    anchors, categories = np.nonzero(scores > 0.001)
    best = np.argsort(-scores[anchors, categories], kind="stable")[:2000]
    anchors, categories = anchors[best], categories[best]
    # Moved apart by category, boxes of different categories never overlap, so one suppression serves them all.
    apart = boxes[anchors] + 1e4 * categories[:, None]
    kept = _suppress(apart)[:100]
    return [(boxes[anchors[i]], int(categories[i]), float(scores[anchors[i], categories[i]])) for i in kept]


def _boxes(raw: Array) -> Array:
    """Corners of the boxes, in input pixels, from their offsets [anchor, x y w h] on grids of stride 8, 16 and 32.

    centre = (xy + cell) * stride; size = exp(wh) * stride (YOLOX, https://arxiv.org/abs/2107.08430).
    """
    cells, strides = [], []
    for stride in (8, 16, 32):
        side = YOLOX_SIDE // stride
        y, x = np.divmod(np.arange(side * side), side)
        cells.append(np.stack([x, y], axis=1))
        strides.append(np.full((side * side, 1), stride))
    stride_of = np.concatenate(strides)
    centre = (raw[:, :2] + np.concatenate(cells)) * stride_of
    half = np.exp(raw[:, 2:4]) * stride_of / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def _suppress(boxes: Array, limit: float = 0.6) -> list[int]:
    """Indices of boxes, best first, that overlap no better one by more than `limit` of their union."""
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    left = np.arange(len(boxes))
    kept: list[int] = []
    while len(left):
        first, left = left[0], left[1:]
        kept.append(int(first))
        low, high = np.maximum(boxes[first, :2], boxes[left, :2]), np.minimum(boxes[first, 2:], boxes[left, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        left = left[shared <= limit * (area[first] + area[left] - shared)]
    return kept


# ---- splits -------------------------------------------------------------------------------------------------------


def split_imagenet(prepare: Callable[[Array], Array], zoo: Path, most: int | None) -> tuple[Items, Items]:
    """The images that are there (file name = class), shuffled: 128 for calibration, the others for the test."""
    from PIL import Image

    files = sorted((zoo / "data" / "imagenet1k_samples").glob("*.jpg"))
    if len(files) <= 128:
        raise ZooError(f"{len(files)} images in '{zoo / 'data' / 'imagenet1k_samples'}'; more than 128 are needed.")
    order = np.random.default_rng(0).permutation(len(files))

    def items(chosen: Array) -> Items:
        pixels = np.stack([np.asarray(Image.open(files[i]).convert("RGB")) for i in chosen]).astype(np.float32)
        labels = np.array([int(files[i].stem) for i in chosen])
        return Items({"input": _channels_first(prepare(pixels))}, {"labels": labels})

    return Items(items(order[:128]).feeds), items(order[128:][:most])


def standardize(pixels: Array) -> Array:
    """0..255 to the mean 0 and the deviation 1 that ImageNet models of torchvision want."""
    scaled: Array = (pixels / 255 - MEAN) / STD
    return scaled


def to_unit_range(pixels: Array) -> Array:
    """0..255 to -1..1, as Keras MobileNets want."""
    scaled: Array = pixels / np.float32(127.5) - 1
    return scaled


def _channels_first(pixels: Array) -> Array:
    return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2).astype(np.float32))


def split_cifar(zoo: Path, most: int | None) -> tuple[Items, Items]:
    """128 of the even-numbered images for calibration, all others for the test."""
    stored = _load(zoo, "cifar10_test2000.npz")
    images, labels = _channels_first(standardize(stored["images"].astype(np.float32))), stored["labels"]
    random = np.random.default_rng(0)
    calibration = random.permutation(np.arange(0, len(images), 2))[:128]
    # they lie by class: the first few would be all of one
    test = np.sort(random.permutation(np.setdiff1d(np.arange(len(images)), calibration))[:most])
    return Items({"input": images[calibration]}), Items({"input": images[test]}, {"labels": labels[test]})


def split_coco(zoo: Path, most: int | None) -> tuple[Items, Items]:
    """Even-numbered images for calibration, odd-numbered ones for the test: blue first, 0..255, padded with 114."""
    coco = json.loads((zoo / "data" / "coco128" / "instances.json").read_text())
    ids = sorted(image["id"] for image in coco["images"])
    names = {image["id"]: zoo / "data" / "coco128" / "images" / image["file_name"] for image in coco["images"]}
    pixels, scales = zip(*(_letterbox(names[i]) for i in ids), strict=True)
    inputs = _channels_first(np.stack(pixels))
    tested = ids[1::2][:most]
    truth = [
        [a["image_id"], a["category_id"], a["iscrowd"], a["area"], *a["bbox"]]
        for a in coco["annotations"] if a["image_id"] in tested
    ]  # fmt: skip
    labels = {
        "image_id": np.array(tested),
        "scale": np.array(scales[1::2][:most]),
        "category_id": np.array(sorted(category["id"] for category in coco["categories"])),
        "truth": np.array(truth, np.float64),
    }
    return Items({"images": inputs[::2]}), Items({"images": inputs[1::2][:most]}, labels)


def _letterbox(file: Path) -> tuple[Array, float]:
    """The image in the upper left corner of a grey square, blue first, and how much it was scaled."""
    from PIL import Image

    image = Image.open(file).convert("RGB")
    scale = min(YOLOX_SIDE / image.width, YOLOX_SIDE / image.height)
    width, height = int(image.width * scale), int(image.height * scale)
    canvas = np.full((YOLOX_SIDE, YOLOX_SIDE, 3), 114, np.uint8)
    canvas[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    return canvas[..., ::-1], scale


def split_sentences(zoo: Path, most: int | None) -> tuple[Items, Items]:
    """Distinct first sentences for calibration; for the test, pairs none of whose sentences is among them."""
    stored = _load(zoo, "stsb_dev_ids.npz")
    first, second = stored["ids_a_trim"], stored["ids_b_trim"]
    distinct = np.unique(first, axis=0)
    random = np.random.default_rng(0)
    calibration = distinct[random.permutation(len(distinct))[:TEXTS]]
    seen = {row.tobytes() for row in calibration}
    unseen = [i for i in range(len(first)) if not {first[i].tobytes(), second[i].tobytes()} & seen]
    pairs = random.permutation(unseen)[: most or PAIRS]
    test = np.concatenate([first[pairs], second[pairs]])
    return Items(_encoder_inputs(calibration)), Items(_encoder_inputs(test), {"labels": stored["score"][pairs]})


def _encoder_inputs(ids: Array) -> dict[str, Array]:
    """ids: [text, position], 0 = padding -> the three inputs of the encoder, TOKENS wide."""
    padded = np.zeros((len(ids), TOKENS), np.int64)
    width = min(TOKENS, ids.shape[1])
    padded[:, :width] = ids[:, :width]
    return {
        "input_ids": padded,
        "attention_mask": (padded != 0).astype(np.int64),
        "token_type_ids": np.zeros_like(padded),
    }


def pool(output: Array, feeds: Feeds) -> Array:
    """Mean over the true tokens, scaled to length 1: [1, token, feature] -> [1, feature]."""
    mask = feeds["attention_mask"][..., None]
    mean = (output * mask).sum(1) / mask.sum(1)
    embedding: Array = mean / np.linalg.norm(mean, axis=1, keepdims=True)
    return embedding


def split_stories(zoo: Path, most: int | None) -> tuple[Items, Items]:
    """16 even-numbered rows for calibration, 64 others for the test, odd-numbered first; labels are the next tokens."""
    rows = _load(zoo, "stories260k_eval.npz")["tinystories"].astype(np.int64)
    random = np.random.default_rng(0)
    even, odd = (random.permutation(np.arange(start, len(rows), 2)) for start in (0, 1))
    test = rows[np.concatenate([odd, even[16:]])[: most or STORIES]]
    return Items({"input_ids": rows[even[:16], :-1]}), Items({"input_ids": test[:, :-1]}, {"labels": test[:, 1:]})


def _load(zoo: Path, name: str) -> dict[str, Array]:
    path = zoo / "data" / name
    if not path.is_file():
        raise ZooError(f"No data '{path}'. --zoo wants the folder that holds models/ and data/.")
    with np.load(path) as stored:
        return dict(stored)


# ---- tasks --------------------------------------------------------------------------------------------------------

TASKS: Mapping[str, Task] = MappingProxyType({
    task.key: task
    for task in (
        Task("minilm", "minilm_l6_v2_stsb_vocab.onnx", split_sentences, judge_embeddings, "Spearman",
             batches=(1, 8), transformer=True, reduce=pool),
        Task("mobilenetv2", "mobilenetv2_1.0_224.onnx", partial(split_imagenet, standardize), judge_classes, "top-1 %"),
        Task("squeezenet", "squeezenet1.1_224.onnx", partial(split_imagenet, standardize), judge_classes, "top-1 %"),
        Task("mobilenetv1", "mobilenetv1_0.25_224.onnx", partial(split_imagenet, to_unit_range), judge_classes,
             "top-1 %"),
        Task("resnet20", "cifar10_resnet20.onnx", split_cifar, judge_classes, "top-1 %"),
        Task("yolox", "yolox_nano_416.onnx", split_coco, judge_boxes, "mAP %"),
        Task("stories260k", "stories260k.onnx", split_stories, judge_text, "perplexity", transformer=True),
    )
})  # fmt: skip


def save(path: Path, items: Items) -> Path:
    """Write the inputs and labels of items to an .npz."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {**items.feeds, **items.labels}
    np.savez(path, **arrays)
    return path


def count(text: str) -> int:
    """How many items, from a command line. Raises ArgumentTypeError."""
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError("a test needs 2 items at least")
    return int(text)


def main() -> int:
    """Write the data of every task."""
    parser = argparse.ArgumentParser(description="Write calibration and test data of every task of the zoo.")
    parser.add_argument("--zoo", type=Path, required=True, help="folder that holds models/ and data/")
    parser.add_argument("--out", type=Path, required=True, help="folder to write to")
    parser.add_argument("--test", type=count, help="labelled items to test on at most; default: the task's own number")
    arguments = parser.parse_args()
    try:
        for key, task in TASKS.items():
            calibration, test = task.split(arguments.zoo, arguments.test)
            for part, items in (("calibration", calibration), ("test", test)):
                print(f"{save(arguments.out / f'{key}_{part}.npz', items)}: {len(items)} items")
    except ZooError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
