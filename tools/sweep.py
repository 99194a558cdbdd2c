"""Every model that ONNX can say, by every kind of recipe: no crash, no other interface, no output beyond the promise.

    python tools/sweep.py [--zoo ZOO] [--every N] [--match TEXT] [--mutants N [--seed 0]] [--recipes auto,fp16,...]
                          [--timeout 180] [--memory 8] [--json FILE] [--markdown]

The models are those that the onnx package makes or stores for testing backends (every operator of every version it
knows, functions, sequences, training), and those in the folder `torture` of a zoo; or so many mutants of these, whose
fields were changed by chance. Each is optimized with its own data, in a process that may take so much time and memory,
and is replaced when it dies. A model is a failure where

* anything but an `OnnxqError` of one line comes out, or the process dies or does not end, where the runtime does not,
* a model that the runtime runs is refused,
* inputs or outputs have other names, another order, other types or shapes,
* outputs differ: at all for a model that was left alone, by more than the proof says for one that was optimized,
* nothing is written and no reason given, or something is written and should not be.

The exit code is 1 where there are failures.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from limited import Gone, Limited, Limits
from sweep_models import Case, all_cases, mutants
from sweep_trial import RECIPES, Finding, alone, attempt

SHOWN = 12
"""Reasons that a table has room for; the others are counted together."""


def sweep(cases: Sequence[Case], recipes: Sequence[str], limits: Limits) -> Iterator[Finding]:
    """Try every model by every recipe, in one process for as many as it survives."""
    with Limited(attempt, limits) as trial, Limited(alone, limits) as runtime:
        for case in cases:
            for recipe in recipes:
                began = time.monotonic()
                try:
                    finding = trial(case, recipe)
                except Gone as gone:
                    finding = Finding(case.name, recipe, "died", str(gone), [str(gone)])
                    try:
                        runtime(case)
                    except Gone:
                        finding = Finding(case.name, recipe, "refused", "ONNX Runtime itself dies on it.")
                finding.seconds = round(time.monotonic() - began, 3)
                yield finding


def kind(reason: str) -> str:
    """A reason without the names and numbers of its model, so that equal ones can be counted."""
    sentence = re.sub(r"'[^']*'|\"[^\"]*\"", "…", reason)
    sentence = re.sub(r"\b(of type|Type|Op|Node|node|operator) ?\(?[\w.:/]+\)?", r"\1 …", sentence)
    sentence = re.sub(r"\d+(\.\d+)*", "N", sentence).split(". ")[0]
    return sentence[:110]


def summary(findings: Sequence[Finding]) -> dict[str, Counter[str]]:
    """How often each outcome came about by each recipe."""
    table = {recipe: Counter[str]() for recipe in dict.fromkeys(finding.recipe for finding in findings)}
    for finding in findings:
        table[finding.recipe]["tried"] += 1
        table[finding.recipe][finding.outcome] += 1
        table[finding.recipe]["failures"] += bool(finding.problems)
    return table


COLUMNS = ("tried", "optimized", "left alone", "rejected", "refused", "failures")


def markdown(findings: Sequence[Finding]) -> str:
    """The rows of a table for README.md."""
    rows = [f"| recipe | {' | '.join(COLUMNS)} |", f"|---|{'--:|' * len(COLUMNS)}"]
    for recipe, counts in summary(findings).items():
        rows.append(f"| {recipe} | {' | '.join(str(counts[column]) for column in COLUMNS)} |")
    return "\n".join(rows)


def report(findings: Sequence[Finding]) -> str:
    """Outcomes by recipe, the reasons by how common they are, and every failure."""
    lines = [f"{'':18}" + "".join(f"{column:>12}" for column in COLUMNS)]
    for recipe, counts in summary(findings).items():
        lines.append(f"{recipe:18}" + "".join(f"{counts[column]:12}" for column in COLUMNS))
    for outcome in ("left alone", "rejected", "refused"):
        reasons = Counter(kind(finding.reason) for finding in findings if finding.outcome == outcome)
        lines += ["", f"{outcome.capitalize()}:"]
        lines += [f"{count:6}  {reason}" for reason, count in reasons.most_common(SHOWN)]
        if others := sum(count for _, count in reasons.most_common()[SHOWN:]):
            lines.append(f"{others:6}  for {len(reasons) - SHOWN} other reasons")
    lines += ["", *(f"FAILED {f.name}, {f.recipe}: {problem}" for f in findings for problem in f.problems)]
    return "\n".join(lines)


def parsed(words: Sequence[str]) -> argparse.Namespace:
    """The words of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--zoo", type=Path, help="a folder whose models in torture/ are tried as well")
    parser.add_argument("--every", type=int, default=1, help="only every so manyth model")
    parser.add_argument("--match", default="", help="only models with this in their name")
    parser.add_argument("--mutants", type=int, help="not the models, but so many that are like them")
    parser.add_argument("--seed", type=int, default=0, help="of mutants")
    parser.add_argument("--recipes", default=",".join(RECIPES), help=f"some of {', '.join(RECIPES)}")
    parser.add_argument("--timeout", type=float, default=180.0, help="seconds for one model and recipe")
    parser.add_argument("--memory", type=float, default=8.0, help="GiB of address space for one process")
    parser.add_argument("--json", type=Path, help="a file for every finding")
    parser.add_argument("--markdown", action="store_true", help="print the rows of a table instead of the report")
    arguments = parser.parse_args(words)
    arguments.recipes = arguments.recipes.split(",")
    if unknown := set(arguments.recipes) - RECIPES.keys():
        parser.error(f"there is no recipe {', '.join(sorted(unknown))}")
    return arguments


def main(words: Sequence[str]) -> int:
    """Sweep, and say what was found. 1 where something failed."""
    arguments = parsed(words)
    began = time.monotonic()
    cases = [case for case in all_cases(arguments.zoo) if arguments.match in case.name][:: arguments.every]
    if arguments.mutants is not None:
        cases = list(mutants(cases, arguments.mutants, arguments.seed))
    findings: list[Finding] = []
    for finding in sweep(cases, arguments.recipes, Limits(arguments.timeout, int(arguments.memory * 2**30))):
        findings.append(finding)
        if finding.problems:
            print(f"FAILED {finding.name}, {finding.recipe}: {finding.problems[0]}", file=sys.stderr, flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(finding) for finding in findings], indent=1), encoding="utf-8")
    print(markdown(findings) if arguments.markdown else report(findings))
    print(f"\n{len(cases)} models in {time.monotonic() - began:.0f} s", file=sys.stderr)
    return int(any(finding.problems for finding in findings))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
