"""What a comparison will take, before it is run: a few dozen steps of each row are trained in a temporary folder.

A training of S steps of s seconds, E epochs with a sweep of w seconds every v of them and R readings of r seconds takes
S s + E w / v + R r. After it come extraction, every protocol, and the start of each stage's process. What several runs
share (shards, baselines and their results) counts once. What is done already does not count.
"""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from selfsup.compare import locks
from selfsup.compare.by_dvc import Cache
from selfsup.compare.gather import Experiment
from selfsup.compare.jobs import DONE, Job, environment
from selfsup.compare.progress import duration
from selfsup.config import parse
from selfsup.errors import UserError
from selfsup.params import Params

MEASURE = Path(__file__).with_name("measure.py").resolve()
FLOAT = 4  # bytes
STARTS = 5  # of check, watch, extraction, and twice that much for DVC itself; protocols and trainings have their own
_log = logging.getLogger("selfsup.compare")


@dataclass(frozen=True)
class Cost:
    """Of one run, or of what several runs share."""

    seconds: float = 0.0
    memory: float = 0.0  # bytes, at most at a time
    disk: float = 0.0  # bytes that stay in DVC's cache

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.seconds + other.seconds, max(self.memory, other.memory), self.disk + other.disk)

    def times(self, count: int) -> Cost:
        return Cost(self.seconds * count, self.memory, self.disk * count)


@dataclass
class Estimate:
    """The cost by row, and of what several runs share."""

    rows: dict[str, tuple[int, Cost]] = field(default_factory=dict)  # how many runs, and the cost of one
    shared: Cost = Cost()
    notes: list[str] = field(default_factory=list)

    def total(self) -> Cost:
        whole = self.shared
        for count, cost in self.rows.values():
            whole = whole + cost.times(count)
        return whole


def estimate(cache: Cache, jobs: Sequence[Job], known: Sequence[Experiment], ready: set[str], count: int) -> str:
    """Measure, and say what the jobs that are not done will take, `count` at a time. Raises `UserError`.

    `ready` are the digests `Job.shared` of what was computed before.
    """
    todo = [job for job in jobs if job.state != DONE]
    if not todo:
        return "every run is done: nothing will be run"
    found = Estimate()
    with tempfile.TemporaryDirectory(prefix="estimate-") as scratch:
        shards, written = _shards(cache, todo[0], known, Path(scratch))
        size = sum(path.stat().st_size for path in shards.rglob("*") if path.is_file())
        networks: dict[str, Mapping[str, Any]] = {}  # what was measured once for each network
        for row, own in _by_row(todo).items():
            _log.info("estimate: %s", row)
            first = own[0]
            network = backbone(first.cell.values)
            one = child(first.cell.values, shards, network not in networks, Path(scratch), count)
            networks.setdefault(network, one)
            found.rows[row] = len(own), run_cost(one, networks[network], first)
        for group in {job.shared: job for job in todo if job.shared not in ready}.values():
            found.shared += _shared(group, networks, shards, Path(scratch), count)
    seeds = {job.cell.seed for job in todo if job.shared not in ready}
    found.shared += Cost(written * len(seeds), 0, size * len(seeds))
    left_out = sorted({name for one in networks.values() for name, took in one["protocols"].items() if took is None})
    if left_out:
        found.notes.append(f"Not counted: {', '.join(left_out)}, which need more than features and labels.")
    samples = next(iter(networks.values()))["samples"]
    found.notes.append(
        f"Measured with {samples['train']:,} training images on this machine as it is loaded now, "
        f"{os.cpu_count()} cores, {count} run{'s' * (count > 1)} at a time."
    )
    return said(found, len(jobs) - len(todo), len(jobs), count)


def _by_row(todo: Sequence[Job]) -> dict[str, list[Job]]:
    rows: dict[str, list[Job]] = {}
    for job in todo:
        rows.setdefault(job.cell.row, []).append(job)
    return rows


def backbone(values: Mapping[str, Any]) -> str:
    """The network of a run, in words that are equal for equal networks."""
    name = values["methods"][values["method"]]["backbone"]
    return json.dumps([name, values["backbones"].get(name)])


