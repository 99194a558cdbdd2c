"""The tables of a page, from its document: layers, operators that stayed in float, kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxq.report.document import Document
from onnxq.spec import QUANTIZED_OPERATORS

MOST_COPIES = 9
"""How often a pass may have named a node anew: `conv`, `conv_1`, ..."""

PART = "Part of layer"
"""How the reason of a node begins that became part of another one."""

FUSED = "fused"
"""Such nodes, which a plan calls float."""

INSERTED, FLOAT = "inserted", "float"
"""Nodes that no plan names: what goes between floats and integers, and what nobody touched."""


@dataclass(frozen=True)
class Row:
    """A line of the table of layers; places lead to numbers of the document.

    Attributes:
        name: of the node.
        op: its operator.
        became: what took its place; empty where nothing did.
        treatment: what was decided; `fused` where it became part of another node.
        weight: how its weight is stored.
        format: of the integers that it makes, or reads.
        reads: whether these are what it reads.
        reason: why.
        scale: place of the scale.
        zero_point: of the zero point.
        error: of the error of what it makes.
        time: of its time.
    """

    name: str
    op: str
    became: str = ""
    treatment: str = ""
    weight: str = ""
    format: str = ""
    reads: bool = False
    reason: str = ""
    scale: str = ""
    zero_point: str = ""
    error: str = ""
    time: str = ""


@dataclass(frozen=True)
class Runs:
    """The nodes of a proof, by name and by the node of the plan that each comes from."""

    proof: str
    nodes: Sequence[Mapping[str, Any]]
    errors: Mapping[str, int]
    places: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, document: Document, proof: str, planned: Sequence[str]) -> Runs:
        """Pair up what was planned with what runs: passes append a number to the name of what they replace."""
        nodes = document(f"{proof}/nodes") or []
        errors = {layer["tensor"]: place for place, layer in enumerate(document(f"{proof}/layers") or [])}
        here = {node["node"]: place for place, node in enumerate(nodes)}
        places = {name: here[name] for name in planned if name in here}
        taken = set(places)
        for name in planned:
            copies = (f"{name}_{number}" for number in range(1, MOST_COPIES + 1))
            found = next((c for c in copies if c in here and c not in taken and name not in places), None)
            if found is not None:
                taken.add(found)
                places[name] = here[found]
        return cls(proof, nodes, errors, places)

    def cells(self, place: int) -> dict[str, Any]:
        """What a proof says about its node at this place."""
        node, at = self.nodes[place], f"{self.proof}/nodes/{place}"
        cells: dict[str, Any] = {"time": f"{at}/microseconds", "weight": _weight(node)}
        if node["format"]:
            cells |= {"format": node["format"], "scale": f"{at}/scale", "zero_point": f"{at}/zero_point"}
            cells["reads"] = node["tensor"] != node["makes"]
        if node["makes"] in self.errors:
            cells["error"] = f"{self.proof}/layers/{self.errors[node['makes']]}/sqnr_db"
        return cells


def _weight(node: Mapping[str, Any]) -> str:
    spread = f" × {node['scales']}" if node["scales"] else ""
    return f"{node['weight']}{spread}" if node["weight"] else ""


def layer_rows(document: Document, proof: str) -> list[Row]:
    """Every node of the plan, then what was put between them; without a plan, every node that ran."""
    plan = document("/plan/nodes") or {}
    runs = Runs.of(document, proof, list(plan))
    rows = [_planned(name, node, runs) for name, node in plan.items()]
    used = set(runs.places.values())
    others = [place for place in range(len(runs.nodes)) if place not in used]
    return rows + [_other(runs, place, bool(plan)) for place in others]


def _planned(name: str, node: Mapping[str, Any], runs: Runs) -> Row:
    fused = node["reason"].startswith(PART) and name not in runs.places
    known: dict[str, Any] = {"treatment": FUSED if fused else node["treatment"], "reason": node["reason"]}
    if name in runs.places:
        place = runs.places[name]
        known |= {"became": runs.nodes[place]["op"], **runs.cells(place)}
    if known.get("became") == node["op"]:
        known["became"] = ""
    return Row(name, node["op"], **known)


def _other(runs: Runs, place: int, planned: bool) -> Row:
    node = runs.nodes[place]
    kind = INSERTED if node["op"] in QUANTIZED_OPERATORS else FLOAT
    return Row(node["node"], node["op"], treatment=kind if planned else "", **runs.cells(place))


@dataclass(frozen=True)
class Group:
    """Operators that stayed in float for the same reason.

    Attributes:
        reason: why.
        cure: what would change that; empty where nothing is known.
        nodes: their names.
        operators: how many of each.
    """

    reason: str
    cure: str
    nodes: Sequence[str]
    operators: Mapping[str, int]


def float_groups(document: Document, proof: str) -> list[Group]:
    """Operators that stayed in float by the sentence why, most first; without a proof, by the plan."""
    found = document(f"{proof}/float_nodes") or list(_planned_floats(document))
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for node in found:
        groups.setdefault(node["reason"], []).append(node)
    cures = _cures(document)
    made = [
        Group(
            reason,
            next((cures[n["node"]] for n in nodes if n["node"] in cures), "") or _usual_cure(reason),
            [node["node"] for node in nodes],
            dict(Counter(node["op"] for node in nodes).most_common()),
        )
        for reason, nodes in groups.items()
    ]
    return sorted(made, key=lambda group: -len(group.nodes))


def _planned_floats(document: Document) -> Iterator[dict[str, Any]]:
    for name, node in (document("/plan/nodes") or {}).items():
        if node["treatment"] == "float" and not node["reason"].startswith(PART):
            yield {"node": name, "op": node["op"], "reason": node["reason"]}


def _cures(document: Document) -> dict[str, str]:
    """What a diagnosis advises, by node."""
    findings = document("/diagnosis/findings") or []
    return {finding["node"]: finding["cures"][0]["sentence"] for finding in findings if finding["cures"]}


USUAL_CURES = (
    ("The recipe keeps it in float", "Take it out of --keep-float, or out of the recipe's nodes."),
    ("costs too much: the outputs keep", "Train it (onnxq finetune), or allow the noise: --least-sqnr 0."),
    ("loses too much", "Train it (onnxq finetune), or allow more: --max-drop."),
    ("Without data", "Give --data."),
    ("opset", "Export the model with a newer opset."),
    ("faster in float", "Nothing to gain: integers would be slower here."),
    ("saves no time", "Nothing to gain."),
    ("has no integer kernel", "Nothing to do here; another target may have one."),
    ("neighbours are float", "Nothing to gain on its own: it follows its neighbours."),
)
"""What helps, by words of the reason."""


def _usual_cure(reason: str) -> str:
    return next((cure for words, cure in USUAL_CURES if words in reason), "")
