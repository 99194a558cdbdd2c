"""Every pass on every sample: its promise, run twice, untouched input, same bytes, unbroken graph, same interface."""

from __future__ import annotations

import copy
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from onnxq.calibration.collect import collect
from onnxq.calibration.data import open_data
from onnxq.decision import decide
from onnxq.graph import Graph, Variable, is_constant, to_model
from onnxq.half_nodes import half_nodes
from onnxq.half_weights import half_weights
from onnxq.inner import inner_plans
from onnxq.modelfile import load
from onnxq.passes import BALANCE, FASTER, FIND, FOLD, NORMALIZE, PIPELINES, QUANTIZE, SETTLE
from onnxq.pipeline import Close, Context, Exact, Lossy, Pass, Within, run
from onnxq.placement import embeddings, place, place_linear
from onnxq.plan import BalancePlan, Plan, Treatment
from onnxq.recipe import make_recipe
from onnxq.runtime import Session, tensor_types
from onnxq.search.balance import sites
from onnxq.spec import broken
from onnxq.targets import CPU, TARGETS
from tests.onnx_text import EVERYTHING, Array, execute, floats, read, serialize, sqnr, typed

ROOT = Path(__file__).parents[1]
Feeds = dict[str, Array]


@dataclass(frozen=True)
class Sample:
    """A float graph, and data for calibration and for comparison."""

    graph: Callable[[], Graph]
    feeds: Callable[[], Feeds]


def image_feeds() -> Feeds:
    return {"x": floats(4, 8, 10, 10, seed=11)}


def norm(name: str, channels: int) -> dict[str, Array]:
    """Scale, shift, mean and variance of a batch normalization, near 1, 0, 0 and 1."""
    parts = {part: floats(channels, seed=seed) * np.float32(0.3) for seed, part in enumerate("gsm", 20)}
    parts |= {"g": parts["g"] + 1, "v": floats(channels, seed=5) ** 2 + np.float32(0.5)}
    return {name + part: values for part, values in parts.items()}


def kernel(*shape: int, seed: int = 0) -> Array:
    """Weights that keep the magnitude of their input."""
    return floats(*shape, seed=seed) / np.float32(np.sqrt(np.prod(shape[1:])))


def conv_net() -> Graph:
    """Something for every pass that normalizes: BatchNormalization, Pad, Identity, Dropout, a weight made by nodes."""
    body = """
        [pad] p = Pad(x, pads) [half] h = Constant<value_float=0.5>() [twice] wh = Mul(w, h) [one] c = Conv(p, wh)
        [bn] n = BatchNormalization(c, ag, as, am, av) [relu] r = Relu(n) [same] i = Identity(r) [drop] d = Dropout(i)
        [pool] q = MaxPool<kernel_shape=[2,2]>(d) [two] e = Conv<group=8>(q, dw, b) [act] f = LeakyRelu<alpha=0.1>(e)
        [mean] m = GlobalAveragePool(f) [flat] l = Flatten(m) [head] y = Gemm<transB=1>(l, fc, fb)
    """
    weights = {"w": kernel(8, 8, 3, 3), "dw": kernel(8, 1, 3, 3), "b": floats(8), "fc": kernel(5, 8), "fb": floats(5)}
    more = {"pads": np.array([0, 0, 1, 1, 0, 0, 1, 1])}
    return read(f"(float[n,8,10,10] x) => (float[n,5] y) {{ {body} }}", weights | more | norm("a", 8))


def residual() -> Graph:
    """An inverted residual block with ReLU6, and a concatenation."""
    body = """
        [up] a = Conv(x, w1) [n1] b = BatchNormalization(a, ag, as, am, av) [r1] c = Clip(b, zero, six)
        [deep] d = Conv<group=16, pads=[1,1,1,1]>(c, wd, bd) [r2] e = Clip(d, zero, six)
        [down] f = Conv(e, w2) [add] g = Add(x, f) [relu] r = Relu(g) [side] h = Conv(r, w3)
        [cat] i = Concat<axis=1>(r, h) [cut] j, k = Split<axis=1>(i, parts) [last] l = Conv(j, w4) [gate] s = Sigmoid(l)
        [scale] t = Mul(l, s) [end] y = Conv(t, w3)  [tail] z = Tanh(k)
    """
    weights = {
        "w1": kernel(16, 8, 1, 1) * 4,
        "wd": kernel(16, 1, 3, 3) * 2,
        "bd": floats(16),
        "w2": kernel(8, 16, 1, 1),
        "w3": kernel(8, 8, 1, 1, seed=2),
        "w4": kernel(8, 12, 1, 1),
        "zero": np.float32(0),
        "six": np.float32(6),
        "parts": np.array([12, 4]),
    }
    text = f"(float[n,8,10,10] x) => (float[n,8,10,10] y, float[n,4,10,10] z) {{ {body} }}"
    return read(text, weights | norm("a", 16), opset=13)


