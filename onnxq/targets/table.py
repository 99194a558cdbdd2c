"""The form of a target: what an execution provider runs as integers, and what never pays there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Target:
    """What one execution provider does with a quantized graph.

    Attributes:
        name: what the user types.
        provider: the execution provider of ONNX Runtime.
        layers: operators with a weight whose integer kernel is worth a quantized input.
        float_output: those among them that can return floats at no cost.
        followers: operators that run on integers with scales of their own, worth it between integer operators only.
        movers: operators that move values without looking at them; they run on integers with the scale of their input.
        joins: operators that join tensors; where their inputs share the scale of the output they only move values.
        absorbed: activations that saturation at the ends of the range replaces.
        fixed: operators whose output range is known.
        activation: the 8-bit format of activations in integer operators.
        stem_channels: a convolution that reads fewer channels than this is faster in float.
        why_float: for operators without an integer kernel, the sentence that says so.
        half: operators with a kernel in half precision, and the version of the standard operators since when; empty
            where the target computes in float32.
        single: operators that stay in float32 beside those, each with the sentence why.
    """

    name: str
    provider: str
    layers: frozenset[str]
    float_output: frozenset[str]
    followers: frozenset[str]
    movers: frozenset[str]
    joins: frozenset[str]
    absorbed: frozenset[str]
    fixed: Mapping[str, tuple[float, float]]
    activation: str
    stem_channels: int
    why_float: Mapping[str, str]
    half: Mapping[str, int] = field(default_factory=dict)
    single: Mapping[str, str] = field(default_factory=dict)
