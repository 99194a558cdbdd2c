"""Make decoder.onnx and decoder_cache.onnx, a language model without and with a key/value cache, and what goes with it.

    pip install -e .[models]
    python models/make_decoder.py

Trained on the prose in the documentation strings of Python's own standard library and in its help topics, read from
source without importing it: no download. One thread, about five minutes, half a gigabyte of memory. The text of the
modules in HELD_OUT is for the test, without the paragraphs that training has seen; those that differ only in case,
digits or punctuation count as one.

The network has the shape of Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, no biases; input and
output share the embedding. The graphs are those of tools/llama_graph.py, with the weights learned here; with a cache
their inputs and outputs are named as Optimum names them. Both read their matrices from decoder.data.

Fixed seeds: the same releases of Python, torch and tokenizers on the same kind of processor give the same weights;
another release of Python has other text.
"""

# mypy: allow-subclassing-any, allow-untyped-calls, no-warn-return-any

import ast
import hashlib
import math
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import GraphProto, TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))
from llama_graph import EPSILON, Shape, decoder, feeds
from llama_weights import Array, Rotary, Weight

HERE = Path(__file__).resolve().parent
DATA = "decoder.data"
HELD_OUT = (
    "cgi", "concurrent", "contextlib", "csv", "heapq", "http", "mimetypes", "os", "pathlib", "random",
    "shutil", "socketserver", "statistics", "textwrap", "threading", "timeit", "xmlrpc", "zipfile",
)  # fmt: skip
START = "<|endoftext|>"  # token 0: before each text, and the padding after it
SHAPE = Shape(hidden=128, layers=6, heads=4, kv_heads=2, intermediate=384, vocab=1024, positions=512)
EMBEDDING = "model.embed_tokens.weight"
LENGTH = 192  # tokens in a row of a training batch
BATCH = 4
STEPS = 2700
RATE = 4e-3
CALIBRATION_TEXTS, TEST_TEXTS = 128, 128


# ---- text ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """The prose of one documentation string, and the standard library module or package that it is from."""

    module: str
    paragraphs: tuple[str, ...]

    def __str__(self) -> str:
        """All on one line."""
        return " ".join(self.paragraphs)

    def __len__(self) -> int:
        """Words."""
        return len(str(self).split())


def documentation(path: Path) -> Iterator[str]:
    """Every docstring in a source file; of the help topics their text."""
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.Dict) and path.name == "topics.py":
            yield from (ast.literal_eval(value) for value in node.values)


def is_prose(paragraph: str) -> bool:
    """Whether at least six words, mostly letters: no table, no signature, no session at a prompt."""
    letters = len(re.findall("[A-Za-z ]", paragraph))
    return len(paragraph.split()) >= 6 and letters >= 0.85 * len(paragraph) and ">>>" not in paragraph


