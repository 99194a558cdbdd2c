"""Make docstrings.onnx, a transformer encoder that tells which library a paragraph documents, its tokenizer and data.

    pip install -e .[models]
    python models/make_docstrings.py

Trained on the documentation strings in Python's own standard library, read from source without importing it: no
download. Paragraphs that differ only in case, digits or punctuation count as one; one that several of the libraries
share is left out; the hash of a paragraph decides whether it is for training or for the test. One thread and fixed
seeds: the same releases of Python, torch and tokenizers on the same kind of processor give the same weights; another
release of Python has other paragraphs.
"""

# mypy: allow-subclassing-any, allow-untyped-calls, no-warn-return-any

import ast
import hashlib
import re
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional

HERE = Path(__file__).resolve().parent
LIBRARIES = (
    "asyncio", "email", "http", "importlib", "ipaddress", "logging",
    "multiprocessing", "tkinter", "turtle", "typing", "unittest", "xml",
)  # fmt: skip
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")  # the position is the token id
VOCABULARY = 2000
LENGTH = 64  # tokens
HIDDEN, HEADS, INNER, LAYERS = 128, 4, 512, 3
EPOCHS = 24
BATCH = 32
CALIBRATION_SAMPLES = 128


@dataclass(frozen=True)
class Sample:
    """One paragraph on one line, and the index of its library in LIBRARIES."""

    text: str
    label: int


@dataclass(frozen=True)
class Encoded:
    """Token ids [n, 64] padded with 0, mask [n, 64] of ones and zeros, labels [n]; all int64."""

    ids: Tensor
    mask: Tensor
    labels: Tensor

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """These rows, cut to the longest of them."""
        longest = int(self.mask[rows].sum(1).max())
        return self.ids[rows, :longest], self.mask[rows, :longest], self.labels[rows]


