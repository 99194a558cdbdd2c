"""What training makes small: how far the rounded model is from the float one, or from the truth.

Every loss is called with a `Scene` and returns a number that has a gradient. `distill` needs no labels; a function of
the user's is loaded by `module:function`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn import functional

from onnxq.calibration.feeds import blamed
from onnxq.calibration.functions import current_folder, find_function
from onnxq.comparison import looks_like_classes
from onnxq.errors import DataError, RecipeError

SMALLEST = 1e-12
"""What a variance is at least, so that constant tensors divide."""


@dataclass(frozen=True)
class Scene:
    """One batch, as a loss sees it.

    Attributes:
        outputs: of the rounded model, by name.
        targets: of the float model, likewise.
        features: of the rounded model: inner tensors that were asked for.
        aims: of the float model, likewise.
        feeds: the inputs.
        labels: what is right, first axis = samples; None where nobody knows.
        mask: which positions count, bool[batch, length]; None for all.
    """

    outputs: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    features: Mapping[str, Tensor] = field(default_factory=dict)
    aims: Mapping[str, Tensor] = field(default_factory=dict)
    feeds: Mapping[str, Tensor] = field(default_factory=dict)
    labels: Tensor | None = None
    mask: Tensor | None = None


IGNORED = -100
"""The label of what does not count."""

Loss = Callable[[Scene], Tensor]


def distill(scene: Scene) -> Tensor:
    """The mean of what all outputs lost, and of what features did, each as a share of what there is to lose."""
    parts = [lost(scene.outputs[name], target, scene.mask) for name, target in scene.targets.items()]
    parts += [unlike(scene.features[name], aim, scene.mask) for name, aim in scene.aims.items()]
    return torch.stack(parts).mean()


def lost(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Noise over signal; of what is predicted for each position of a text, the divergence.

    Scores of classes are met number by number, which leaves less divergence on few samples than the divergence itself
    does (Kim et al., arXiv:2105.08919); probabilities are taken for the scores that they came from.
    """
    if output.ndim > 2 and looks_like_classes(target):
        return divergence(counted(output, mask), counted(target, mask))
    if looks_like_classes(target) and is_distribution(target):
        return unlike(scored(output), scored(target), mask)
    return unlike(output, target, mask)


def scored(probabilities: Tensor) -> Tensor:
    """Scores with these probabilities, and a mean of 0."""
    logarithms = torch.log(probabilities.clamp_min(SMALLEST))
    return logarithms - logarithms.mean(-1, keepdim=True)


def divergence(output: Tensor, target: Tensor) -> Tensor:
    """Kullback-Leibler divergence from what the float model predicts to what the rounded one does, in nats."""
    if is_distribution(target):
        return functional.kl_div(torch.log(output.clamp_min(SMALLEST)), target, reduction="sum") / _rows(target)
    ours, theirs = functional.log_softmax(output, -1), functional.log_softmax(target, -1)
    return functional.kl_div(ours, theirs, reduction="sum", log_target=True) / _rows(target)


def unlike(output: Tensor, target: Tensor, mask: Tensor | None) -> Tensor:
    """Noise over signal: mean square of the difference, over the variance of the target."""
    output, target = counted(output.float(), mask), counted(target.float(), mask)
    if target.numel() < 2:
        return functional.mse_loss(output, target)
    return functional.mse_loss(output, target) / target.var().clamp_min(SMALLEST)


def supervise(scene: Scene) -> Tensor:
    """Cross entropy of the labels in the output that has a score for each class; negative labels do not count."""
    assert scene.labels is not None  # which `Teaching.check` sees to
    labels = scene.labels.long()
    for name, target in scene.targets.items():
        if looks_like_classes(target) and target.shape[:-1].numel() == labels.numel():
            scores = scene.outputs[name].flatten(0, -2)
            if int(labels.max()) >= scores.shape[-1]:
                raise DataError(
                    f"Label {int(labels.max())} is none of the {scores.shape[-1]} classes of output '{name}'."
                )
            scores = torch.log(scores.clamp_min(SMALLEST)) if is_distribution(target) else scores
            right = labels.reshape(-1).to(scores.device)
            return functional.cross_entropy(scores, right.where(right >= 0, IGNORED), ignore_index=IGNORED)
    raise RecipeError(f"No output has a score for each class of {list(labels.shape)} labels. Take --loss distill.")


def is_distribution(target: Tensor) -> bool:
    """Whether scores are probabilities already."""
    return bool((target >= 0).all()) and bool(((target.sum(-1) - 1).abs() < 1e-3).all())


def counted(values: Tensor, mask: Tensor | None) -> Tensor:
    """The positions that count, where the tensor has such axes."""
    if mask is None or values.ndim < 2 or values.shape[:2] != mask.shape:
        return values
    return values[mask.to(values.device)]


def _rows(target: Tensor) -> int:
    return max(1, target.shape[:-1].numel())


def find_loss(name: str) -> Loss:
    """`distill`, `labels`, or `module:function` of the user's. Raises RecipeError, or what its import raises.

    A function is called with outputs, targets, feeds (tensors by name) and labels (a tensor or None).
    """
    if name in LOSSES:
        return LOSSES[name]
    title = f"Loss '{name}'"
    with current_folder(), blamed(title):
        own = find_function(name.removeprefix("python:"), title)

    def loss(scene: Scene) -> Tensor:
        with blamed(title):
            found = own(scene.outputs, scene.targets, scene.feeds, scene.labels)
        if not isinstance(found, Tensor) or found.numel() != 1 or found.requires_grad != torch.is_grad_enabled():
            raise RecipeError(f"{title} returns no number with a gradient. Compute one of the outputs, in PyTorch.")
        return found.reshape(())

    return loss


LOSSES: Mapping[str, Loss] = MappingProxyType({"distill": distill, "labels": supervise})
"""What is known by name."""
