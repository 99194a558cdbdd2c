"""Where integers pay: decisions on the shapes that networks are made of, each with its reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from onnxq.calibration.collect import Statistics, collect
from onnxq.calibration.data import open_data
from onnxq.decision import decide
from onnxq.errors import DataError
from onnxq.graph import Graph
from onnxq.placement import BESIDE_FLOATS, Placement, embeddings, needed_opset, place, place_linear
from onnxq.plan import Plan, Treatment
from onnxq.recipe import Recipe, make_recipe
from onnxq.targets import CPU
from tests.onnx_text import Array, execute, floats, normal, read

STATIC, FLOAT = Treatment.STATIC, Treatment.FLOAT


def conv(*shape: int) -> Array:
    return floats(*shape) * np.float32(0.2)


def weights() -> dict[str, Any]:
    """Convolutions of 3 -> 8 and 8 -> 8 channels, matrices of 16 columns."""
    return {
        "w3": conv(8, 3, 3, 3),
        "w": conv(8, 8, 1, 1),
        "wd": conv(8, 1, 3, 3),
        "b": floats(8),
        "m": floats(16, 16),
        "mb": floats(16),
        "six": np.float32(6),
        "zero": np.float32(0),
    }


def image(
    body: str, *, x: str = "2,8,8,8", outputs: str = "", more: dict[str, Any] | None = None, rank: int = 4
) -> Graph:
    names = ",".join("abcde"[:rank])
    return read(f"(float[{x}] x) => (float[{names}] y{outputs}) {{ {body} }}", weights() | (more or {}))


def text(body: str, *, outputs: str = "", more: dict[str, Any] | None = None) -> Graph:
    return read(f"(float[2,4,16] x) => (float[a,b,c] y{outputs}) {{ {body} }}", weights() | (more or {}))


def placed(graph: Graph, **recipe: Any) -> Placement:
    return place(graph, CPU, make_recipe(recipe))


def static(placement: Placement) -> set[str]:
    """Names of the nodes that run on static integers."""
    return {name for name, plan in placement.nodes.items() if plan.treatment is STATIC}


def statistics(graph: Graph, placement: Placement) -> Statistics:
    names = sorted({source for source in placement.tensors.values() if source not in placement.fixed})
    rows = [normal(graph, seed) for seed in range(3)]
    data = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return collect(graph, names, open_data(data, graph.interface().inputs), threads=1)


def planned(graph: Graph, placement: Placement, **recipe: Any) -> Plan:
    return decide(placement, statistics(graph, placement), make_recipe(recipe), CPU)


def test_convolutions_and_their_activations() -> None:
    placement = placed(image("[one] c = Conv(x, w, b) [act] r = Clip(c, zero, six) [two] y = Conv(r, w)"))
    assert static(placement) == {"one", "two"}
    assert placement.nodes["one"].reason == "Integer kernel with a constant weight."
    assert (placement.nodes["act"].treatment, placement.nodes["act"].reason) == (FLOAT, "Part of layer 'one'.")
    assert placement.tensors == {"x": "x", "r": "r", "y": "y"}


def test_residual_sum_runs_on_integers() -> None:
    body = "[one] c = Conv(x, w) r = Relu(c) [two] d = Conv(r, w) [add] s = Add(d, x) [act] t = Relu(s)"
    placement = placed(image(body + " [three] y = Conv(t, w)"))
    assert static(placement) == {"one", "two", "add", "act", "three"}
    assert placement.nodes["add"].reason == "Between integer operators."
    assert set(placement.tensors) == {"x", "r", "d", "t", "y"}, "saturation replaces the Relu: no range for the sum"


def test_residual_sum_that_is_read_beside_its_relu_has_a_range_of_its_own() -> None:
    body = "[one] d = Conv(x, w) [add] s = Add(d, x) [act] t = Relu(s) [two] e = Conv(t, w) [sum] y = Add(e, s)"
    placement = placed(image(body + " [three] z = Conv(y, w)", outputs=", float[a,b,c,d] z"))
    assert {"s", "t"} <= set(placement.tensors)


def test_sum_before_another_activation_has_a_range_of_its_own() -> None:
    placement = placed(image("[one] c = Conv(x, w) [add] s = Add(c, x) [act] t = LeakyRelu(s) [two] y = Conv(t, w)"))
    assert static(placement) == {"one", "add", "act", "two"}
    assert {"s", "t"} <= set(placement.tensors)


def test_operator_that_nobody_integer_reads_stays_in_float() -> None:
    """The sum would be quantized to be dequantized at once."""
    placement = placed(image("[one] c = Conv(x, w) [add] s = Add(c, x) [tanh] y = Tanh(s)"))
    assert static(placement) == {"one"}
    assert placement.nodes["add"].reason == BESIDE_FLOATS
    assert placement.nodes["tanh"].reason == "The target 'cpu' has no integer kernel for Tanh."
    assert set(placement.tensors) == {"x", "c"}


def test_chain_of_followers_is_taken_back_from_its_end() -> None:
    placement = placed(
        image("[one] c = Conv(x, w) [a] d = LeakyRelu(c) [b] e = Sigmoid(d) [c] f = Mul(d, e) [t] y = Tanh(f)")
    )
    assert static(placement) == {"one"}


def test_convolution_before_an_activation_without_integer_kernel() -> None:
    """QLinearConv always returns integers, so its output is quantized; HardSwish reads it dequantized."""
    placement = placed(image("[one] c = Conv(x, w) [act] h = HardSwish(c) [two] y = Conv(h, w)"))
    assert static(placement) == {"one", "two"}
    assert placement.nodes["act"].reason == "The target 'cpu' has no integer kernel for HardSwish."
    assert placement.tensors == {"x": "x", "c": "c", "h": "h", "y": "y"}


def test_squeeze_and_excitation() -> None:
    body = (
        "[one] c = Conv(x, w) [pool] p = GlobalAveragePool(c) [down] d = Conv(p, w, b) r = Relu(d) [up] u = Conv(r, w)"
        " [gate] g = Sigmoid(u) [scale] s = Mul(c, g) [out] y = Conv(s, w)"
    )
    placement = placed(image(body))
    assert static(placement) == {"one", "pool", "down", "up", "gate", "scale", "out"}
    assert placement.fixed == {"g": (0.0, 255 / 256)}
    plan = planned(image(body), placement)
    assert (plan.tensors["g"].scale, plan.tensors["g"].zero_point) == (1 / 256, 0)
    assert plan.tensors["g"].reason == "The operator returns nothing else."


def test_gate_without_integer_kernel_keeps_the_product_in_float() -> None:
    body = "[one] c = Conv(x, w) [pool] p = GlobalAveragePool(c) [up] u = Conv(p, w)"
    placement = placed(image(body + " [gate] g = HardSigmoid(u) [scale] s = Mul(c, g) [out] y = Conv(s, w)"))
    assert static(placement) == {"one", "pool", "up", "out"}
    assert placement.nodes["scale"].reason == BESIDE_FLOATS


STEM = "2,3,8,8"


@pytest.mark.parametrize("act", ["Relu(c)", "HardSwish(c)", "com.microsoft.QuickGelu(c)"])
def test_stem_that_only_convolutions_read_stays_in_float(act: str) -> None:
    """An activation that is float anyway changes nothing."""
    body = f"[stem] c = Conv(x, w3) r = {act} [one] d = Conv(r, w) [two] e = Conv(r, w) y = Mul(d, e)"
    placement = placed(image(body, x=STEM))
    assert static(placement) == {"one", "two"}
    assert placement.nodes["stem"].reason == "A convolution over 3 channels is faster in float here."
    assert "x" not in placement.tensors


@pytest.mark.parametrize("reader", ["[pool] p = MaxPool<kernel_shape=[2,2]>(r)", "[add] p = Add(r, r)"])
def test_stem_before_other_operators_is_integer(reader: str) -> None:
    """These operators would run in float behind it, and their output be quantized instead."""
    placement = placed(image(f"[stem] c = Conv(x, w3) r = Relu(c) {reader} [one] y = Conv(p, w)", x=STEM))
    assert "stem" in static(placement)
    assert len(static(placement)) == 3


def test_depthwise_convolution_is_no_stem() -> None:
    """It reads one channel at a time, but many in all."""
    placement = placed(image("[dw] c = Conv<group=8>(x, wd) [one] y = Conv(c, w)"))
    assert static(placement) == {"dw", "one"}


def test_linear_layers_stay_integer_between_each_other() -> None:
    body = "[one] p = MatMul(x, m) [bias] s = Add(p, mb) [act] r = Relu(s) [two] q = MatMul(r, m) y = Tanh(q)"
    placement = placed(text(body))
    assert static(placement) == {"one", "two"}
    assert placement.nodes["bias"].reason == placement.nodes["act"].reason == "Part of layer 'one'."
    assert set(placement.tensors) == {"x", "r"}, "the last layer returns floats for free"


def test_linear_layer_returns_integers_to_an_operator_between_layers() -> None:
    body = "[one] p = MatMul(x, m) [turn] t = Transpose<perm=[1,0,2]>(p) [two] y = MatMul(t, m)"
    placement = placed(text(body))
    assert static(placement) == {"one", "turn", "two"}
    assert placement.tensors == {"x": "x", "p": "p", "t": "p"}


def test_linear_layer_whose_output_is_an_output_of_the_model_returns_floats() -> None:
    body = "[one] p = MatMul(x, m) [turn] t = Transpose<perm=[1,0,2]>(p) [two] y = MatMul(t, m)"
    placement = placed(text(body, outputs=", float[d,e,f] p"))
    assert static(placement) == {"one", "two"}
    assert placement.tensors == {"x": "x", "t": "t"}


def test_linear_layer_returns_floats_where_somebody_wants_them() -> None:
    placement = placed(text("[one] p = MatMul(x, m) [two] q = MatMul(p, m) [add] y = Add(p, q)"))
    assert static(placement) == {"one", "two"}
    assert placement.nodes["add"].reason == BESIDE_FLOATS
    assert set(placement.tensors) == {"x", "p"}


TRANSFORMER = """
    [norm] n = LayerNormalization(x, mb, mb)
    [q] q = MatMul(n, m) [k] k = MatMul(n, m) [v] v = MatMul(n, m)
    [turn] kt = Transpose<perm=[0,2,1]>(k) [scores] s = MatMul(q, kt) [soft] p = Softmax(s) [mix] o = MatMul(p, v)
    [out] e = MatMul(o, m) [bias] f = Add(e, mb) [add] g = Add(f, x)
    [up] h = MatMul(g, m) [gelu] i = Erf(h) [down] j = MatMul(i, m) [last] y = Add(j, g)
