"""Products of matrices, and attention, which is two of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from onnxq.training.operators.calls import Call, Operator, Result, element_type


def general(call: Call) -> Tensor:
    """alpha*A*B + beta*C, with A and B transposed where that is asked for."""
    a, b, *c = call.together()
    a, b = a.T if call.get("transA", 0) else a, b.T if call.get("transB", 0) else b
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    return torch.addmm(c[0], a, b, beta=beta, alpha=alpha) if c else alpha * (a @ b)


def einsum(call: Call) -> Tensor:
    """A sum of products by its equation."""
    return torch.einsum(call.get("equation").replace(" ", ""), *call.together())


def attention(call: Call) -> Result:
    """softmax(cap(scale*Q*K') + mask)*V, with caches, groups of heads, a soft cap and a causal mask where asked for.

    Outputs: the result in the form of Q, the keys and the values with those of the caches, and the scores.
    """
    if len(call.inputs) > 6 and call.inputs[6] is not None:
        raise call.refuse("Attention with lengths of padded caches")
    flat = call.data().ndim == 3
    q = _heads(call.data(), call.get("q_num_heads"))
    k, v = (_heads(call.data(index), call.get("kv_num_heads")) for index in (1, 2))
    k, v = _after(call.at(4), k), _after(call.at(5), v)
    copies = q.shape[1] // k.shape[1]
    y, scores = _attend(call, q, k.repeat_interleave(copies, 1), v.repeat_interleave(copies, 1))
    y = y.transpose(1, 2).flatten(2) if flat else y
    return (y, k, v, scores)[: call.outputs] if call.outputs > 1 else y


def _heads(x: Tensor, count: int) -> Tensor:
    """[batch, sequence, count*size] -> [batch, count, sequence, size]."""
    return x.reshape(*x.shape[:2], count, -1).transpose(1, 2) if x.ndim == 3 else x


def _after(past: Tensor | None, x: Tensor) -> Tensor:
    return x if past is None else torch.cat([past.to(x.device), x], 2)


def _attend(call: Call, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """The result, and the scores of the stage that is asked for: products, capped, masked, or after softmax."""
    root = float(call.get("scale") or q.shape[-1] ** -0.5) ** 0.5
    products = (q * root) @ (k * root).transpose(-1, -2)
    cap = float(call.get("softcap", 0.0))
    capped = torch.tanh(products / cap) * cap if cap else products
    bias = _bias(call, products, k.shape[2] - q.shape[2] if call.at(4) is not None else 0)
    masked = capped if bias is None else capped + bias
    blind = None if bias is None else (bias == -torch.inf).all(-1, keepdim=True)  # softmax has no answer there
    wide = element_type(call, "softmax_precision") or q.dtype
    weights = torch.softmax(masked if blind is None else masked.masked_fill(blind, 0), -1, dtype=wide).to(q.dtype)
    weights = weights if blind is None else weights.masked_fill(blind, 0)
    return weights @ v, (products, capped, masked, weights)[call.get("qk_matmul_output_mode", 0)]


def _bias(call: Call, scores: Tensor, past: int) -> Tensor | None:
    """What the masks add to the scores: minus infinity where a key must not be seen."""
    mask = call.at(3)
    bias = None if mask is None else _added(mask.to(scores.device), scores)
    if call.get("is_causal", 0):
        seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(past)
        bias = _added(seen, scores) if bias is None else bias + _added(seen, scores)
    return bias


def _added(mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=scores.dtype, device=mask.device).masked_fill(~mask, -torch.inf)


MATRICES: Mapping[str, Operator] = {
    "Attention": attention,
    "Det": lambda call: torch.linalg.det(call.data()),
    "Einsum": einsum,
    "Gemm": general,
    "MatMul": lambda call: torch.matmul(*call.together()),
}
