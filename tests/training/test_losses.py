"""What training makes small: formulas by hand, what counts, and functions of the user's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxq.errors import DataError, OnnxqError, RecipeError

torch = pytest.importorskip("torch", reason="training needs PyTorch")

from onnxq.training.losses import Scene, counted, distill, divergence, find_loss, supervise, unlike  # noqa: E402

DRAW = np.random.default_rng(2)


def some(*shape: int) -> Any:
    return torch.from_numpy(DRAW.standard_normal(shape).astype(np.float32))


def softmax(values: Any) -> Any:
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def kl(output: Any, target: Any) -> float:
    """In nats, the mean over rows."""
    p, q = softmax(target.numpy().astype(np.float64)), softmax(output.numpy().astype(np.float64))
    return float((p * np.log(p / q)).sum(-1).mean())


# parts


def test_noise_over_signal() -> None:
    output, target = some(8, 3, 5), some(8, 3, 5)
    expected = np.square((output - target).numpy()).mean() / target.numpy().var(ddof=1)
    assert float(unlike(output, target, None)) == pytest.approx(expected, rel=1e-5)
    assert float(unlike(7 * output, 7 * target, None)) == pytest.approx(expected, rel=1e-5)


def test_one_number_has_no_variance() -> None:
    assert float(unlike(torch.tensor([3.0]), torch.tensor([1.0]), None)) == 4


def test_constants_divide() -> None:
    assert np.isfinite(float(unlike(some(4), torch.ones(4), None)))


def test_divergence_of_scores() -> None:
    output, target = some(6, 10), some(6, 10)
    assert float(divergence(output, target)) == pytest.approx(kl(output, target), rel=1e-5)
    assert float(divergence(output + 3, target - 2)) == pytest.approx(kl(output, target), rel=1e-4)
    assert float(divergence(target, target)) == pytest.approx(0, abs=1e-6)


def test_divergence_of_probabilities() -> None:
    """An output that went through Softmax is not put through it again."""
    output, target = some(6, 10), some(6, 10)
    found = divergence(torch.softmax(output, -1), torch.softmax(target, -1))
    assert float(found) == pytest.approx(kl(output, target), rel=1e-4)


def test_divergence_counts_positions_alike() -> None:
    output, target = some(2, 7, 40), some(2, 7, 40)
    assert float(divergence(output, target)) == pytest.approx(kl(output, target), rel=1e-5)


# what counts


def test_padding_does_not_count() -> None:
    mask = torch.tensor([[True, True, False], [True, False, False]])
    values = some(2, 3, 4)
    np.testing.assert_array_equal(counted(values, mask).numpy(), values.numpy()[mask.numpy()])
    for other in (some(2, 4, 3), some(5), some(2)):
        assert counted(other, mask) is other
    assert counted(values, None) is values


@pytest.mark.parametrize("width", [4, 300])
def test_distillation_sees_no_padding(width: int) -> None:
    """Of inner tensors as of scores for each token."""
    mask = torch.tensor([[True, True, False]])
    output, target = some(1, 3, width), some(1, 3, width)
    other = output.clone()
    other[0, 2] = 100 * some(width)
    one, two = (distill(Scene({"y": made}, {"y": target}, mask=mask)) for made in (output, other))
    assert float(one) == float(two)
    bare = distill(Scene({"y": other}, {"y": target}))
    assert float(bare) > 10 * float(one)


# distillation


def test_distillation_of_numbers_is_noise_over_signal() -> None:
    output, target = some(4, 3, 5), some(4, 3, 5)
    assert float(distill(Scene({"y": output}, {"y": target}))) == float(unlike(output, target, None))


def test_scores_of_classes_are_met_number_by_number() -> None:
    output, target = some(4, 5), some(4, 5)
    assert float(distill(Scene({"y": output}, {"y": target}))) == float(unlike(output, target, None))


def test_probabilities_are_taken_for_scores() -> None:
    """For those that have a mean of 0, which no constant that was added to them tells."""
    output, target = some(4, 5), some(4, 5)
    chances = Scene({"y": torch.softmax(output + 3, -1)}, {"y": torch.softmax(target, -1)})
    bare = [values - values.mean(-1, keepdim=True) for values in (output, target)]
    assert float(distill(chances)) == pytest.approx(float(unlike(bare[0], bare[1], None)), rel=1e-4)


def test_of_texts_the_divergence_counts() -> None:
    output, target = some(2, 3, 300), some(2, 3, 300)
    assert float(distill(Scene({"y": output}, {"y": target}))) == pytest.approx(kl(output, target), rel=1e-5)


def test_all_outputs_and_features_weigh_alike() -> None:
    a, b, c = some(4, 3, 5), some(4, 3, 5), some(4, 3, 5)
    scene = Scene({"y": a, "z": 100 * b}, {"y": b, "z": 100 * c}, {"f": c}, {"f": a})
    parts = [float(unlike(a, b, None)), float(unlike(b, c, None)), float(unlike(c, a, None))]
    assert float(distill(scene)) == pytest.approx(np.mean(parts), rel=1e-5)


def test_a_perfect_student_loses_nothing_and_has_a_gradient() -> None:
    target = some(4, 5)
    output = target.clone().requires_grad_()
    lost = distill(Scene({"y": output}, {"y": target}))
    assert float(lost.detach()) == pytest.approx(0, abs=1e-6)
    lost.backward()  # type: ignore[no-untyped-call]
    assert np.isfinite(output.grad.numpy()).all()


def test_half_precision_is_compared_in_full() -> None:
    output, target = some(4, 3, 5).half() * 300, some(4, 3, 5).half() * 300
    found = float(distill(Scene({"y": output}, {"y": target})))
    assert found == pytest.approx(float(unlike(output.float(), target.float(), None)), rel=1e-6)


# labels


def cross_entropy(scores: Any, labels: list[int]) -> float:
    p = softmax(scores.numpy().astype(np.float64).reshape(-1, scores.shape[-1]))
    return float(np.mean([-np.log(p[row, label]) for row, label in enumerate(labels) if label >= 0]))


def test_labels_of_classes() -> None:
    scores = some(3, 5)
    scene = Scene({"y": scores}, {"y": some(3, 5)}, labels=torch.tensor([4, 0, 2]))
    assert float(supervise(scene)) == pytest.approx(cross_entropy(scores, [4, 0, 2]), rel=1e-5)


def test_negative_labels_do_not_count() -> None:
    scores = some(2, 3, 300)
    labels = torch.tensor([[1, 2, -1], [3, -100, 299]], dtype=torch.int32)
    expected = cross_entropy(scores, labels.reshape(-1).tolist())
    assert float(supervise(Scene({"y": scores}, {"y": some(2, 3, 300)}, labels=labels))) == pytest.approx(
        expected, 1e-5
    )


def test_labels_of_probabilities() -> None:
    scores = some(3, 5)
    chances = torch.softmax(scores, -1)
    scene = Scene({"y": chances}, {"y": torch.softmax(some(3, 5), -1)}, labels=torch.tensor([4, 0, 2]))
    assert float(supervise(scene)) == pytest.approx(cross_entropy(scores, [4, 0, 2]), rel=1e-4)


def test_labels_belong_to_the_output_that_scores_them() -> None:
    scores = some(3, 5)
    outputs = {"box": some(3), "score": scores}
    scene = Scene(outputs, outputs, labels=torch.tensor([4, 0, 2]))
    assert float(supervise(scene)) == pytest.approx(cross_entropy(scores, [4, 0, 2]), rel=1e-5)


def test_labels_that_no_output_scores() -> None:
    with pytest.raises(RecipeError, match=r"No output has a score for each class of \[7\] labels"):
        supervise(Scene({"y": some(3, 5)}, {"y": some(3, 5)}, labels=torch.arange(7)))


# of the user's own


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the current folder."""
    (tmp_path / "own_loss.py").write_text(
        "number = 5\n"
        "def mine(outputs, targets, feeds, labels):\n"
        "    return (outputs['y'] - targets['y']).abs().mean() + feeds['x'].sum() + labels.sum()\n"
    )
    (tmp_path / "broken_loss.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.chdir(tmp_path)
    return "own_loss:mine"


@pytest.mark.parametrize("prefix", ["", "python:"])
def test_a_function_of_the_users_own(own: str, prefix: str) -> None:
    loss = find_loss(prefix + own)
    y, aim = some(3, 5).requires_grad_(), some(3, 5)
    found = loss(Scene({"y": y}, {"y": aim}, feeds={"x": torch.ones(2)}, labels=torch.tensor([3, 4])))
    assert float(found.detach()) == pytest.approx(float((y - aim).detach().abs().mean()) + 9)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("own_loss:absent", "has no function 'absent'"),
        ("own_loss:number", "has no function 'number'"),
        ("a_module_that_is_not_there:f", "a_module_that_is_not_there"),
        ("broken_loss:f", "a_module_that_is_not_there"),
        (":f", "names no function"),
    ],
)
def test_what_is_no_function_is_named(own: str, name: str, says: str) -> None:
    with pytest.raises(OnnxqError, match=f"(?s)Loss '{name}'.*{says}"):
        find_loss(name)


def test_the_known_ones() -> None:
    assert (find_loss("distill"), find_loss("labels")) == (distill, supervise)
    assert issubclass(DataError, OnnxqError)


def test_a_label_that_is_no_class_is_named() -> None:
    scene = Scene({"y": torch.randn(2, 5)}, {"y": torch.randn(2, 5)}, labels=torch.tensor([1, 7]))
    with pytest.raises(DataError, match="Label 7 is none of the 5 classes of output 'y'"):
        find_loss("labels")(scene)