def transformer() -> Graph:
    """An encoder layer over an embedding, with padding hidden by a mask of -3e38."""
    body = """
        [emb] e = Gather(table, ids) [n1] n = LayerNormalization(e, g, s)
        [q] q0 = MatMul(n, wq) [qb] q = Add(q0, b) [k] k = MatMul(n, wk) [v] v = MatMul(n, wv)
        [turn] kt = Transpose<perm=[0,2,1]>(k) [scores] p = MatMul(q, kt) [small] ps = Mul(p, eighth)
        [invert] inv = Sub(one, mask) [hide] hid = Mul(inv, far) [wide] wide = Unsqueeze(hid, axis)
        [masked] pm = Add(ps, wide) [soft] pp = Softmax<axis=-1>(pm) [mix] o = MatMul(pp, v)
        [out] u = MatMul(o, wo) [a1] f = Add(u, e) [n2] h = LayerNormalization(f, g, s)
        [up] i0 = MatMul(h, w1) [upb] i1 = Add(i0, b1) [relu] i = Relu(i1) [down] j = MatMul(i, w2) [a2] w = Add(j, f)
        [head] y = MatMul(w, wy)
    """
    weights = {name: kernel(64, 64, seed=index) for index, name in enumerate(("wq", "wk", "wv", "wo"))}
    weights |= {"w1": kernel(64, 128), "w2": kernel(128, 64), "wy": kernel(64, 9), "table": floats(300, 64)}
    weights |= {"g": floats(64, seed=6) * np.float32(0.1) + 1, "s": floats(64) * np.float32(0.1)}
    weights |= {"b": floats(64), "b1": floats(128), "eighth": np.asarray(0.125, np.float32), "axis": np.array([1])}
    weights |= {"one": np.asarray(1, np.float32), "far": np.asarray(-3.4e38, np.float32)}
    return read(f"(int64[n,t] ids, float[n,t] mask) => (float[n,t,9] y) {{ {body} }}", weights)


def transformer_feeds() -> Feeds:
    random = np.random.default_rng(8)
    mask = (np.arange(12) < random.integers(6, 13, (8, 1))).astype(np.float32)
    return {"ids": random.integers(0, 300, (8, 12)), "mask": mask}


