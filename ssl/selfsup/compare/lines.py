"""The rows of a comparison with their runs: blocks that may be ranked together, methods, baselines once each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from selfsup.compare.comparison import Run
from selfsup.compare.judgement import Row
from selfsup.evaluation.folder import Found
from selfsup.evaluation.result import Metric
from selfsup.features.store import ROWS
from selfsup.report.scores import NAMES

OWN_BACKBONE = ("random", "supervised")  # baselines that depend on it
SAME = 1e-9  # two figures of a baseline this close are the same figure


@dataclass
class Line:
    """A row and its runs. Those of a baseline are runs of any method that has it."""

    row: Row
    runs: dict[int, Run] = field(default_factory=dict)  # by seed, ascending

    def found(self, seed: int, protocol: str) -> Found | None:
        return self.runs[seed].found.get(protocol)

    def metric(self, seed: int, protocol: str, key: str) -> Metric | None:
        found = self.found(seed, protocol)
        result = found.results.get(self.row.kind) if found else None
        return result.metrics.get(key) if result else None


def blocks(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs that may be ranked together, the largest block first.

    They have equal data, budget, code and settings of the protocols that both have, and the same images where they have
    the same seed. Of two runs of a row and seed in one block, the first counts.
    """
    made: list[list[Run]] = []
    for run in runs:
        block = next((one for one in made if all(_alike(run, other) for other in one)), None)
        if block is None:
            made.append([run])
        elif all((run.row, run.seed) != (other.row, other.seed) for other in block):
            block.append(run)
    return sorted(made, key=len, reverse=True)


def _alike(a: Run, b: Run) -> bool:
    one, two = a.conditions, b.conditions
    return (
        (one.data, one.budget, one.code) == (two.data, two.budget, two.code)
        and all(one.protocols[name] == two.protocols[name] for name in one.protocols.keys() & two.protocols.keys())
        and (a.seed != b.seed or a.images == b.images)
    )


def lines(runs: Sequence[Run], order: Sequence[str]) -> list[Line]:
    """The methods of a block in the order asked for, then the baselines, equal ones of several methods once."""
    names = sorted(
        {run.row for run in runs}, key=lambda name: (order.index(name) if name in order else len(order), name)
    )
    made = []
    for name in names:
        own = {run.seed: run for run in sorted(runs, key=lambda run: run.seed) if run.row == name}
        backbone = next(iter(own.values())).backbone
        made.append(Line(Row(name, name, "method", backbone, tuple(own)), own))
    ordered = [run for line in made for run in line.runs.values()]
    return made + [line for kind in _kinds(runs) for line in _baselines(kind, ordered, set(names))]


def _kinds(runs: Sequence[Run]) -> list[str]:
    """The baselines that any run has, in the order of every table."""
    kinds = {row for run in runs for found in run.found.values() for row in found.results}
    return [row for row in [*ROWS, *sorted(kinds - set(ROWS))] if row in kinds and row != "method"]


def _baselines(kind: str, runs: Sequence[Run], taken: set[str]) -> Iterator[Line]:
    """A line for each set of runs that agree on this baseline wherever they share a seed and a protocol."""
    groups: list[tuple[Line, list[str]]] = []  # and the rows of whose runs it is
    for run in runs:
        if not any(kind in found.results for found in run.found.values()):
            continue
        row = Row("", "", kind, run.backbone if kind in OWN_BACKBONE else "", ())
        group = next((one for one in groups if one[0].row == row and _agrees(one[0], run)), None)
        if group is None:
            group = Line(row), []
            groups.append(group)
        group[0].runs.setdefault(run.seed, run)
        if run.row not in group[1]:
            group[1].append(run.row)
    for line, members in groups:
        backbone = line.row.backbone
        tail = f", {backbone}" if backbone else ""
        if sum(other.row.backbone == backbone for other, _ in groups) > 1:
            few = members if len(members) < 4 else [*members[:2], f"{len(members) - 2} others"]
            tail += f" (of {', '.join(few)})"
        key = f"{kind}{tail}" if f"{kind}{tail}" not in taken else f"{kind}{tail} (baseline)"
        own = dict(sorted(line.runs.items()))
        yield Line(Row(key, f"{NAMES.get(kind, kind)}{tail}", kind, backbone, tuple(own)), own)


def _agrees(line: Line, run: Run) -> bool:
    """Whether a run has the line's figures of a baseline at this seed, in the protocols that both have."""
    if run.seed not in line.runs:
        return True
    for protocol, found in run.found.items():
        own = found.results.get(line.row.kind)
        for key, metric in (own.metrics if own else {}).items():
            other = line.metric(run.seed, protocol, key)
            if other and abs(other.value - metric.value) > SAME:
                return False
    return True
