"""Tiny decoders: an embedding, one layer of attention over a cache, and scores of the next token."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import onnx
from onnx import numpy_helper

VOCABULARY, HEADS, WIDTH, LONGEST = 24, 2, 24, 64
HEAD = WIDTH // HEADS

Style = Literal["none", "split", "stacked", "merged"]
"""No cache; keys and values apart; both in one tensor of rank 5; a flag that says whether the cache is used."""


def _pair(length: str, prefix: str) -> str:
    return ", ".join(f'float[batch,{HEADS},{length},{HEAD}] "{prefix}.0.{part}"' for part in ("key", "value"))


CACHES = {
    "none": ("", ""),
    "split": (_pair("past", "past_key_values"), _pair("total", "present")),
    "stacked": (f"float[2,batch,{HEADS},past,{HEAD}] past_0", f"float[2,batch,{HEADS},total,{HEAD}] present_0"),
}
"""Inputs and outputs."""

OLD = {
    "none": "key = Identity(k) value = Identity(v)",
    "split": """
        "present.0.key" = Concat<axis=2>("past_key_values.0.key", k)
        "present.0.value" = Concat<axis=2>("past_key_values.0.value", v)
        key = Identity("present.0.key") value = Identity("present.0.value")""",
    "stacked": """
        both_k = Unsqueeze(k, zero) both_v = Unsqueeze(v, zero) both = Concat<axis=0>(both_k, both_v)
        present_0 = Concat<axis=3>(past_0, both)
        key = Gather<axis=0>(present_0, first) value = Gather<axis=0>(present_0, second)""",
    "merged": f"""
        old_k = If(use_cache_branch) <
            then_branch = used () => (float[batch,{HEADS},a,{HEAD}] o1) {{ o1 = Identity("past_key_values.0.key") }},
            else_branch = new () => (float[batch,{HEADS},b,{HEAD}] o2) {{
                o2 = Slice("past_key_values.0.key", zero, zero, two) }}>
        "present.0.key" = Concat<axis=2>(old_k, k)
        "present.0.value" = Concat<axis=2>("past_key_values.0.value", v)
        key = Identity("present.0.key") value = Identity("present.0.value")""",
}

LAYER = """
    x0 = Gather(embedding, input_ids) x1 = Gather(positions, position_ids) x = Add(x0, x1)
    q0 = MatMul(x, w_q) q1 = Reshape(q0, heads) q = Transpose<perm=[0,2,1,3]>(q1)
    k0 = MatMul(x, w_k) k1 = Reshape(k0, heads) k = Transpose<perm=[0,2,1,3]>(k1)
    v0 = MatMul(x, w_v) v1 = Reshape(v0, heads) v = Transpose<perm=[0,2,1,3]>(v1)
    {old}
    key_t = Transpose<perm=[0,1,3,2]>(key) scores = MatMul(q, key_t)
    all = Shape<start=2,end=3>(key) new = Shape<start=2,end=3>(q) before = Sub(all, new)
    end = Squeeze(all) start = Squeeze(before)
    at_key = Range(nought, end, unit) at_query0 = Range(start, end, unit) at_query = Unsqueeze(at_query0, one)
    past_only = LessOrEqual(at_key, at_query)
    real0 = Cast<to=9>(attention_mask) real = Unsqueeze(real0, one_two) seen = And(real, past_only)
    hidden = Where(seen, scores, low) shares = Softmax<axis=-1>(hidden)
    mixed0 = MatMul(shares, value) mixed1 = Transpose<perm=[0,2,1,3]>(mixed0) mixed2 = Reshape(mixed1, flat)
    mixed = MatMul(mixed2, w_o) y = Add(x, mixed) logits = MatMul(y, head)
"""

INTEGERS = {
    "heads": [0, 0, HEADS, HEAD],
    "flat": [0, 0, WIDTH],
    "zero": [0],
    "one": [1],
    "two": [2],
    "one_two": [1, 2],
    "first": 0,
    "second": 1,
    "nought": 0,
    "unit": 1,
}


def decoder(
    style: Style = "split", *, sure: float = 0.0, noise: float = 0.0, sequence: int | str = "new"
) -> onnx.ModelProto:
    """A decoder with random weights.

    Args:
        style: how it keeps its cache.
        sure: how strongly it predicts that token t + 1 follows on t.
        noise: by how much its scores are off.
        sequence: the axis of the new tokens.
    """
    taken, made = CACHES["split" if style == "merged" else style]
    flag = ", bool[1] use_cache_branch" if style == "merged" else ""
    mask = sequence if style == "none" else "total"
    text = (
        f'<ir_version: 8, opset_import: ["" : 17]> decoder (int64[batch,{sequence}] input_ids, '
        f"int64[batch,{mask}] attention_mask, int64[batch,{sequence}] position_ids"
        f"{', ' if taken else ''}{taken}{flag}) => (float[batch,{sequence},{VOCABULARY}] logits"
        f"{', ' if made else ''}{made}) {{ {LAYER.format(old=OLD[style])} }}"
    )
    model: onnx.ModelProto = onnx.parser.parse_model(text)
    stored = weights(sure, noise) | {name: np.array(value, np.int64) for name, value in INTEGERS.items()}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in stored.items())
    return model


def weights(sure: float, noise: float) -> dict[str, np.ndarray[Any, Any]]:
    """The same for every style."""
    random = np.random.default_rng(0)
    square = [random.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 3 for _ in range(5)]
    square[3] /= 3  # what was seen before matters, but not too much
    head = square[4] + sure * np.roll(np.eye(WIDTH, VOCABULARY), 1, axis=1)
    head += noise * random.standard_normal(head.shape)
    return {
        "embedding": np.eye(VOCABULARY, WIDTH, dtype=np.float32),
        "positions": (random.standard_normal((LONGEST, WIDTH)) / 10).astype(np.float32),
        **dict(zip(("w_q", "w_k", "w_v", "w_o"), square, strict=False)),
        "head": head.astype(np.float32),
        "low": np.array(-1e9, np.float32),
    }