def encoder() -> Graph:
    """Attention with heads, a norm and a GELU, spelled out as exporters do, with shapes put together on each run."""
    body = """
        [emb] e = Gather(table, ids)
        [mu] m = ReduceMean(e, last) [d] d = Sub(e, m) [dd] dd = Mul(d, d) [var] v0 = ReduceMean(dd, last)
        [eps] ve = Add(v0, eps) [sd] sd = Sqrt(ve) [rs] rs = Reciprocal(sd) [dn] dn = Mul(d, rs) [ng] ng = Mul(dn, g)
        [norm] n = Add(ng, s)
        [rows] b = Shape<start=0, end=1>(ids) [columns] t = Shape<start=1, end=2>(ids)
        [apart] apart = Concat<axis=0>(b, t, heads, size) [whole] whole = Concat<axis=0>(b, t, width)
        [q] q0 = MatMul(n, wq) [qb] q1 = Add(q0, bias) [qr] q2 = Reshape(q1, apart)
        [k] k0 = MatMul(n, wk) [kr] k2 = Reshape(k0, apart) [v] v1 = MatMul(n, wv) [vr] v2 = Reshape(v1, apart)
        [qt] q = Transpose<perm=[0,2,1,3]>(q2) [kt] k = Transpose<perm=[0,2,3,1]>(k2)
        [vt] v = Transpose<perm=[0,2,1,3]>(v2)
        [scores] p = MatMul(q, k) [small] ps = Mul(p, quarter)
        [invert] inv = Sub(one, mask) [hide] hid = Mul(inv, far) [wide] wide = Unsqueeze(hid, axes)
        [masked] pm = Add(ps, wide) [soft] pp = Softmax<axis=-1>(pm) [mix] o = MatMul(pp, v)
        [ot] ot = Transpose<perm=[0,2,1,3]>(o) [or] o3 = Reshape(ot, whole) [out] u = MatMul(o3, wo)
        [a1] f = Add(u, n) [n2] h = LayerNormalization(f, g, s)
        [up] i0 = MatMul(h, w1) [upb] i1 = Add(i0, b1)
        [over] i2 = Div(i1, root) [erf] i3 = Erf(i2) [shift] i4 = Add(i3, one) [halve] i5 = Mul(half, i4)
        [gelu] i = Mul(i1, i5) [down] j = MatMul(i, w2) [a2] l = Add(j, h) [n3] r = LayerNormalization(l, g, s)
        [head] y = MatMul(r, wy)
    """
    weights = {name: kernel(64, 64, seed=index) for index, name in enumerate(("wq", "wk", "wv", "wo"))}
    weights |= {"w1": kernel(64, 128), "w2": kernel(128, 64), "wy": kernel(64, 9), "table": floats(300, 64)}
    weights |= {"g": floats(64, seed=6) * np.float32(0.1) + 1, "s": floats(64) * np.float32(0.1)}
    numbers = {"eps": 1e-5, "quarter": 0.25, "one": 1.0, "half": 0.5, "root": 2**0.5, "far": -3.4e38}
    weights |= {name: np.asarray(number, np.float32) for name, number in numbers.items()}
    weights |= {"bias": floats(64), "b1": floats(128)}
    weights |= {"last": np.array([-1]), "axes": np.array([1, 2]), "heads": np.array([4]), "size": np.array([16])}
    weights |= {"width": np.array([64])}
    return read(f"(int64[n,t] ids, float[n,t] mask) => (float[n,t,9] y) {{ {body} }}", weights, opset=23)


def focus() -> Graph:
    """A picture that is taken apart before the first convolution, and channels that do not come in fours."""
    body = """
        [r0] a0 = Slice(x, zero, end, rows, two) [p0] p0 = Slice(a0, zero, end, columns, two)
        [r1] a1 = Slice(x, one, end, rows, two) [p1] p1 = Slice(a1, zero, end, columns, two)
        [r2] a2 = Slice(x, zero, end, rows, two) [p2] p2 = Slice(a2, one, end, columns, two)
        [r3] a3 = Slice(x, one, end, rows, two) [p3] p3 = Slice(a3, one, end, columns, two)
        [apart] f = Concat<axis=1>(p0, p1, p2, p3) [stem] c = Conv<pads=[1,1,1,1]>(f, w0) [r] d = Relu(c)
        [odd] e = Conv(d, w1) [s] g = Relu(e) [even] h = Conv<pads=[1,1,1,1]>(g, w2) [u] i = Relu(h)
        [end] y = Conv(i, w3)
    """
    weights = {"w0": kernel(16, 32, 3, 3), "w1": kernel(18, 16, 1, 1), "w2": kernel(16, 18, 3, 3) * 2}
    weights |= {"w3": kernel(8, 16, 1, 1), "zero": np.array([0]), "one": np.array([1]), "two": np.array([2])}
    weights |= {"rows": np.array([2]), "columns": np.array([3]), "end": np.array([2**63 - 1])}
    return read(f"(float[n,8,10,10] x) => (float[n,8,5,5] y) {{ {body} }}", weights)


def conditional() -> Graph:
    """An If whose bodies capture weights and inner tensors, before and behind layers, and hold layers themselves."""
    then = "() => (float[a,b,c,d] t) { g = MatMul(f, k) t = Conv(g, w) }"
    other = "() => (float[a,b,c,d] u) { h = MatMul(f, k) u = Add(h, r) }"
    body = f"""
        [one] c = Conv(x, w) [relu] r = Relu(c) [same] i = Identity(r) [two] f = Conv(i, v)
        [sum] m = ReduceSum<keepdims=0>(x) [which] q = Greater(m, zero)
        [if] z = If(q)<then_branch = a {then}, else_branch = b {other}> [end] y = Conv(z, v)
    """
    weights = {"w": kernel(8, 8, 1, 1), "v": kernel(8, 8, 1, 1, seed=4), "k": kernel(10, 10), "zero": np.float32(0)}
    return read(f"(float[n,8,10,10] x) => (float[n,8,10,10] y) {{ {body} }}", weights)


def stored(name: str) -> Callable[[], Graph]:
    return lambda: typed(load(ROOT / "models" / f"{name}.onnx"))


