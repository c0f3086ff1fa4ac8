"""The table of experiments, without figures that belong to another experiment.

    python -m selfsup.compare.table                 # or `make table`
    python -m selfsup.compare.table --all-commits   # arguments go to `dvc exp show`

An experiment that stopped half-way, or that was asked for one stage only, still has the metrics files of whatever ran
before it: `dvc exp show` and `dvc metrics show` print them. Here a figure is printed only if the digests in the
experiment's metrics files lead from it to the weights, the method and the parameters of that same experiment.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsup import digests
from selfsup.config import parse
from selfsup.errors import UserError, one_line_errors
from selfsup.evaluation import protocols
from selfsup.evaluation.result import own_keys
from selfsup.evaluation.run import settings
from selfsup.params import Params
from selfsup.report.scores import stale

REFUSED = "stale"


@dataclass
class Line:
    """An experiment: its figures by column, and titles of the protocols that have none of it, by the reason."""

    name: str
    method: str
    seed: str
    cells: dict[str, str] = field(default_factory=dict)
    refused: dict[str, list[str]] = field(default_factory=dict)

    def notes(self) -> Iterator[str]:
        command = "dvc repro" if self.name == "workspace" else f"dvc exp apply {self.name}, then dvc exp run"
        for why, titles in self.refused.items():
            yield f"{self.name}: no figures of {self.method} in {', '.join(titles)}: they are {why}; run {command}"


def read(shown: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Read the output of `dvc exp show --json`, without experiments that have not been trained."""
    found = []
    for commit in shown:
        found.append(line(commit["name"] or commit["rev"], commit["data"]))
        for experiment in commit["experiments"] or []:
            last = experiment["revs"][0]
            found.append(line(last["name"] or last["rev"][:7], last["data"]))
    return [one for one in found if one is not None]


def line(name: str, data: Mapping[str, Any] | None) -> Line | None:
    """One experiment's line; None without metrics of a training."""
    metrics = {path: entry["data"] for path, entry in (data or {}).get("metrics", {}).items() if entry.get("data")}
    run = metrics.get("metrics/pretrain.json")
    if data is None or run is None:
        return None
    params = data["params"].get("params.yaml", {}).get("data", {})
    own = Line(name, params.get("method", run["method"]), str(params.get("seed", run.get("seed"))))
    listed = params.get("evaluation", {}).get("protocols", [])
    for known in dict.fromkeys([*(each for each in listed if each in protocols.names()), *protocols.names()]):
        written = metrics.get(f"metrics/evaluate/{known}.json")
        if not written or "skipped" in written[known]:
            continue
        protocol, units = protocols.find(known), written.get("units", {})
        why = not_of_it(known, written, run, metrics.get("metrics/extract.json", {}), params)
        keys = own_keys(list(written[known]["method"]), list(protocol.params.model_fields))
        for key in keys:
            title = protocol.title if key == keys[0] else f"{protocol.title}: {key.replace('_', ' ')}"
            own.cells[title] = REFUSED if why else figure(written[known]["method"][key], units.get(key))
        if why:
            own.refused.setdefault(why, []).append(protocol.title)
    return own


def figure(value: float | None, unit: str | None) -> str:
    """A metric as the table has it: percentages with one digit, others, whose `units` are noted, with three in all."""
    if value is None:
        return "-"
    if unit is None:
        return f"{100 * value:.1f}"
    return f"{100 * value:.1f} ({unit})" if unit.startswith("points") else f"{value:.3g} ({unit})"


def not_of_it(
    protocol: str, written: Mapping[str, Any], run: Mapping[str, Any], extracted: Mapping[str, Any], params: Any
) -> str:
    """What a protocol's figures are of, if not of the experiment's training and parameters; else empty."""
    before = written.get("computed_from")
    if before is None or "weights" not in run:
        return "of an earlier version, which did not note what they were computed from"
    method, seed = params.get("method", run["method"]), params.get("seed", run["seed"])
    if (run["method"], run["seed"]) != (method, seed):
        return f"of {run['method']}, seed {run['seed']}"
    try:
        chosen = parse(Params, params)
        _, block = protocols.chosen(protocol, chosen.evaluation)
    except UserError as error:
        return f"of parameters that this version does not know ({error})"
    if not digests.same_training(chosen, method, run):
        return "of a training with other parameters"
    if written["method"] == method and extracted.get("computed_from", {}).get("weights") != run["weights"]:
        return "of another training"
    origin = {
        "labels": before["labels"],
        "parameters": settings(block, seed, chosen.baselines),
        "features": before["features"] | {"method": extracted.get("features")},
    }
    return stale(written, method, origin)


def render(lines: Sequence[Line]) -> str:
    """The table as text, and below it what was left out of it and why."""
    columns = list(dict.fromkeys(title for one in lines for title in one.cells))
    rows = [["experiment", "method", "seed", *columns]]
    rows += [[one.name, one.method, one.seed, *(one.cells.get(title, "-") for title in columns)] for one in lines]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    notes = [note for one in lines for note in one.notes()]
    return "\n".join([*text, *([""] if notes else []), *notes])


def main() -> None:
    if not shutil.which("dvc"):
        raise UserError("dvc is not on PATH: activate the environment first, `source .venv/bin/activate`")
    if not Path("dvc.yaml").exists():
        raise UserError("dvc.yaml: not found; run from the project's root")
    asked = subprocess.run(["dvc", "exp", "show", "--json", *sys.argv[1:]], stdout=subprocess.PIPE, text=True)
    if asked.returncode:
        raise UserError("dvc exp show failed, as it says above")
    print("test figures of the method, in % where no unit is given")
    print(render(read(json.loads(asked.stdout))))


if __name__ == "__main__":
    with one_line_errors():
        main()
