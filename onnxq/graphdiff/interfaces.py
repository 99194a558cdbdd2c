"""What those notice who only run a model: its inputs and outputs, the operator versions, and its metadata."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from onnxq.graph import Graph
from onnxq.graphdiff.findings import InterfaceChange
from onnxq.graphdiff.fingerprints import of_message
from onnxq.interface import TensorSpec
from onnxq.quantities import plural


def compare_interfaces(first: Graph, second: Graph) -> Iterator[InterfaceChange]:
    """Every change, inputs first."""
    one, other = first.interface(), second.interface()
    for what, before, after in (("input", one.inputs, other.inputs), ("output", one.outputs, other.outputs)):
        yield from _changed(what, _texts(before), _texts(after))
        names = [[spec.name for spec in specs] for specs in (before, after)]
        if names[0] != names[1] and sorted(names[0]) == sorted(names[1]):
            yield _change(what, "order", ", ".join(names[0]), ", ".join(names[1]))
    yield from _changed("opset", _opsets(first), _opsets(second))
    yield from _changed("metadata", _metadata(first), _metadata(second))


def _texts(specs: Iterable[TensorSpec]) -> dict[str, str]:
    return {spec.name: str(spec).removeprefix(f"{spec.name}: ") for spec in specs}


def _opsets(graph: Graph) -> dict[str, str]:
    return {domain or "ai.onnx": str(version) for domain, version in graph.opsets.items()}


def _metadata(graph: Graph) -> dict[str, str]:
    shell = graph.shell
    found = {f"metadata {entry.key}": entry.value for entry in shell.metadata_props}
    stated = {
        "IR version": str(shell.ir_version or ""),
        "producer": f"{shell.producer_name} {shell.producer_version}".strip(),
        "domain": shell.domain,
        "model version": str(shell.model_version or ""),
        "graph name": shell.graph.name,
        "description": shell.doc_string,
    }
    for function in shell.functions:
        what = f"{plural(len(function.node), 'node')}, digest {of_message(function)[:8]}"
        found[f"function {function.domain}.{function.name}"] = what
    return {key: value for key, value in (found | stated).items() if value}


def _changed(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[InterfaceChange]:
    for name in dict.fromkeys([*before, *after]):
        if before.get(name) != after.get(name):
            yield _change(what, name, before.get(name, ""), after.get(name, ""))


def _change(what: str, name: str, before: str, after: str) -> InterfaceChange:
    return InterfaceChange.model_validate({"what": what, "name": name, "before": before, "after": after})