def _shards(cache: Cache, job: Job, known: Sequence[Experiment], scratch: Path) -> tuple[Path, float]:
    """Shards of the job's data, and how long they took: those of an earlier run, else new ones in `scratch`."""
    part = job.wanted.part(["shard"])
    for one in known:
        made = one.made.get("data/shards")
        if made and cache.has(made) and locks.differs(one.lock, part, cache.listing) is None:
            return cache.place(made, scratch / "shards"), 0.0
    from selfsup import methods
    from selfsup.data.shards import write

    params = parse(Params, dict(job.cell.values))
    begin = time.monotonic()
    write(params.data.of(methods.kind_of(params.method, params)), params.seed, scratch / "shards")
    return scratch / "shards", time.monotonic() - begin


def child(
    values: Mapping[str, Any], shards: Path, evaluate: bool, scratch: Path, count: int, method: str | None = None
) -> dict[str, Any]:
    """What `measure` says of a run with these parameters, in a process of its own. Raises `UserError`."""
    chosen = {**values, "method": method} if method else dict(values)
    request = {"values": chosen, "shards": str(shards), "evaluate": evaluate, "at": time.time()}
    done = subprocess.run(
        [sys.executable, "-I", str(MEASURE)],
        cwd=scratch,
        env=environment(count) | {"DVC_ROOT": str(scratch), "TQDM_DISABLE": "1"},
        input=json.dumps(request),
        capture_output=True,
        text=True,
    )
    if done.returncode:
        why = re.search(r"error: (.*)", done.stderr)  # a progress bar may stand before it
        raise UserError(f"{chosen['method']}: cannot be measured: {why[1] if why else f'status {done.returncode}'}")
    return json.loads(done.stdout)


def training(one: Mapping[str, Any], values: Mapping[str, Any]) -> float:
    """Seconds of a training."""
    every = values["pretrain"]["knn_every"]
    readings = one["epochs"] / every if every else 0
    return (
        one["start"]
        + one["steps"] * one["step"]
        + one["epochs"] / one["every"] * one["sweep"]
        + readings * one["reading"]
    )


def run_cost(one: Mapping[str, Any], network: Mapping[str, Any], job: Job) -> Cost:
    """Of one run, without what it shares with others."""
    values, samples = job.cell.values, sum(one["samples"].values())
    judged = sum(took or 0.0 for took in network["protocols"].values())
    starts = one["start"] * (STARTS + len(network["protocols"]))
    seconds = training(one, values) + network["extract"] + judged + starts
    return Cost(seconds, one["memory"], 2 * one["weights"] + samples * network["width"] * FLOAT)


def _shared(job: Job, networks: Mapping[str, Mapping[str, Any]], shards: Path, scratch: Path, count: int) -> Cost:
    """Of the baselines of a network and a seed."""
    values = job.cell.values
    network = networks[backbone(values)]
    features = sum(network["samples"].values()) * network["width"] * FLOAT
    rows = len([name for name in values["baselines"] if name != "majority"])  # whose results are kept for all methods
    whole = Cost(3 * network["start"] + rows * sum(took or 0.0 for took in network["protocols"].values()))
    if "random" in values["baselines"]:
        whole += Cost(network["extract"], 0, features)
    if "supervised" in values["baselines"]:
        name = values["methods"][values["method"]]["backbone"]
        blocks = {**values["methods"], "supervised": {**values["methods"]["supervised"], "backbone": name}}
        one = child({**values, "methods": blocks}, shards, False, scratch, count, "supervised")
        whole += Cost(training(one, values) + network["extract"], one["memory"], features + one["weights"])
    return whole


def said(found: Estimate, done: int, of: int, count: int) -> str:
    """The estimate as text."""
    lines = [["", "runs", "time of a run", "memory", "disk of a run"]]
    lines += [
        [row, str(runs), duration(cost.seconds), size(cost.memory), size(cost.disk)]
        for row, (runs, cost) in found.rows.items()
    ]
    lines.append(["shared", "", duration(found.shared.seconds), size(found.shared.memory), size(found.shared.disk)])
    total = found.total()
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    much = f"{size(total.memory * count)} of memory, {size(total.disk)} of disk"
    whole = f"In all about {duration(total.seconds / count)}, {much}"
    before = f"; {done} of {of} runs are done already" if done else ""
    return "\n".join([*table, "", f"{whole}{before}.", *found.notes])


def size(count: float) -> str:
    """`3.2 GB`, `41 MB`."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
