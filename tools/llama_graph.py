"""The graph of a Llama-shaped decoder in standard operators, as PyTorch's exporter and Optimum write it.

A layer of [batch, position, hidden] is

    y = x + o(Attention(rotate(q(n)), rotate(k(n)), v(n)))     n = RMSNorm(x)
    z = y + down(SiLU(gate(m)) * up(m))                        m = RMSNorm(y)

(Touvron et al., https://arxiv.org/abs/2302.13971). In float16 the norms and the softmax are still float32, behind
Casts. Weights are only described here, by what fills them; `tools/make_llama.py` writes them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from llama_weights import Array, Normal, Rotary, Weight
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

EPSILON = 1e-5
MASKED = float(np.finfo(np.float32).min)
GAIN_DEVIATION = 0.1
BATCH, NEW, PAST, TOTAL = (
    "batch_size",
    "sequence_length",
    "past_sequence_length",
    "past_sequence_length + sequence_length",
)
ELEMENT = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Shape:
    """The size of a decoder.

    Args:
        hidden: width of the residual stream; each head has hidden / heads of it.
        layers: how many layers.
        heads: heads of the queries.
        kv_heads: heads of keys and values, each shared by heads / kv_heads of the queries.
        intermediate: width inside of the feed-forward network.
        vocab: number of tokens.
        positions: how many positions the rotary tables hold.
        theta: base of the rotary angles.
        dtype: float32 or float16.
        cache: whether keys and values of earlier positions come in and go out.
        tied: whether the logits are made from the embedding table.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    positions: int = 4096
    theta: float = 1e4
    dtype: str = "float32"
    cache: bool = True
    tied: bool = False

    @property
    def head(self) -> int:
        """Width of a head."""
        return self.hidden // self.heads