def paragraphs(library: str) -> Iterator[str]:
    """Every docstring paragraph of at least six words in a standard library module or package, tests left out."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in sorted([root / f"{library}.py", *(root / library).rglob("*.py")]):
        if not path.exists() or {"test", "tests"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                for paragraph in re.split(r"\n\s*\n", ast.get_docstring(node) or ""):
                    if len(paragraph.split()) >= 6:
                        yield " ".join(paragraph.split())


def load_samples() -> tuple[list[Sample], list[Sample]]:
    """Training and test samples, each in the order of the paragraphs' hashes; a fifth is for the test."""
    found: dict[bytes, set[Sample]] = {}
    for label, library in enumerate(LIBRARIES):
        for text in paragraphs(library):
            letters = re.sub(r"[^a-z]+", " ", text.lower()).strip()
            found.setdefault(hashlib.sha256(letters.encode()).digest(), set()).add(Sample(text, label))
    unique = {
        key: min(samples, key=lambda sample: sample.text)
        for key, samples in sorted(found.items())
        if len({sample.label for sample in samples}) == 1
    }
    train = [sample for key, sample in unique.items() if key[-1] % 5]
    test = [sample for key, sample in unique.items() if not key[-1] % 5]
    return train, test


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """A lower-case tokenizer that frames a text as [CLS] text [SEP] and cuts it to 64 tokens.

    Byte pairs, because the training of WordPiece numbers its tokens differently on every run.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=list(SPECIAL), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding()
    return tokenizer


def encode(tokenizer: Tokenizer, samples: list[Sample]) -> Encoded:
    """Samples as tensors padded to 64 tokens."""
    ids = torch.zeros(len(samples), LENGTH, dtype=torch.int64)
    for row, sample in enumerate(samples):
        tokens = tokenizer.encode(sample.text).ids
        ids[row, : len(tokens)] = torch.tensor(tokens)
    return Encoded(ids, (ids != 0).long(), torch.tensor([sample.label for sample in samples]))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.output = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [batch, sequence, hidden], mask bool [batch, 1, 1, sequence] -> [batch, sequence, hidden]."""
        query, key, value = (
            layer(x).unflatten(2, (HEADS, HIDDEN // HEADS)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.output(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """Attention, then a GELU network, each followed by a residual Add and LayerNorm, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.attention_norm = nn.LayerNorm(HIDDEN)
        self.feed_forward = nn.Sequential(nn.Linear(HIDDEN, INNER), nn.GELU(), nn.Linear(INNER, HIDDEN))
        self.output_norm = nn.LayerNorm(HIDDEN)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [batch, sequence, hidden], mask bool [batch, 1, 1, sequence] -> [batch, sequence, hidden]."""
        x = self.attention_norm(x + self.dropout(self.attention(x, mask)))
        return self.output_norm(x + self.dropout(self.feed_forward(x)))


class Encoder(nn.Module):
    """Token and position embeddings, transformer layers, the mean over real tokens, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.positions = nn.Embedding(LENGTH, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.dropout = nn.Dropout(0.3)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
        self.head = nn.Linear(HIDDEN, len(LIBRARIES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids and attention_mask, int64 [batch, sequence] -> logits [batch, classes]."""
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        x = self.dropout(self.norm(x))
        for layer in self.layers:
            x = layer(x, attention_mask[:, None, None, :].bool())
        weight = attention_mask[:, :, None].float()
        return self.head((x * weight).sum(1) / weight.sum(1).clamp(min=1))


def with_unknowns(ids: Tensor) -> Tensor:
    """The ids with one real token in seven replaced by [UNK]: augmentation for training."""
    hidden = (torch.rand(ids.shape) < 1 / 7) & (ids >= len(SPECIAL))
    return torch.where(hidden, torch.tensor(SPECIAL.index("[UNK]")), ids)


def train(network: nn.Module, data: Encoded) -> None:
    """AdamW with a one-cycle learning rate, batches of similar length; leaves the network in inference mode."""
    lengths = data.mask.sum(1)
    steps = EPOCHS * -(-len(lengths) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=steps)
    network.train()
    for epoch in range(EPOCHS):
        order = torch.randperm(len(lengths))
        batches = order[lengths[order].argsort(stable=True)].split(BATCH)
        total = 0.0
        for index in torch.randperm(len(batches)):
            ids, mask, labels = data.batch(batches[index])
            loss = functional.cross_entropy(network(with_unknowns(ids), mask), labels, label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        print(f"epoch {epoch + 1}: mean loss {total / len(batches):.4f}")
    network.eval()


def export(network: nn.Module, path: Path) -> None:
    """Write the network as ONNX with symbolic batch and sequence, without the exporter's notes on the source code.

    Opset 18 is the lowest that torch's exporter writes without a conversion.
    """
    ids = torch.ones(2, 7, dtype=torch.int64)
    mask = ids.clone()  # the same tensor twice would be traced as one input
    dims = {0: torch.export.Dim("batch"), 1: torch.export.Dim("sequence", max=LENGTH)}
    program = torch.onnx.export(
        network,
        (ids, mask),
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes=(dims, dims),
        opset_version=18,
        verbose=False,
    )
    assert program is not None
    ClearMetadataAndDocStringPass()(program.model)
    program.save(path)


def check(network: nn.Module, path: Path, data: Encoded) -> None:
    """Hold ONNX Runtime to the logits and the accuracy of torch, for several batch sizes and sequence lengths."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for rows, length in ((1, 1), (1, 5), (3, 17), (3, LENGTH), (len(data.labels), LENGTH)):
        ids, mask = data.ids[:rows, :length], data.mask[:rows, :length]
        (logits,) = session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        with torch.no_grad():
            expected = network(ids, mask).numpy()
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
    accuracy = (logits.argmax(1) == data.labels.numpy()).mean()
    most = data.labels.bincount().max() / len(logits)
    print(f"{path.name}: accuracy {accuracy:.4f} on {len(logits)} test paragraphs, the same as torch")
    print(f"always naming the most frequent library: {most:.4f}")


def main() -> None:
    """Train, export, check, and write tokenizer and data beside the model."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    train_samples, test_samples = load_samples()
    tokenizer = train_tokenizer([sample.text for sample in train_samples])
    tokenizer.save(str(HERE / "docstrings_tokenizer.json"), pretty=False)
    training, test = encode(tokenizer, train_samples), encode(tokenizer, test_samples)
    network = Encoder()
    train(network, training)
    export(network, HERE / "docstrings.onnx")
    check(network, HERE / "docstrings.onnx", test)

    some = slice(CALIBRATION_SAMPLES)
    lines = "".join(f"{sample.text}\n" for sample in train_samples[some])
    (HERE / "docstrings_calibration.txt").write_text(lines, "utf-8")
    ids, mask = training.ids[some].numpy(), training.mask[some].numpy()
    np.savez_compressed(HERE / "docstrings_calibration.npz", input_ids=ids, attention_mask=mask)
    ids, mask, labels = test.ids.numpy(), test.mask.numpy(), test.labels.numpy()
    np.savez_compressed(HERE / "docstrings_test.npz", input_ids=ids, attention_mask=mask, labels=labels)


if __name__ == "__main__":
    main()