def stored_feeds(name: str) -> Callable[[], Feeds]:
    return lambda: {k: v[:8] for k, v in np.load(ROOT / "models" / f"{name}_calibration.npz").items()}


SAMPLES = {
    "conv net": Sample(conv_net, image_feeds),
    "residual": Sample(residual, image_feeds),
    "transformer": Sample(transformer, transformer_feeds),
    "encoder": Sample(encoder, transformer_feeds),
    "focus": Sample(focus, image_feeds),
    "conditional": Sample(conditional, image_feeds),
    **{
        name: Sample(stored(name), stored_feeds(name))
        for name in ("digits", "docstrings")
        if (ROOT / "models" / f"{name}.onnx").exists()
    },
}
HALVES = {"HalfPrecision": "cuda", "HalveWeights": "cpu"}
"""Passes for half precision, and what they are for."""

PASSES: dict[str, Pass] = {type(step).__name__: step for step in chain(*PIPELINES.values())}


@cache
def raw(sample: str) -> Graph:
    return SAMPLES[sample].graph()


@cache
def normal(sample: str) -> Graph:
    return run(NORMALIZE, raw(sample), Context(CPU)).graph


@cache
def plan(sample: str, treatment: Treatment, signed: bool = False) -> Plan:
    """Decisions for a sample; signed activations come as Q/DQ, since folding would have made them unsigned."""
    wish = {"format": "qdq", "activation": {"format": "int8", "range": "minmax"}} if signed else {}
    recipe = make_recipe({"activation": {"range": "minmax"}} | wish)
    graph, feeds = normal(sample), SAMPLES[sample].feeds()
    placement = place(graph, CPU, recipe) if treatment is Treatment.STATIC else place_linear(graph, recipe, treatment)
    placement.nodes.update(embeddings(graph, recipe))
    if treatment is Treatment.WEIGHT:
        placement.nodes.update(inner_plans(graph, recipe, 8))
    names = {source for source in placement.tensors.values() if source not in placement.fixed}
    names |= set(chain(*placement.sums.values()))
    found = collect(graph, sorted(names), open_data(feeds, graph.interface().inputs), threads=1)
    return decide(placement, found, recipe, CPU)


@cache
def in_half(sample: str, name: str) -> Context:
    """Everything in half precision that the target of this name has it for."""
    target = TARGETS[name]
    graph, recipe = normal(sample), make_recipe({"mode": "fp16", "target": name})
    nodes = half_nodes(graph, recipe, target) if target.half else half_weights(graph, recipe)
    return Context(target, Plan(recipe=recipe, nodes=nodes))


@cache
def balanced(sample: str) -> Plan:
    """The static plan, with factors for every tensor that can take some."""
    graph, static = normal(sample), plan(sample, Treatment.STATIC)
    feeds = open_data(SAMPLES[sample].feeds(), graph.interface().inputs)
    found = collect(graph, list(static.tensors), feeds, threads=1)
    quantized = {name for name, node in static.nodes.items() if node.treatment is Treatment.STATIC}
    made = {tensor.name for node in graph.nodes if node.name in quantized for tensor in node.outputs}
    chosen = {
        site.name: BalancePlan(factors=site.candidates[0].tolist(), multiplies=site.multiplies, reason="")
        for site in sites(graph, found, quantized, made)
    }
    return static.model_copy(update={"balance": chosen})


@cache
def stage(sample: str, name: str) -> tuple[Graph, Context]:
    """What a pass meets in its pipeline: the graph before it, and the plan."""
    treatments = {"QuantizeDynamic": Treatment.DYNAMIC}
    treatments |= dict.fromkeys(("QuantizeWeights", "QuantizeBodies"), Treatment.WEIGHT)
    treatment = treatments.get(name, Treatment.STATIC)
    if PASSES[name] in (*FIND, *NORMALIZE):
        return raw(sample), Context(CPU)
    if PASSES[name] in (*FASTER, *BALANCE):
        return normal(sample), Context(CPU, balanced(sample))
    if name in HALVES:
        return normal(sample), in_half(sample, HALVES[name])
    context = Context(CPU, plan(sample, treatment, name == "UnsignedActivations"))
    if PASSES[name] in QUANTIZE:
        return normal(sample), context
    if PASSES[name] in SETTLE:
        return run(QUANTIZE, normal(sample), context, EVERYTHING).graph, context
    before = [*QUANTIZE, *FOLD[: FOLD.index(PASSES[name])]]
    return run(before, normal(sample), context, EVERYTHING).graph, context