# ---- a graph under construction --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """The graph as far as it is written: nodes, weights without their values, and small constants."""

    shape: Shape
    nodes: list[NodeProto] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    constants: dict[str, TensorProto] = field(default_factory=dict)

    def add(self, name: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node and return its output. The last part of its name is its operator, and `_1` or the like."""
        op = name.rpartition("/")[2].partition("_")[0]
        made = output or f"{name}_output_0"
        self.nodes.append(helper.make_node(op, list(inputs), [made], name=name, **attributes))
        return made

    def whole(self, *values: int) -> str:
        """The name of a constant list of integers."""
        return self._constant(f"whole_{'_'.join(map(str, values))}", np.array(values, np.int64))

    def single(self, value: int) -> str:
        """The name of a constant integer without axes."""
        return self._constant(f"single_{value}", np.array(value, np.int64))

    def number(self, value: float, dtype: str = "float32") -> str:
        """The name of a constant number."""
        return self._constant(f"{dtype}_{value:.6g}", np.array(value, dtype))

    def _constant(self, name: str, value: Array) -> str:
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def weight(self, name: str, weight: Weight) -> str:
        """The name of a weight that is filled later."""
        self.weights[name] = weight
        return name

    def wide(self, name: str, value: str) -> str:
        """The value in float32."""
        return value if self.shape.dtype == "float32" else self.add(name, value, to=TensorProto.FLOAT)

    def narrow(self, name: str, value: str) -> str:
        """A float32 value in the type of the model."""
        return value if self.shape.dtype == "float32" else self.add(name, value, to=ELEMENT[self.shape.dtype])

    def linear(self, module: str, x: str, sizes: tuple[int, int], scale: float = 1.0, output: str = "") -> str:
        """x @ w for a random w [inputs, outputs] of deviation scale / sqrt(inputs)."""
        weight = self.weight(f"{_dotted(module)}.weight", Normal(sizes, scale / sizes[0] ** 0.5))
        return self.add(f"{module}/MatMul", x, weight, output=output)


def _dotted(module: str) -> str:
    return module.strip("/").replace("/", ".")


# ---- the decoder -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Positions:
    """What every layer's attention shares: cosines and sines [b, 1, s, head], and the mask [b, 1, s, total]."""

    cosine: str
    sine: str
    mask: str


def decoder(shape: Shape) -> tuple[GraphProto, Mapping[str, Weight]]:
    """The graph, whose weights are missing from its initializers, and these weights by name, in order of their use."""
    sheet = Sheet(shape)
    width = shape.hidden
    table = sheet.weight("model.embed_tokens.weight", Normal((shape.vocab, width), width**-0.5))
    x = sheet.add("/model/embed_tokens/Gather", table, "input_ids")
    positions = Positions(_rotary(sheet, "cos", np.cos), _rotary(sheet, "sin", np.sin), _mask(sheet))
    for number in range(shape.layers):
        x = _layer(sheet, number, x, positions)
    x = norm(sheet, "/model/norm", x)
    if shape.tied:
        sheet.add("/lm_head/MatMul", x, sheet.add("/lm_head/Transpose", table, perm=[1, 0]), output="logits")
    else:
        sheet.linear("/lm_head", x, (width, shape.vocab), output="logits")
    constants = list(sheet.constants.values())
    return helper.make_graph(sheet.nodes, "decoder", _inputs(shape), _outputs(shape), constants), sheet.weights


def _inputs(shape: Shape) -> list[ValueInfoProto]:
    whole = {"input_ids": (BATCH, NEW), "attention_mask": (BATCH, TOTAL if shape.cache else NEW)}
    whole["position_ids"] = (BATCH, NEW)
    ids = [helper.make_tensor_value_info(name, TensorProto.INT64, sizes) for name, sizes in whole.items()]
    return [*ids, *(_cache(shape, "past_key_values", PAST) if shape.cache else ())]


def _outputs(shape: Shape) -> list[ValueInfoProto]:
    logits = helper.make_tensor_value_info("logits", ELEMENT[shape.dtype], (BATCH, NEW, shape.vocab))
    return [logits, *(_cache(shape, "present", TOTAL) if shape.cache else ())]


def _cache(shape: Shape, prefix: str, length: str) -> list[ValueInfoProto]:
    names = [f"{prefix}.{number}.{part}" for number in range(shape.layers) for part in ("key", "value")]
    sizes = (BATCH, shape.kv_heads, length, shape.head)
    return [helper.make_tensor_value_info(name, ELEMENT[shape.dtype], sizes) for name in names]


def _rotary(sheet: Sheet, name: str, function: Callable[[Array], Array]) -> str:
    """The rows of a table at `position_ids`, with an axis for the heads."""
    module, size = f"/model/rotary_emb/{name}", (sheet.shape.positions, sheet.shape.head)
    table = sheet.weight(f"{_dotted(module)}_cached", Rotary(size, sheet.shape.theta, function))
    rows = sheet.add(f"{module}/Gather", table, "position_ids")
    return sheet.add(f"{module}/Unsqueeze", rows, sheet.whole(1))


def _mask(sheet: Sheet) -> str:
    """0 where a position may look, the lowest float32 where a key is padding or comes later."""
    new, total = (_length(sheet, name) for name in ("input_ids", "attention_mask"))
    zero, one = sheet.single(0), sheet.single(1)
    past = sheet.add("/model/Sub", total, new)
    queries = sheet.add("/model/Unsqueeze", sheet.add("/model/Range", past, total, one), sheet.whole(1))
    keys = sheet.add("/model/Unsqueeze_1", sheet.add("/model/Range_1", zero, total, one), sheet.whole(0))
    causal = sheet.add("/model/LessOrEqual", keys, queries)
    kept = sheet.add("/model/Cast", "attention_mask", to=TensorProto.BOOL)
    visible = sheet.add("/model/And", causal, sheet.add("/model/Unsqueeze_2", kept, sheet.whole(1, 2)))
    return sheet.add("/model/Where", visible, sheet.number(0.0), sheet.number(MASKED))


def _length(sheet: Sheet, name: str) -> str:
    sizes = sheet.add(f"/model/{name}/Shape", name)
    return sheet.add(f"/model/{name}/Gather", sizes, sheet.single(1), axis=0)


def _layer(sheet: Sheet, number: int, x: str, positions: Positions) -> str:
    """One layer; what it adds to the stream is scaled by 1 / sqrt(2 * layers), which keeps the sum from growing."""
    module, scale = f"/model/layers.{number}", (2 * sheet.shape.layers) ** -0.5
    mixed = _attention(sheet, number, norm(sheet, f"{module}/input_layernorm", x), positions, scale)
    x = sheet.add(f"{module}/Add", x, mixed)
    fed = _feed_forward(sheet, f"{module}/mlp", norm(sheet, f"{module}/post_attention_layernorm", x), scale)
    return sheet.add(f"{module}/Add_1", x, fed)


def norm(sheet: Sheet, module: str, x: str) -> str:
    """x / sqrt(mean(x^2) + epsilon) * gain, over the last axis (https://arxiv.org/abs/1910.07467)."""
    wide = sheet.wide(f"{module}/Cast", x)
    square = sheet.add(f"{module}/Pow", wide, sheet.number(2.0))
    mean = sheet.add(f"{module}/ReduceMean", square, axes=[-1])
    root = sheet.add(f"{module}/Sqrt", sheet.add(f"{module}/Add", mean, sheet.number(EPSILON)))
    scaled = sheet.add(f"{module}/Mul", wide, sheet.add(f"{module}/Div", sheet.number(1.0), root))
    gain = sheet.weight(f"{_dotted(module)}.weight", Normal((sheet.shape.hidden,), GAIN_DEVIATION, mean=1.0))
    return sheet.add(f"{module}/Mul_1", gain, sheet.narrow(f"{module}/Cast_1", scaled))


def _attention(sheet: Sheet, number: int, x: str, positions: Positions, scale: float) -> str:
    shape, module = sheet.shape, f"/model/layers.{number}/self_attn"
    query = _rotate(sheet, f"{module}/q", _heads(sheet, f"{module}/q_proj", x, shape.heads), positions)
    key = _rotate(sheet, f"{module}/k", _heads(sheet, f"{module}/k_proj", x, shape.kv_heads), positions)
    value = _heads(sheet, f"{module}/v_proj", x, shape.kv_heads)
    if shape.cache:
        key, value = _join(sheet, number, "key", key), _join(sheet, number, "value", value)
    key, value = _repeat(sheet, f"{module}/key", key), _repeat(sheet, f"{module}/value", value)
    weighed = sheet.add(f"{module}/MatMul_1", _look(sheet, module, query, key, positions.mask), value)
    joined = sheet.add(f"{module}/Transpose_1", weighed, perm=[0, 2, 1, 3])
    flat = sheet.add(f"{module}/Reshape", joined, sheet.whole(0, 0, shape.hidden))
    return sheet.linear(f"{module}/o_proj", flat, (shape.hidden, shape.hidden), scale)


def _heads(sheet: Sheet, module: str, x: str, heads: int) -> str:
    """A linear layer of x, as [batch, heads, position, head]."""
    head = sheet.shape.head
    made = sheet.linear(module, x, (sheet.shape.hidden, heads * head))
    parted = sheet.add(f"{module}/Reshape", made, sheet.whole(0, 0, heads, head))
    return sheet.add(f"{module}/Transpose", parted, perm=[0, 2, 1, 3])


def _rotate(sheet: Sheet, module: str, x: str, positions: Positions) -> str:
    """x * cos + [-second half, first half] * sin."""
    middle, end = sheet.shape.head // 2, sheet.shape.head
    first, second = (
        sheet.add(f"{module}/Slice_{i}", x, sheet.whole(start), sheet.whole(stop), sheet.whole(3))
        for i, (start, stop) in enumerate([(0, middle), (middle, end)])
    )
    turned = sheet.add(f"{module}/Concat", sheet.add(f"{module}/Neg", second), first, axis=-1)
    straight = sheet.add(f"{module}/Mul", x, positions.cosine)
    return sheet.add(f"{module}/Add", straight, sheet.add(f"{module}/Mul_1", turned, positions.sine))


def _join(sheet: Sheet, number: int, part: str, new: str) -> str:
    """The keys or values of earlier positions and the new ones; they are an output of the model as well."""
    name, past = f"/model/layers.{number}/self_attn/past_{part}/Concat", f"past_key_values.{number}.{part}"
    return sheet.add(name, past, new, output=f"present.{number}.{part}", axis=-2)


def _repeat(sheet: Sheet, module: str, x: str) -> str:
    """[b, kv_heads, t, head] => [b, heads, t, head], each head for the queries that share it."""
    shape = sheet.shape
    times = shape.heads // shape.kv_heads
    if times == 1:
        return x
    apart = sheet.add(f"{module}/Unsqueeze", x, sheet.whole(2))
    copied = sheet.add(f"{module}/Expand", apart, sheet.whole(1, 1, times, 1, 1))
    return sheet.add(f"{module}/Reshape", copied, sheet.whole(0, shape.heads, -1, shape.head))


def _look(sheet: Sheet, module: str, query: str, key: str, mask: str) -> str:
    """softmax(query @ key^T / sqrt(head) + mask), in float32."""
    turned = sheet.add(f"{module}/Transpose", key, perm=[0, 1, 3, 2])
    scores = sheet.add(f"{module}/MatMul", query, turned)
    scaled = sheet.add(f"{module}/Mul", scores, sheet.number(sheet.shape.head**-0.5, sheet.shape.dtype))
    masked = sheet.add(f"{module}/Add", sheet.wide(f"{module}/Cast", scaled), mask)
    return sheet.narrow(f"{module}/Cast_1", sheet.add(f"{module}/Softmax", masked, axis=-1))


def _feed_forward(sheet: Sheet, module: str, x: str, scale: float) -> str:
    outward = (sheet.shape.hidden, sheet.shape.intermediate)
    gate = sheet.linear(f"{module}/gate_proj", x, outward)
    swish = sheet.add(f"{module}/act_fn/Mul", gate, sheet.add(f"{module}/act_fn/Sigmoid", gate))
    gated = sheet.add(f"{module}/Mul", swish, sheet.linear(f"{module}/up_proj", x, outward))
    return sheet.linear(f"{module}/down_proj", gated, outward[::-1], scale)


def feeds(shape: Shape, tokens: Array, past: Sequence[Array] = ()) -> dict[str, Array]:
    """The inputs for tokens [batch, position], after the `present` outputs of the run before if there was one."""
    batch, new = tokens.shape
    empty = np.zeros((batch, shape.kv_heads, 0, shape.head), shape.dtype)
    caches = list(past) or [empty] * (2 * shape.layers)
    before = caches[0].shape[2]
    given = {
        "input_ids": tokens,
        "attention_mask": np.ones((batch, before + new), np.int64),
        "position_ids": np.tile(np.arange(before, before + new), (batch, 1)),
    }
    names = [value.name for value in _inputs(shape)][len(given) :]
    return {**given, **dict(zip(names, caches, strict=False))}