"""


def test_transformer() -> None:
    placement = placed(text(TRANSFORMER))
    assert static(placement) == {"q", "k", "v", "out", "up", "down"}
    assert set(placement.tensors) == {"n", "o", "g", "i"}, "what layers read; all of them return floats"
    reasons = {name: plan.reason for name, plan in placement.nodes.items()}
    products = "It multiplies two activations; in integers that saves no time and adds noise."
    assert reasons["scores"] == reasons["mix"] == products
    assert reasons["norm"] == "The target 'cpu' has no integer kernel for LayerNormalization."
    assert reasons["gelu"] == "The target 'cpu' has no integer kernel for Erf."
    assert reasons["add"] == reasons["turn"] == BESIDE_FLOATS
    assert reasons["bias"] == "Part of layer 'out'."


def test_every_float_operator_has_a_reason() -> None:
    graph = text(TRANSFORMER)
    assert {node.name for node in graph.nodes} == set(placed(graph).nodes)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("[n] y = MatMul(m4, x)", "Its weight is the first operand; integer kernels want it second."),
        ("[n] y = MatMul(x, b3)", "Its weight has 3 axes; integer kernels want 2."),
    ],
)
def test_products_that_no_integer_kernel_computes(body: str, reason: str) -> None:
    placement = placed(text(body, more={"m4": floats(4, 4), "b3": floats(2, 16, 16)}))
    assert placement.nodes["n"].reason == reason
    assert placement.tensors == {}


def test_operator_that_costs_more_in_integers() -> None:
    placement = placed(image("[up] c = ConvTranspose(x, w) [one] y = Conv(c, w)"))
    assert static(placement) == {"one"}
    assert placement.nodes["up"].reason == CPU.why_float["ConvTranspose"]


def test_concat_shares_one_scale() -> None:
    body = "[one] c = Conv(x, w) [two] d = Conv(x, w) [cat] e = Concat<axis=1>(c, d) [out] y = Conv(e, w16)"
    graph = image(body, more={"w16": conv(8, 16, 1, 1)})
    placement = placed(graph)
    assert static(placement) == {"one", "two", "cat", "out"}
    assert placement.tensors == {"x": "x", "c": "e", "d": "e", "e": "e", "y": "y"}
    plan = planned(graph, placement)
    assert plan.tensors["c"].scale == plan.tensors["d"].scale == plan.tensors["e"].scale
    assert plan.tensors["c"].reason.endswith("Shares the scale of 'e'.")


def test_part_of_a_concat_that_others_read_keeps_its_own_scale() -> None:
    body = "[one] c = Conv(x, w) [two] d = Conv(c, w) [cat] e = Concat<axis=1>(c, d) [out] y = Conv(e, w16)"
    placement = placed(image(body, more={"w16": conv(8, 16, 1, 1)}))
    assert placement.tensors == {"x": "x", "c": "c", "d": "e", "e": "e", "y": "y"}


def test_concat_in_a_concat() -> None:
    body = "[one] c = Conv(x, w) [cat] e = Concat<axis=1>(c, c) [two] d = Conv(x, w) [cat2] f = Concat<axis=1>(e, d)"
    placement = placed(image(body + " [out] y = Conv(f, w24)", more={"w24": conv(8, 24, 1, 1)}))
    assert {placement.tensors[name] for name in "cdef"} == {"f"}


def test_movers_take_the_scale_of_their_input() -> None:
    body = "[one] c = Conv(x, w) [pool] p = MaxPool<kernel_shape=[2,2]>(c) [turn] t = Transpose<perm=[0,1,3,2]>(p)"
    graph = image(body + " [two] y = Conv(t, w)")
    placement = placed(graph)
    assert static(placement) == {"one", "pool", "turn", "two"}
    assert placement.tensors == {"x": "x", "c": "c", "p": "c", "t": "c", "y": "y"}
    plan = planned(graph, placement)
    assert plan.tensors["t"].scale == plan.tensors["c"].scale


def test_split_gives_the_scale_of_its_input_to_every_part() -> None:
    body = "[one] c = Conv(x, w) [cut] d, e = Split<axis=1>(c, half)"
    body += " [two] f = Conv(d, w4) [three] g = Conv(e, w4) y = Mul(f, g)"
    placement = placed(image(body, more={"half": np.array([4, 4]), "w4": conv(8, 4, 1, 1)}))
    assert static(placement) == {"one", "cut", "two", "three"}
    assert placement.tensors["d"] == placement.tensors["e"] == "c"


@pytest.mark.parametrize(("mode", "integer"), [("nearest", True), ("linear", False)])
def test_resize_moves_pixels_or_computes_new_ones(mode: str, integer: bool) -> None:
    body = f'[one] c = Conv(x, w) [up] u = Resize<mode="{mode}">(c, "", double) [two] y = Conv(u, w)'
    placement = placed(image(body, more={"double": np.array([1, 1, 2, 2], np.float32)}))
    assert ("up" in static(placement)) == integer


@pytest.mark.parametrize(("value", "integer"), [("zero", True), ("six", False)])
def test_padding_with_zeros_moves_pixels(value: str, integer: bool) -> None:
    body = f"[one] c = Conv(x, w) [pad] p = Pad(c, pads, {value})"
    body += " [pool] q = MaxPool<kernel_shape=[2,2]>(p) [two] y = Conv(q, w)"
    placement = placed(image(body, more={"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}))
    assert ("pad" in static(placement)) == integer
    assert "two" in static(placement)


@pytest.mark.parametrize(
    ("wish", "left"),
    [
        ("two", {"one", "three"}),
        ("t*", {"one"}),
        ("Conv", set()),
        ("Add", {"one", "two", "three"}),
        ("nothing", {"one", "two", "add", "three"}),
    ],
)
def test_overrides_keep_nodes_in_float(wish: str, left: set[str]) -> None:
    """By name, pattern or operator; what then stands beside a float follows."""
    body = "[one] c = Conv(x, w) [two] d = Conv(c, w) [add] s = Add(c, d) [three] y = Conv(s, w)"
    placement = placed(image(body), nodes={wish: {"quantize": False}})
    assert static(placement) == left
    asked = [name for name, plan in placement.nodes.items() if plan.reason == "The recipe keeps it in float."]
    assert bool(asked) == (wish != "nothing")


def test_spared_nodes_stay_in_float_with_their_reason() -> None:
    graph = image("[one] c = Conv(x, w) [two] y = Conv(c, w)")
    placement = place(graph, CPU, Recipe(), {"two": "It costs too much."})
    assert static(placement) == {"one"}
    assert placement.nodes["two"].reason == "It costs too much."


def test_granularity_of_one_node() -> None:
    graph = image("[one] c = Conv(x, w) [two] y = Conv(c, w)")
    placement = placed(graph, nodes={"two": {"per_channel": False}})
    assert (placement.nodes["one"].per_channel, placement.nodes["two"].per_channel) == (True, False)


def test_outputs_of_the_model_are_quantized_under_their_names() -> None:
    graph = image("[one] c = Conv(x, w) [two] y = Conv(c, w)", outputs=", float[a,b,c,d] c")
    assert set(placed(graph).tensors) == {"x", "c", "y"}


def test_linear_output_of_the_model_stays_float() -> None:
    assert set(placed(text("[one] y = MatMul(x, m)")).tensors) == {"x"}


def test_model_without_layers() -> None:
    placement = placed(image("[pool] p = MaxPool<kernel_shape=[2,2]>(x) [act] y = Relu(p)"))
    assert static(placement) == set()
    assert placement.tensors == {}
    assert {plan.reason for plan in placement.nodes.values()} == {BESIDE_FLOATS}


RULES = ["minmax", "moving-average", "percentile", "entropy", "mse"]


@pytest.mark.parametrize("rule", RULES)
def test_range_rules(rule: str) -> None:
    graph = image("[one] y = Conv(x, w)")
    plan = planned(graph, placed(graph), activation={"range": rule})
    assert plan.tensors["x"].reason == f"Range by {rule}."
    assert -6 < plan.tensors["x"].low < -1 < 1 < plan.tensors["x"].high < 6


def test_range_rule_of_one_node() -> None:
    graph = image("[one] c = Conv(x, w) [two] y = Conv(c, w)")
    wish = {"activation": {"range": "mse"}, "nodes": {"two": {"range": "minmax"}}}
    plan = planned(graph, placed(graph, **wish), **wish)
    reasons = {name: tensor.reason for name, tensor in plan.tensors.items()}
    assert reasons == {"x": "Range by mse.", "c": "Range by mse.", "y": "Range by minmax."}


def test_range_covers_what_was_seen() -> None:
    graph = image("[one] y = Conv(x, w)")
    placement = placed(graph)
    plan = planned(graph, placement, activation={"range": "minmax"})
    seen = np.concatenate([normal(graph, seed)["x"] for seed in range(3)])
    tensor = plan.tensors["x"]
    assert [tensor.low, tensor.high] == pytest.approx([float(seen.min()), float(seen.max())])
    assert tensor.scale == pytest.approx((seen.max() - seen.min()) / 255)
    assert (tensor.format, plan.nodes) == ("uint8", placement.nodes)


def test_signed_request_becomes_unsigned_where_integers_are_folded() -> None:
    """The same steps under other names, since integer kernels take unsigned activations."""
    graph = image("[one] y = Conv(x, w)")
    wish = {"activation": {"format": "int8", "symmetric": True, "range": "minmax"}}
    folded, kept = planned(graph, placed(graph), **wish), planned(graph, placed(graph), **wish, format="qdq")
    assert (folded.tensors["x"].format, folded.tensors["x"].zero_point) == ("uint8", 128)
    assert (kept.tensors["x"].format, kept.tensors["x"].zero_point) == ("int8", 0)
    assert folded.tensors["x"].scale == kept.tensors["x"].scale


def test_statistics_that_lack_a_tensor() -> None:
    graph = image("[one] y = Conv(x, w)")
    placement = placed(graph)
    found = statistics(graph, placement)
    del found["y"]
    with pytest.raises(DataError, match="say nothing about tensor 'y'"):
        decide(placement, found, Recipe(), CPU)


def test_plan_is_the_same_on_every_run() -> None:
    graph = text(TRANSFORMER)
    assert planned(graph, placed(graph)).to_json() == planned(graph, placed(graph)).to_json()


@pytest.mark.parametrize("treatment", [Treatment.DYNAMIC, Treatment.WEIGHT])
def test_linear_layers_without_data(treatment: Treatment) -> None:
    graph = text(TRANSFORMER)
    placement = place_linear(graph, make_recipe({"nodes": {"up": {"quantize": False}}}), treatment)
    done = {name for name, plan in placement.nodes.items() if plan.treatment is treatment}
    assert done == {"q", "k", "v", "out", "down"}
    assert placement.nodes["up"].reason == "The recipe keeps it in float."
    assert placement.nodes["scores"].reason.startswith("It multiplies two activations")
    assert placement.tensors == {}


def test_convolutions_without_data_stay_in_float() -> None:
    placement = place_linear(image("[one] y = Conv(x, w)"), Recipe(), Treatment.DYNAMIC)
    assert placement.nodes["one"].treatment is FLOAT
    assert placement.nodes["one"].reason.startswith("Without data a convolution stays float")


TABLE = floats(2048, 8)


def lookup(body: str, table: Array = TABLE, **recipe: Any) -> set[str]:
    tables = {"t": table, "h": table.astype(np.float16), "d": table.astype(np.float64)}
    graph = read(f"(int64[3] i) => (float[a,b] y) {{ {body} }}", tables)
    return set(embeddings(graph, make_recipe(recipe)))


def test_embeddings() -> None:
    assert lookup("[emb] y = Gather(t, i)") == {"emb"}
    assert lookup("[emb] y = Gather(t, i)", weight={"embeddings": False}) == set()
    assert lookup("[emb] y = Gather(t, i)", nodes={"emb": {"quantize": False}}) == set()
    assert lookup("[emb] y = Gather(t, i)", floats(2047, 8)) == set(), "too small to matter"
    assert lookup("[emb] y = Gather<axis=1>(t, i)") == set(), "no lookup of rows"
    assert lookup("[emb] g = Gather(h, i) y = Cast<to=1>(g)") == {"emb"}, "float16"
    assert lookup("[emb] g = Gather(d, i) y = Cast<to=1>(g)") == set(), "neither float32 nor float16"


def test_lookup_in_an_activation_is_no_embedding() -> None:
    graph = read("(float[2048,8] t, int64[3] i) => (float[a,b] y) { [emb] y = Gather(t, i) }")
    assert embeddings(graph, Recipe()) == {}


def test_statistics_are_needed_for_the_root_of_a_scale_only() -> None:
    """A mover and its input share a range: one statistic is collected."""
    graph = image("[one] c = Conv(x, w) [pool] p = MaxPool<kernel_shape=[2,2]>(c) [two] y = Conv(p, w)")
    assert set(placed(graph).tensors.values()) == {"x", "c", "y"}


def test_needed_opset() -> None:
    plain, pool = (
        image("[one] y = Conv(x, w)"),
        image("[one] c = Conv(x, w) [pool] p = MaxPool<kernel_shape=[2,2]>(c) [two] y = Conv(p, w)"),
    )
    assert needed_opset(plain, placed(plain), Recipe(), "static-int8") == 10
    assert needed_opset(pool, placed(pool), Recipe(), "static-int8") == 12
    assert needed_opset(plain, placed(plain), make_recipe({"format": "qdq"}), "static-int8") == 13
    assert needed_opset(plain, place_linear(plain, Recipe(), Treatment.DYNAMIC), Recipe(), "dynamic-int8") == 11


def test_the_sample_graphs_run() -> None:
    """The pictures above are models that the runtime takes."""
    graph = text(TRANSFORMER)
    assert execute(graph, normal(graph))[0].shape == (2, 4, 16)