@dataclass(frozen=True)
class Trial:
    """A pass that ran on a sample."""

    sample: str
    name: str

    @property
    def before(self) -> Graph:
        return stage(self.sample, self.name)[0]

    def again(self, graph: Graph) -> tuple[Graph, int]:
        """The pass once more, and how many edits it reports."""
        outcome = run([PASSES[self.name]], graph, stage(self.sample, self.name)[1], EVERYTHING)
        return outcome.graph, sum(bool(change.done) for change in outcome.changes[self.name])


TRIALS = [Trial(sample, name) for name in PASSES for sample in SAMPLES]


@pytest.mark.parametrize("trial", TRIALS, ids=[f"{t.name}, {t.sample}" for t in TRIALS])
def test_pass(trial: Trial) -> None:
    before, untouched = trial.before, serialize(trial.before)
    after, edits = trial.again(before)
    result = serialize(after)
    assert (result != untouched) == bool(edits), "edits are reported, and reports are edits"
    assert serialize(before) == untouched
    assert serialize(trial.again(before)[0]) == result
    twice, more = trial.again(after)
    assert (serialize(twice), more) == (result, 0)
    assert broken(after) is None
    assert after.interface() == before.interface()
    check_promise(trial, before, after)


def check_promise(trial: Trial, before: Graph, after: Graph) -> None:
    promise, feeds = PASSES[trial.name].promise, SAMPLES[trial.sample].feeds()
    if isinstance(promise, Within):
        check_steps(before, after, feeds, promise.steps)
        return
    # the runtime's own rewrites reorder float sums, and rounding behind a sum makes a step of a last bit
    rounds = any(node.op == "QuantizeLinear" for node in before.nodes)
    reference = execute(before, feeds)
    for optimize in (False, True):
        for want, have in zip(reference, execute(after, feeds, optimize=optimize), strict=True):
            assert (have.dtype, have.shape) == (want.dtype, want.shape)
            assert np.unique(want).size > 4
            if isinstance(promise, Lossy) or (rounds and optimize):
                assert sqnr(want, have) > least_sqnr(after)
            else:
                assert isinstance(promise, Exact | Close)
                rtol = max(promise.rtol if isinstance(promise, Close) else 0.0, FLOAT_SUM)
                np.testing.assert_allclose(have, want, rtol=0, atol=rtol * float(np.abs(want).max()))


FLOAT_SUM = 1e-5
"""What the order of float sums of a thousand numbers in a dozen layers may change, relative to the largest output."""

ROUNDING = frozenset({"QuantizeLinear", "DynamicQuantizeLinear", "DynamicQuantizeMatMul", "MatMulNBits"})
"""Operators that round an activation to 8 bits."""


def least_sqnr(graph: Graph) -> float:
    """Each tensor in 8 bits brings noise of -40 dB (see `tests/passes`); four more for what amplifies it."""
    read = {t.name: t for node in graph.nodes for t in node.inputs if is_constant(t)}
    weights = [t for t in read.values() if t.dtype in (np.int8, np.uint8) and len(t.shape or ()) > 1]
    rounded = [node for node in graph.nodes if node.op in ROUNDING]
    return float(40 - 10 * np.log10(max(len(weights) + len(rounded), 1)) - 4)


def check_steps(before: Graph, after: Graph, feeds: Feeds, steps: int) -> None:
    """Every tensor of the folded graph, against what the Q/DQ graph makes of the integers that the folded one had.

    So each operator is held to its own steps, whatever those before it did.
    """
    made = {t.name for n in before.nodes if n.op == "QuantizeLinear" for t in n.outputs}
    shared = [n for n, t in after.tensors().items() if n in made and not is_constant(t)]
    outputs = [tensor.name for tensor in after.outputs]
    names = [*shared, *outputs]
    for optimize in (False, True):
        model = to_model(after, extra_outputs=shared).SerializeToString()
        have = Session(model, threads=1, optimize=optimize).run(feeds, names)
        forced = from_integers(before, {name: have[name].dtype for name in shared})
        given = feeds | {f"{name}_given": have[name] for name in shared}
        want = Session(to_model(forced, extra_outputs=shared).SerializeToString(), threads=1, optimize=False).run(
            given, names
        )
        for name in shared:
            assert np.abs(have[name].astype(np.int64) - want[name]).max() <= steps, name
            assert np.unique(have[name]).size > 4, name
        for name in outputs:
            np.testing.assert_allclose(have[name], want[name], rtol=0, atol=1e-5 * float(np.abs(want[name]).max()))


