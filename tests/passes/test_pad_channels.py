"""Integer convolutions read their channels in fours, and return the same to the last bit."""

from __future__ import annotations

import numpy as np
import pytest

from onnxq.graph import Graph, weight
from onnxq.passes.pad_channels import PadChannels
from tests.onnx_text import Array, apply, changes, execute, listing, ops, read, refusal

RANDOM = np.random.default_rng(3)


def model(
    inputs: int, outputs: int, conv: str = "", *, group: int = 1, zero: int = 3, opset: int = 13, several: bool = False
) -> Graph:
    weights: dict[str, Array] = {
        "w": RANDOM.integers(-127, 128, (outputs, inputs // group, 3, 3)).astype(np.int8),
        "w_zero": np.full(outputs, zero, np.int8) if several else np.asarray(zero, np.int8),
        "w_scale": np.full(outputs if several else (), 0.01, np.float32),
        "x_zero": np.asarray(120, np.uint8),
        "x_scale": np.asarray(0.02, np.float32),
        "y_scale": np.asarray(0.08, np.float32),
        "bias": RANDOM.integers(-4000, 4000, outputs).astype(np.int32),
    }
    call = f"QLinearConv<{conv or 'pads=[1,1,1,1]'}>(x, x_scale, x_zero, w, w_scale, w_zero, y_scale, x_zero, bias)"
    text = f"(uint8[n,{inputs},7,9] x) => (uint8[n,a,b,c] y) {{ [conv] y = {call} }}"
    return read(text, weights, opset)


def assert_same_integers(before: Graph, after: Graph, inputs: int) -> None:
    feeds = {"x": RANDOM.integers(0, 256, (2, inputs, 7, 9)).astype(np.uint8)}
    (want,) = execute(before, feeds)
    assert np.unique(want).size > 100
    for optimize in (False, True):
        np.testing.assert_array_equal(execute(after, feeds, optimize=optimize)[0], want)


@pytest.mark.parametrize(("inputs", "added"), [(3, 1), (1, 3), (6, 2), (33, 3)])
@pytest.mark.parametrize("conv", ["pads=[1,1,1,1]", "strides=[2,1], pads=[0,1,2,0]"])
@pytest.mark.parametrize("zero", [0, 3])
def test_pads(inputs: int, added: int, conv: str, zero: int) -> None:
    before = model(inputs, 16, conv, zero=zero)
    after = apply(PadChannels(), before)
    assert ops(after.graph) == ["Pad", "QLinearConv"]
    assert [(c.node, c.op, c.done) for c in changes(after)] == [("conv", "QLinearConv", "Pad")]
    pad, convolution = after.graph.nodes
    assert weight(pad.inputs[1]).tolist() == [0, 0, 0, 0, 0, added, 0, 0]
    assert convolution.inputs[3].shape == (16, inputs + added, 3, 3)
    assert convolution.attrs == before.nodes[0].attrs
    assert_same_integers(before, after.graph, inputs)


def test_pads_with_a_zero_point_for_each_channel() -> None:
    before = model(3, 16, zero=0, several=True)
    after = apply(PadChannels(), before)
    assert ops(after.graph) == ["Pad", "QLinearConv"]
    assert_same_integers(before, after.graph, 3)


@pytest.mark.parametrize(("inputs", "group"), [(4, 1), (8, 1), (18, 18), (6, 2)])
def test_leaves_fours_and_groups_alone(inputs: int, group: int) -> None:
    before = model(inputs, 36 if group > 1 else 16, f"pads=[1,1,1,1], group={group}", group=group)
    after = apply(PadChannels(), before)
    assert (listing(after.graph), changes(after)) == (listing(before), [])


@pytest.mark.parametrize("outputs", [8, 12, 18, 30])
def test_leaves_outputs_alone_for_which_no_kernel_is_faster(outputs: int) -> None:
    before = model(3, outputs)
    after = apply(PadChannels(), before)
    assert refusal(after, "conv") == f"With {outputs} output channels there is no fast kernel for it."
    assert listing(after.graph) == listing(before)


def test_leaves_old_opsets_alone() -> None:
    after = apply(PadChannels(), model(3, 16, opset=10))
    assert refusal(after, "conv") == "Before opset 11, Pad takes no integers; the model has 10."


def test_leaves_a_weight_alone_that_is_fed() -> None:
    scales = {"s": np.float32(0.1), "z": np.asarray(3, np.uint8), "v": np.asarray(0, np.int8)}
    body = "[conv] y = QLinearConv(x, s, z, w, s, v, s, z)"
    text = f"(uint8[n,3,7,9] x, int8[16,3,3,3] w) => (uint8[n,a,b,c] y) {{ {body} }}"
    assert refusal(apply(PadChannels(), read(text, scales)), "conv") == "Its weight or its zero point is no constant."


def test_leaves_zero_points_alone_that_differ() -> None:
    before = model(3, 16, several=True)
    (zero,) = [tensor for tensor in before.weights() if tensor.name == "w_zero"]
    before.redirect(zero, before.constant("ramp", np.arange(16, dtype=np.int8)))
    reason = "The zero points of its weight differ from channel to channel."
    assert refusal(apply(PadChannels(), before), "conv") == reason