def texts() -> Iterator[Text]:
    """The prose in the standard library, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if {"test", "tests", "idle_test", "site-packages"} & set(parts):
            continue
        for string in documentation(path):
            paragraphs = (" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", string))
            yield Text(parts[0].removesuffix(".py"), tuple(filter(is_prose, paragraphs)))


def letters(paragraph: str) -> str:
    """What two paragraphs have in common that count as one."""
    return re.sub("[^a-z]+", " ", paragraph.lower()).strip()


def unseen(found: Sequence[Text], seen: set[str]) -> list[Text]:
    """The texts without the paragraphs in `seen`, which gets theirs; none that is empty then."""
    left = []
    for text in found:
        fresh = tuple(paragraph for paragraph in text.paragraphs if letters(paragraph) not in seen)
        seen.update(map(letters, fresh))
        left.append(Text(text.module, fresh))
    return [text for text in left if text.paragraphs]


def load_texts() -> tuple[list[str], list[str], list[str]]:
    """Texts for training; some of those, and texts for the test, 20 to 150 words each, in the order of their hashes."""
    found = sorted(set(texts()), key=lambda text: hashlib.sha256(str(text).encode()).digest())
    seen: set[str] = set()
    training = unseen([text for text in found if text.module not in HELD_OUT], seen)
    test = unseen([text for text in found if text.module in HELD_OUT], seen)
    calibration = [str(text) for text in training if 20 <= len(text) <= 150]
    held_out = [str(text) for text in test if 20 <= len(text) <= 150]
    return [str(text) for text in training], calibration[:CALIBRATION_TEXTS], held_out[:TEST_TEXTS]


def train_tokenizer(some: Sequence[str]) -> Tokenizer:
    """Byte pairs with case and spaces; encoding puts START before a text and cuts it to what the model takes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=SHAPE.vocab, special_tokens=[START], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(some, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{START} $A", special_tokens=[(START, 0)])
    tokenizer.enable_truncation(SHAPE.positions)
    return tokenizer


# ---- the network -----------------------------------------------------------------------------------------------------


def linear(inputs: int, outputs: int) -> nn.Linear:
    """[..., inputs] -> [..., outputs], without bias."""
    return nn.Linear(inputs, outputs, bias=False)


def rotate(x: Tensor, angles: Tensor) -> Tensor:
    """Rotary positions (Su et al., https://arxiv.org/abs/2104.09864): x [batch, heads, sequence, head].

    The angles are [sequence, head].
    """
    first, second = x.chunk(2, dim=-1)
    return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()


def angles(positions: int) -> Tensor:
    """position * theta^(-2i / head), i < head / 2, twice over: [positions, head]."""
    frequencies = SHAPE.theta ** (-torch.arange(0, SHAPE.head, 2) / SHAPE.head)
    return torch.outer(torch.arange(positions), frequencies).repeat(1, 2)


class Attention(nn.Module):
    """Causal grouped-query attention (Ainslie et al., https://arxiv.org/abs/2305.13245)."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.o_proj = linear(SHAPE.hidden, SHAPE.hidden), linear(SHAPE.hidden, SHAPE.hidden)
        self.k_proj, self.v_proj = (linear(SHAPE.hidden, SHAPE.kv_heads * SHAPE.head) for _ in range(2))

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x [batch, sequence, hidden], angles [sequence, head] -> [batch, sequence, hidden]."""
        query, key, value = (
            layer(x).unflatten(2, (-1, SHAPE.head)).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        shared_by = SHAPE.heads // SHAPE.kv_heads
        mixed = functional.scaled_dot_product_attention(
            rotate(query, angles),
            rotate(key, angles).repeat_interleave(shared_by, dim=1),
            value.repeat_interleave(shared_by, dim=1),
            is_causal=True,
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """SwiGLU (Shazeer, https://arxiv.org/abs/2002.05202)."""

    def __init__(self) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (linear(SHAPE.hidden, SHAPE.intermediate) for _ in range(2))
        self.down_proj = linear(SHAPE.intermediate, SHAPE.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention and a feed-forward network, each on what RMSNorm gives and added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.input_layernorm, self.self_attn = nn.RMSNorm(SHAPE.hidden, EPSILON), Attention()
        self.post_attention_layernorm, self.mlp = nn.RMSNorm(SHAPE.hidden, EPSILON), FeedForward()

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        """x [batch, sequence, hidden], angles [sequence, head] -> [batch, sequence, hidden]."""
        x = x + self.self_attn(self.input_layernorm(x), angles)
        return x + self.mlp(self.post_attention_layernorm(x))


class Decoder(nn.Module):
    """Token embedding, layers, RMSNorm, and the embedding again as the head; named as in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.ModuleDict(
            {
                "embed_tokens": nn.Embedding(SHAPE.vocab, SHAPE.hidden),
                "layers": nn.ModuleList(Layer() for _ in range(SHAPE.layers)),
                "norm": nn.RMSNorm(SHAPE.hidden, EPSILON),
            }
        )
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                adds = name.endswith(("o_proj.weight", "down_proj.weight"))  # to what came in, twice a layer
                nn.init.normal_(weight, std=0.04 / math.sqrt(2 * SHAPE.layers) if adds else 0.04)

    def forward(self, input_ids: Tensor) -> Tensor:
        """int64 [batch, sequence] -> logits [batch, sequence, vocabulary]."""
        x = self.model["embed_tokens"](input_ids)
        turned = angles(input_ids.shape[1])
        for layer in self.model["layers"].children():
            x = layer(x, turned)
        return self.model["norm"](x) @ self.model["embed_tokens"].weight.T


def rows(encoded: Sequence[Tensor]) -> Iterator[Tensor]:
    """Training batches without end, [batch, length + 1]: all texts one after the other, each time in another order."""
    while True:
        stream = torch.cat([encoded[index] for index in torch.randperm(len(encoded))])
        cut = stream[: len(stream) // (LENGTH + 1) * (LENGTH + 1)].reshape(-1, LENGTH + 1)
        yield from (batch for batch in cut.split(BATCH) if len(batch) == BATCH)


def train(network: nn.Module, encoded: Sequence[Tensor]) -> None:
    """AdamW with a one-cycle learning rate; leaves the network in inference mode."""
    groups = [
        {"params": [weight for weight in network.parameters() if weight.ndim == 2], "weight_decay": 0.1},
        {"params": [weight for weight in network.parameters() if weight.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=RATE, total_steps=STEPS, pct_start=0.1)
    network.train()
    total = 0.0
    for step, batch in zip(range(1, STEPS + 1), rows(encoded), strict=False):
        loss = functional.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        total += loss.item()
        if step % 100 == 0:
            print(f"step {step}: mean loss {total / 100:.4f}")
            total = 0.0
    network.eval()


# ---- the graphs ------------------------------------------------------------------------------------------------------


def filled(name: str, weight: Weight, learned: Mapping[str, Tensor]) -> Array:
    """The values of a weight; linear layers turned to [inputs, outputs].

    The head is the embedding once more: most exporters write it so, and a quantizer treats the two apart.
    """
    if isinstance(weight, Rotary):
        return np.concatenate([*weight.chunks(np.random.default_rng())]).reshape(weight.shape)
    if name == EMBEDDING:
        return learned[name].numpy()
    return np.ascontiguousarray(learned[EMBEDDING if name == "lm_head.weight" else name].numpy().T)


def stored(weights: Mapping[str, Array]) -> list[TensorProto]:
    """The tensors of both graphs: matrices in the data file, each from a page of its own; vectors in the graphs."""
    tensors = []
    with (HERE / DATA).open("wb") as file:
        for name, values in weights.items():
            if values.ndim == 1:
                tensors.append(numpy_helper.from_array(values, name))
                continue
            file.write(bytes(-file.tell() % 4096))
            tensor = TensorProto(name=name, dims=values.shape, data_type=TensorProto.FLOAT)
            tensor.data_location = TensorProto.EXTERNAL
            for key, entry in (("location", DATA), ("offset", file.tell()), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(entry))
            file.write(values.tobytes())
            tensors.append(tensor)
    return tensors


def take_ids_alone(graph: GraphProto) -> None:
    """Make of input_ids what else the graph takes: a mask of ones, and positions that count from 0."""
    ones, one = numpy_helper.from_array(np.ones(1, np.int64)), numpy_helper.from_array(np.array(1), "one")
    nodes = [
        helper.make_node("Shape", ["input_ids"], ["sizes"], "/Shape"),
        helper.make_node("ConstantOfShape", ["sizes"], ["attention_mask"], "/ConstantOfShape", value=ones),
        helper.make_node("CumSum", ["attention_mask", "one"], ["count"], "/CumSum"),
        helper.make_node("Sub", ["count", "one"], ["position_ids"], "/Sub"),
        *graph.node,
    ]
    graph.initializer.append(one)
    del graph.node[:], graph.input[1:]
    graph.node.extend(nodes)


def export(network: nn.Module) -> None:
    """Write both graphs and their data."""
    shared, opsets = decoder(SHAPE)[1], [helper.make_opsetid("", 17)]
    tensors = stored({name: filled(name, weight, network.state_dict()) for name, weight in shared.items()})
    for name, cache in (("decoder", False), ("decoder_cache", True)):
        graph, _ = decoder(replace(SHAPE, cache=cache))
        graph.initializer.extend(tensors)
        if not cache:
            take_ids_alone(graph)
        model = helper.make_model(graph, producer_name="onnxq", opset_imports=opsets, ir_version=8)
        onnx.save(model, HERE / f"{name}.onnx")
        onnx.checker.check_model(HERE / f"{name}.onnx", full_check=True)


# ---- checks ----------------------------------------------------------------------------------------------------------


def session(name: str) -> onnxruntime.InferenceSession:
    """On one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(HERE / name, options, providers=["CPUExecutionProvider"])


def check(network: nn.Module, plain: onnxruntime.InferenceSession, cached: onnxruntime.InferenceSession) -> None:
    """Hold both graphs to torch: several shapes, the cache filled in parts, and rows that are padded on the left."""
    ids = np.random.default_rng(0).integers(1, SHAPE.vocab, (3, 2 * LENGTH))
    for batch, sequence in ((1, 1), (1, 7), (3, 64), (3, 2 * LENGTH)):
        part = ids[:batch, :sequence]
        with torch.no_grad():
            expected = network(torch.from_numpy(part)).numpy()
        (logits,) = plain.run(None, {"input_ids": part})
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
        for size in (1, 24, sequence):
            past: list[Array] = []
            for start in range(0, sequence, size):
                logits, *past = cached.run(None, feeds(SHAPE, part[:, start : start + size], past))
                np.testing.assert_allclose(logits, expected[:, start : start + size], rtol=1e-3, atol=1e-3)
    padded = np.pad(part, ((0, 0), (5, 0)))
    mask = (padded > 0).astype(np.int64)
    given = feeds(SHAPE, padded) | {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clip(0)}
    (logits,) = cached.run(["logits"], given)
    np.testing.assert_allclose(logits[:, 5:], expected, rtol=1e-3, atol=1e-3)
    print("ONNX Runtime gives the logits of torch, with and without a cache")


def perplexity(plain: onnxruntime.InferenceSession, tokenizer: Tokenizer, some: Sequence[str]) -> float:
    """Of the tokens of texts, each text on its own, after START."""
    total, count = 0.0, 0
    for text in some:
        ids = np.array([tokenizer.encode(text).ids])
        (logits,) = plain.run(None, {"input_ids": ids[:, :-1]})
        total += functional.cross_entropy(torch.tensor(logits[0]), torch.tensor(ids[0, 1:]), reduction="sum").item()
        count += ids.shape[1] - 1
    return math.exp(total / count)


def completed(cached: onnxruntime.InferenceSession, tokenizer: Tokenizer, text: str) -> str:
    """The text, and what the model finds likeliest to follow, up to START or 60 tokens."""
    found = tokenizer.encode(text).ids
    new, past = found, list[Array]()
    while len(found) < 60:
        logits, *past = cached.run(None, feeds(SHAPE, np.array([new]), past))
        new = [int(logits[0, -1].argmax())]
        if new == [0]:
            break
        found += new
    return str(tokenizer.decode(found))


def main() -> None:
    """Train, export, check, and write tokenizer and texts beside the models."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    training, calibration, test = load_texts()
    tokenizer = train_tokenizer(training)
    tokenizer.save(str(HERE / "decoder_tokenizer.json"), pretty=False)
    for name, some in (("calibration", calibration), ("test", test)):
        (HERE / f"decoder_{name}.txt").write_text("".join(f"{text}\n" for text in some), "utf-8")
    tokenizer.no_truncation()
    encoded = [torch.tensor(tokenizer.encode(text).ids) for text in training]
    print(f"{len(training)} texts, {sum(map(len, encoded))} tokens")
    network = Decoder()
    train(network, encoded)
    export(network)
    plain, cached = session("decoder.onnx"), session("decoder_cache.onnx")
    check(network, plain, cached)
    for name, some in (("training", calibration), ("test", test)):
        print(f"perplexity of {len(some)} {name} texts: {perplexity(plain, tokenizer, some):.2f}")
    for text in ("Return True if", "Set the value of", "The socket", "An exception"):
        print(completed(cached, tokenizer, text))


if __name__ == "__main__":
    main()