def from_integers(graph: Graph, types: dict[str, np.dtype]) -> Graph:
    """The graph with a copy of each named tensor as input, which everybody reads instead."""
    graph = graph.copy()
    graph.shell = copy.deepcopy(graph.shell)
    tensors = graph.tensors()
    for name, dtype in types.items():
        given = Variable(f"{name}_given", dtype)
        graph.redirect(tensors[name], given)
        graph.inputs.append(given)
        info = graph.shell.graph.input.add(name=given.name)
        info.type.tensor_type.elem_type = {"uint8": 2, "int8": 3}[np.dtype(dtype).name]
    return graph


def test_every_pass_has_something_to_do() -> None:
    """A promise that is only kept by doing nothing proves nothing."""
    trials = {name: [trial for trial in TRIALS if trial.name == name] for name in PASSES}
    idle = {name for name, found in trials.items() if not any(trial.again(trial.before)[1] for trial in found)}
    # these wait for float layers among integers, as other tools leave them: test_restore_weights, test_keep_float
    others = {"RestoreWeights", "KeepFloat"}
    # and these for the Q/DQ of others, and for fewer than 8 bits: each has tests of its own, and test_trained_elsewhere
    others |= {
        "StandardQdq",
        "FindFakeQuant",
        "RegainWeights",
        "TurnWeights",
        "ScaleWeights",
        "SettleQdq",
        "MergeClips",
        "PackWeights",
    }
    assert idle <= others


def test_rewrites_go_together() -> None:
    """Attention is found although the layers that make q, k and v are merged too."""
    before, feeds = normal("encoder"), SAMPLES["encoder"].feeds()
    after = run(FASTER, before, Context(CPU), EVERYTHING).graph
    (attention,) = [node for node in after.nodes if node.op == "Attention"]
    (split,) = [node for node in after.nodes if node.op == "Split"]
    assert [tensor.name for tensor in split.outputs] == ["q1", "k0", "v1"]
    assert [tensor.name for tensor in attention.inputs[:3]] == ["q1", "k0", "v1"]
    for want, have in zip(execute(before, feeds), execute(after, feeds), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=FLOAT_SUM * float(np.abs(want).max()))


MIXED = frozenset(
    {"QLinearConv", "QLinearMatMul", "QGemm", "MatMulIntegerToFloat", "MatMulInteger", "ConvInteger", "QAttention"}
)
"""Operators that multiply integers; the first input holds the activations."""


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("sample", SAMPLES)
def test_integer_operators_never_multiply_signed_activations(sample: str, signed: bool) -> None:
    """On x86 these kernels are three to four times slower than floats."""
    for treatment in (Treatment.STATIC, Treatment.DYNAMIC):
        wish = plan(sample, treatment, signed and treatment is Treatment.STATIC)
        graph = run([*QUANTIZE, *FOLD], normal(sample), Context(CPU, wish), EVERYTHING).graph
        inner = [name for name, t in graph.tensors().items() if t.inputs]
        specs = tensor_types(to_model(graph, extra_outputs=inner).SerializeToString())
        types = {spec.name: spec.dtype for spec in specs}
        found = [n for n in graph.nodes if n.op in MIXED or n.op == "DynamicQuantizeMatMul"]
        assert bool(found) == any(node.treatment is treatment for node in wish.nodes.values())
        assert all(types[n.inputs[0].name] == np.uint8 for n in found if n.op in MIXED)


def digest() -> str:
    """A hash of the bytes that all pipelines make of all samples."""
    seen = hashlib.sha256()
    for sample in SAMPLES:
        for treatment in (Treatment.STATIC, Treatment.DYNAMIC, Treatment.WEIGHT):
            context = Context(CPU, plan(sample, treatment))
            steps = [*QUANTIZE, *FOLD] if treatment is Treatment.STATIC else QUANTIZE
            seen.update(serialize(run(steps, normal(sample), context, EVERYTHING).graph))
    return seen.hexdigest()


def test_same_bytes_in_every_process() -> None:
    """Sets of strings come in another order in each process: nothing may depend on it."""
    code = "from tests.test_promises import digest; print(digest())"
    runs = [
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        for seed in ("1", "2")
    ]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout
