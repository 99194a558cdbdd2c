"""How large each axis is, as far as the graph tells.

    ids [batch, seq] -> Gather -> [batch, seq, 384] -> Reshape(Concat(Shape(ids), 12, 32)) -> [batch, seq, 12, 32]

Axes of one name have one size; different names say nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxq.axes import Shape, Sizes, own, quotient, stretch
from onnxq.graph import MICROSOFT, Graph, Node, is_constant

LIKE_FIRST = frozenset(
    {
        "BiasGelu", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp", "FastGelu", "Gelu", "HardSigmoid", "HardSwish",
        "Identity", "IsNaN", "LayerNormalization", "LeakyRelu", "Log", "Mish", "Neg", "Not", "QuickGelu", "Reciprocal",
        "Relu", "Sigmoid", "SimplifiedLayerNormalization", "Softmax", "Sqrt", "Tanh",
    }
)  # fmt: skip
"""Operators that return one number for each that they read first."""

TOGETHER = frozenset({"Add", "And", "Div", "Equal", "Max", "Min", "Mul", "Or", "Pow", "Sub", "Sum", "Where"})
"""Operators whose operands stretch to the size of each other."""


def read_sizes(graph: Graph) -> Sizes:
    """Read the graph once, from its inputs to its outputs."""
    sizes = Sizes()
    for given in graph.inputs:
        sizes.settle(given, None)
    for node in graph.nodes:
        for tensor in [t for t in node.inputs if is_constant(t) and t.name not in sizes.shapes]:
            sizes.settle_constant(tensor)
        known = (node.domain or "") in ("", MICROSOFT)
        found = RULES[node.op](sizes, node) if known and node.op in RULES else None
        for index, tensor in enumerate(node.outputs):
            sizes.settle(tensor, None if index else found)
        value = VALUES[node.op](sizes, node) if known and node.op in VALUES else None
        if value is not None:
            sizes.values[node.outputs[0].name] = value
    return sizes


def _like_first(sizes: Sizes, node: Node) -> Shape | None:
    return sizes.of(node.inputs[0])


def _together(sizes: Sizes, node: Node) -> Shape | None:
    shapes = [shape for tensor in node.inputs if (shape := sizes.of(tensor)) is not None]
    return stretch(shapes, node.outputs[0].name) if len(shapes) == len(node.inputs) else None


def _product(sizes: Sizes, node: Node) -> Shape | None:
    a, b = (sizes.of(tensor) for tensor in node.inputs)
    if a is None or b is None or min(len(a), len(b)) < 2:
        return None
    return [*stretch([a[:-2], b[:-2]], node.outputs[0].name), a[-2], b[-1]]


def _transpose(sizes: Sizes, node: Node) -> Shape | None:
    shape = sizes.of(node.inputs[0])
    return None if shape is None else [shape[axis] for axis in node.attrs.get("perm", range(len(shape))[::-1])]


def _gather(sizes: Sizes, node: Node) -> Shape | None:
    table, rows = (sizes.of(tensor) for tensor in node.inputs)
    axis = int(node.attrs.get("axis", 0))
    return None if table is None or rows is None or axis < 0 else [*table[:axis], *rows, *table[axis + 1 :]]


def _concat(sizes: Sizes, node: Node) -> Shape | None:
    shapes = [shape for tensor in node.inputs if (shape := sizes.of(tensor)) is not None]
    if len(shapes) < len(node.inputs) or len({len(shape) for shape in shapes}) != 1:
        return None
    result: Shape = []
    for axis, column in enumerate(zip(*shapes, strict=True)):
        numbers = [size for size in column if isinstance(size, int)]
        if axis != node.attrs["axis"] % len(shapes[0]):
            result.append(numbers[0] if numbers else column[0])
        else:
            result.append(sum(numbers) if len(numbers) == len(column) else own(node.outputs[0].name, axis))
    return result


def _attention(sizes: Sizes, node: Node) -> Shape | None:
    q, v = sizes.of(node.inputs[0]), sizes.of(node.inputs[2])
    heads, groups = int(node.attrs.get("q_num_heads", 0)), int(node.attrs.get("kv_num_heads", 0))
    if q is None or v is None or len(q) != 3 or len(v) != 3 or not isinstance(v[2], int) or not heads * groups:
        return None
    return [q[0], q[1], v[2] // groups * heads]


def _unsqueeze(sizes: Sizes, node: Node) -> Shape | None:
    shape, axes = sizes.of(node.inputs[0]), _axes(sizes, node)
    if shape is None or axes is None:
        return None
    result, rank = list(shape), len(shape) + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        result.insert(axis, 1)
    return result


def _axes(sizes: Sizes, node: Node) -> list[int] | None:
    if len(node.inputs) < 2:
        return list(node.attrs["axes"]) if "axes" in node.attrs else None
    return _numbers(sizes.values.get(node.inputs[1].name))


def _numbers(value: Shape | None) -> list[int] | None:
    numbers = [number for number in value or () if isinstance(number, int)]
    return numbers if value is not None and len(numbers) == len(value) else None


def _slice(sizes: Sizes, node: Node) -> Shape | None:
    shape = sizes.of(node.inputs[0])
    if shape is None or len(node.inputs) < 3:
        return None
    axes = _numbers(sizes.values.get(node.inputs[3].name)) if len(node.inputs) > 3 else list(range(len(shape)))
    if axes is None:
        return None
    cut, name = {axis % len(shape) for axis in axes}, node.outputs[0].name
    return [own(name, axis, isinstance(size, int)) if axis in cut else size for axis, size in enumerate(shape)]


def _reduce(sizes: Sizes, node: Node) -> Shape | None:
    shape, axes = sizes.of(node.inputs[0]), _axes(sizes, node)
    if shape is None or not axes:
        return None
    gone = {axis % len(shape) for axis in axes}
    if node.attrs.get("keepdims", 1):
        return [1 if axis in gone else size for axis, size in enumerate(shape)]
    return [size for axis, size in enumerate(shape) if axis not in gone]


def _expand(sizes: Sizes, node: Node) -> Shape | None:
    shape, wish = sizes.of(node.inputs[0]), sizes.values.get(node.inputs[1].name)
    return None if shape is None or wish is None else stretch([shape, wish], node.outputs[0].name)


def _reshape(sizes: Sizes, node: Node) -> Shape | None:
    shape, wish = sizes.of(node.inputs[0]), sizes.values.get(node.inputs[1].name)
    if wish is None:
        return None
    if shape is None:
        return None if any(size in (0, -1) for size in wish) else list(wish)
    keeps = not node.attrs.get("allowzero", 0)
    result = [shape[axis] if size == 0 and keeps and axis < len(shape) else size for axis, size in enumerate(wish)]
    if -1 in result:
        result[result.index(-1)] = quotient(shape, [size for size in result if size != -1]) or own(
            node.outputs[0].name, -1
        )
    return result


def _shape_value(sizes: Sizes, node: Node) -> Shape | None:
    shape = sizes.of(node.inputs[0])
    return None if shape is None else shape[slice(node.attrs.get("start", 0), node.attrs.get("end"))]


def _same_value(sizes: Sizes, node: Node) -> Shape | None:
    return sizes.values.get(node.inputs[0].name)


def _joined_value(sizes: Sizes, node: Node) -> Shape | None:
    parts = [part for tensor in node.inputs if (part := sizes.values.get(tensor.name)) is not None]
    return [size for part in parts for size in part] if len(parts) == len(node.inputs) else None


def _gathered_value(sizes: Sizes, node: Node) -> Shape | None:
    value, places = (sizes.values.get(tensor.name) for tensor in node.inputs)
    numbers = _numbers(places)
    if value is None or numbers is None or not all(-len(value) <= place < len(value) for place in numbers):
        return None
    return [value[place] for place in numbers]


def _sliced_value(sizes: Sizes, node: Node) -> Shape | None:
    value = sizes.values.get(node.inputs[0].name)
    limits = [_numbers(sizes.values.get(tensor.name)) for tensor in node.inputs[1:]]
    if value is None or len(limits) < 2 or any(limit is None or len(limit) != 1 for limit in limits):
        return None
    given = [limit[0] for limit in limits if limit is not None]
    start, end, _, step = [*given, *[0, 1][len(given) - 2 :]]  # axis 0 and step 1 where they are left out
    return value[slice(start, end, step)]


Rule = Callable[[Sizes, Node], Shape | None]
RULES: dict[str, Rule] = {
    **dict.fromkeys(LIKE_FIRST, _like_first),
    **dict.fromkeys(TOGETHER, _together),
    "Attention": _attention,
    "Concat": _concat,
    "Expand": _expand,
    "Gather": _gather,
    "MatMul": _product,
    **dict.fromkeys(("ReduceMax", "ReduceMean", "ReduceMin", "ReduceSum"), _reduce),
    "Reshape": _reshape,
    "Slice": _slice,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
VALUES: dict[str, Rule] = {
    "Cast": _same_value,
    "Concat": _joined_value,
    "Gather": _gathered_value,
    "Identity": _same_value,
    "Reshape": _same_value,
    "Shape": _shape_value,
    "Slice": _sliced_value,
    "Squeeze": _same_value,
    "Unsqueeze": _same_value,
}
