"""Random graphs: whatever is put together is optimized or left alone, stays whole, and what is said of it is true."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import onnxq
from onnxq.build import typed
from onnxq.graph import to_model
from onnxq.memo import Memo
from onnxq.modelfile import load, save
from onnxq.passes import FASTER, NORMALIZE
from onnxq.pipeline import Context, run
from onnxq.spec import Fact, broken
from onnxq.targets import CPU

WIDTH = 8
"""Numbers in a row of every tensor."""

SETTINGS = settings(deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass
class Sketch:
    """A graph as it is put together.

    Attributes:
        draw: chooses.
        nodes: so far.
        weights: by name.
        tensors: names of what holds rows of 8 numbers.
    """

    draw: Draw
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    tensors: list[str] = field(default_factory=lambda: ["x"])

    def pick(self) -> str:
        """A tensor that is there."""
        return str(self.draw(st.sampled_from(self.tensors)))

    def weight(self, *shape: int) -> str:
        """A weight of this shape: one that is there, or a new one."""
        known = [name for name, v in self.weights.items() if v.shape == shape and v.dtype == np.float32]
        if known and self.draw(st.booleans()):
            return str(self.draw(st.sampled_from(known)))
        name = f"w{len(self.weights)}"
        random = np.random.default_rng(self.draw(st.integers(0, 99)))
        scale = self.draw(st.sampled_from([1.0, 1.0, 0.0, 1e-6, 30.0]))
        self.weights[name] = np.asarray(random.standard_normal(shape) * scale / math.sqrt(WIDTH), np.float32)
        return name

    def add(self, op: str, inputs: list[str], **attributes: Any) -> str:
        """A node; some have no name, some share theirs with a tensor."""
        output = f"t{len(self.nodes)}"
        name = self.draw(st.sampled_from([f"n{len(self.nodes)}", "", output, f"w{len(self.nodes)}"]))
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        return output

    def layer(self) -> str:
        """A matrix product, with or without a bias."""
        kind = self.draw(st.sampled_from(["MatMul", "Add", "Gemm"]))
        if kind == "Gemm":
            return self.add("Gemm", [self.pick(), self.weight(WIDTH, WIDTH), self.weight(WIDTH)], transB=1)
        made = self.add("MatMul", [self.pick(), self.weight(WIDTH, WIDTH)])
        return made if kind == "MatMul" else self.add("Add", [made, self.weight(WIDTH)])

    def elementwise(self) -> str:
        """An activation, or two tensors as one."""
        op = self.draw(
            st.sampled_from(["Relu", "Sigmoid", "Tanh", "Neg", "Softmax", "Identity", "Dropout", "Erf", "Abs"])
        )
        return self.add(op, [self.pick()])

    def joined(self) -> str:
        """Two tensors, or one twice, or one and a weight, in either order."""
        other = (
            self.pick()
            if self.draw(st.booleans())
            else self.weight(*self.draw(st.sampled_from([(), (WIDTH,), (1, 1)])))
        )
        both = self.draw(st.permutations([self.pick(), other]))
        return self.add(self.draw(st.sampled_from(["Add", "Mul", "Sub", "Max"])), list(both))

    def moved(self) -> str:
        """There and back again."""
        made = self.add("Transpose", [self.pick()], perm=[1, 0])
        if self.draw(st.booleans()):
            return self.add("Transpose", [made], perm=[1, 0])
        self.weights["shape"] = np.array([-1, WIDTH])
        back = self.add("Transpose", [made], perm=[1, 0])
        return self.add("Reshape", [back, "shape"])

    def constant(self) -> str:
        """A sum with what is computed of constants alone, through Constant nodes too."""
        value = numpy_helper.from_array(np.full(WIDTH, self.draw(st.sampled_from([0.0, 1.0, -2.5])), np.float32))
        made = self.add("Constant", [], value=value)
        made = self.add("Mul", [made, self.weight(WIDTH)])
        return self.add("Add", [self.pick(), made])

    def empty(self) -> str:
        """Nothing, joined to something."""
        self.weights["nothing"] = np.zeros((0, WIDTH), np.float32)
        return self.add("Concat", [self.pick(), "nothing"], axis=0)

    def branch(self) -> str:
        """If, whose bodies capture a tensor and a weight."""
        read, weight = self.pick(), self.weight(WIDTH, WIDTH)
        one = numpy_helper.from_array(np.array(self.draw(st.booleans())))
        condition = self.add("Constant", [], value=one)
        bodies = {}
        for name, op in (("then_branch", "MatMul"), ("else_branch", "MatMul")):
            output = f"b{len(self.nodes)}{name[0]}"
            info = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
            nodes = [helper.make_node(op, [read, weight], [output], "same")]
            if self.draw(st.booleans()):
                nodes = [
                    helper.make_node("Relu", [read], [f"{output}r"]),
                    helper.make_node(op, [f"{output}r", weight], [output]),
                ]
            bodies[name] = helper.make_graph(nodes, name, [], [info])
        return self.add("If", [condition], **bodies)

    def loop(self) -> str:
        """Loop, whose body captures a weight."""
        carried, weight, number = self.pick(), self.weight(WIDTH, WIDTH), len(self.nodes)
        self.weights["trips"], self.weights["true"] = np.array(2), np.array(True)
        i, c, s = f"i{number}", f"c{number}", f"s{number}"
        infos = [
            helper.make_tensor_value_info(i, TensorProto.INT64, []),
            helper.make_tensor_value_info(c, TensorProto.BOOL, []),
            helper.make_tensor_value_info(s, TensorProto.FLOAT, None),
        ]
        outs = [
            helper.make_tensor_value_info(f"{n}o", t, None) for n, t in ((c, TensorProto.BOOL), (s, TensorProto.FLOAT))
        ]
        nodes = [
            helper.make_node("Identity", [c], [f"{c}o"]),
            helper.make_node("MatMul", [s, weight], [f"{s}m"]),
            helper.make_node("Tanh", [f"{s}m"], [f"{s}o"]),
        ]
        return self.add("Loop", ["trips", "true", carried], body=helper.make_graph(nodes, "body", infos, outs))


STEPS = ("layer", "layer", "elementwise", "joined", "moved", "constant", "empty", "branch", "loop")


@st.composite
def models(draw: Draw) -> onnx.ModelProto:
    """A model of some steps, with one or two outputs, and perhaps weights that nobody reads."""
    sketch = Sketch(draw)
    for step in draw(st.lists(st.sampled_from(STEPS), min_size=1, max_size=9)):
        sketch.tensors.append(getattr(sketch, step)())
    ends = draw(st.lists(st.sampled_from(sketch.tensors[1:]), min_size=1, max_size=2, unique=True))
    if draw(st.booleans()):
        sketch.weights["unused"] = np.ones((3, 3), np.float32)
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", WIDTH])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ends]
    stored = [numpy_helper.from_array(values, name) for name, values in sketch.weights.items()]
    graph = helper.make_graph(sketch.nodes, "sketch", [x], outputs, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def outputs(model: bytes, x: np.ndarray) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return list(ort.InferenceSession(model, options).run(None, {"x": x}))


def near(before: np.ndarray, after: np.ndarray, error: float) -> None:
    assert (before.shape, before.dtype) == (after.shape, after.dtype)
    assert (np.isfinite(before) == np.isfinite(after)).all()
    usable = np.isfinite(before)
    assert float(np.abs(before[usable] - after[usable]).max(initial=0.0)) <= error


def scale(values: np.ndarray) -> float:
    """The largest number in it."""
    return float(np.abs(values[np.isfinite(values)]).max(initial=0.0))


ROWS = np.random.default_rng(5).standard_normal((6, WIDTH)).astype(np.float32)


@settings(SETTINGS, max_examples=120)
@given(models())
def test_passes_keep_what_they_promise(model: onnx.ModelProto) -> None:
    graph = typed(load(model))
    before = to_model(graph).SerializeToString(deterministic=True)
    made = run((*NORMALIZE, *FASTER), graph, Context(CPU), frozenset(Fact)).graph
    assert to_model(graph).SerializeToString(deterministic=True) == before, "the input was touched"
    assert broken(made) is None
    assert made.interface() == graph.interface()
    content = to_model(made).SerializeToString()
    for rows in (ROWS, ROWS[:1], ROWS[:0]):
        for one, other in zip(outputs(model.SerializeToString(), rows), outputs(content, rows), strict=True):
            near(one, other, 1e-4 * (scale(one) + 1e-3))


@settings(SETTINGS, max_examples=120)
@given(models())
def test_loading_and_saving_is_stable(model: onnx.ModelProto) -> None:
    with TemporaryDirectory() as folder:
        first, second = Path(folder) / "1.onnx", Path(folder) / "2.onnx"
        save(load(model), first)
        save(load(first), second)
        assert first.read_bytes() == second.read_bytes()
        assert load(first).interface() == load(model).interface()
    wanted, got = outputs(model.SerializeToString(), ROWS), outputs(to_model(load(model)).SerializeToString(), ROWS)
    assert all(np.array_equal(one, other, equal_nan=True) for one, other in zip(wanted, got, strict=True))


MODES = ("static-int8", "static-int8 qdq", "dynamic-int8", "weight-int8", "weight-int4", "fp16")


@settings(SETTINGS, max_examples=30)
@given(models(), st.sampled_from(MODES))
def test_what_a_result_says_is_true(model: onnx.ModelProto, mode: str) -> None:
    name, _, form = mode.partition(" ")
    wish = {"mode": name, "activation": {"range": "minmax"}, **({"format": "qdq"} if form else {})}
    recipe = onnxq.Recipe.model_validate(wish)
    options = onnxq.Options(seconds=0.0, memo=Memo(None))
    made: list[bytes] = []
    with TemporaryDirectory() as folder:
        for number in range(2):
            output = Path(folder) / f"{number}.onnx"
            try:
                result = onnxq.optimize(model, output, data=[{"x": ROWS}], recipe=recipe, options=options)
            except onnxq.OnnxqError as error:
                if "NaN or infinite" not in str(error):  # nothing else is wrong with these
                    raise
                return
            made.append(output.read_bytes() if output.exists() else b"")
        assert made[0] == made[1]
        assert bool(made[0]) == (result.status != "rejected")
        assert result.reason or result.status == "optimized"
        if not made[0]:
            return
        assert load(output).interface() == load(model).interface()
    for index, (one, other) in enumerate(
        zip(outputs(model.SerializeToString(), ROWS), outputs(made[0], ROWS), strict=True)
    ):
        said = result.proof.outputs[model.graph.output[index].name].max_error if result.proof else 0.0
        near(one, other, said + 1e-3 * (scale(one) + 1e-3))
