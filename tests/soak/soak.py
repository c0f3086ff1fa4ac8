"""An hour of lost processes and pre-emptions: every training still ends with the weights of its quiet run.

python -m tests.soak.soak [--minutes 60] [--seed 0] [--epochs 60] [--runs simclr:2 mae:2 byol:1 rotation:2]

Trains each of `--runs` (method:processes) undisturbed, then again and again while processes are killed (SIGKILL of a
rank or of the launcher), stopped (SIGSTOP of a rank), pre-empted (SIGTERM) and interrupted (Ctrl-C), giving the same
command until it finishes. Then all outs must have the SHA-256 of the quiet run's (but for
metrics/times). Runs are recorded in MLflow's SQLite store, which is asked for their statuses.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak import project

TIMEOUT = 60  # RANK_TIMEOUT of the trainings, seconds: a busy machine imports at uneven speeds
LIMITS = {  # kind of disturbance: seconds within which the command must end
    "SIGTERM": 10.0,
    "Ctrl-C": 10.0,
    "rank killed": 30.0,
    "rank stopped": TIMEOUT + 20.0,
    "launcher killed": 1.0,
}
KILLED = {"SIGTERM": (143, -15), "Ctrl-C": (130, -2)}  # statuses: the stage's own, or the signal's before it was ready
SMALL = {
    "data__limit": None,
    "data__image__image_size": 16,
    "data__samples_per_shard": 500,
    "pretrain__batch_size": 64,
    "pretrain__checkpoint_every": 10,
    "pretrain__log_every": 10,
    "pretrain__knn_every": 20,
    "tracking__enabled": True,
}


@dataclass
class Tally:
    """What an hour brought."""

    slack: float  # times the limits
    cycles: Counter = field(default_factory=Counter)  # by run
    disturbances: Counter = field(default_factory=Counter)  # by kind
    slowest: dict[str, float] = field(default_factory=dict)  # seconds until the end, by kind
    restarts: int = 0
    at_once: int = 0  # signals that were answered with a checkpoint
    left: int = 0
    differences: int = 0
    statuses: Counter = field(default_factory=Counter)  # of MLflow runs after a disturbance of that kind
    faults: list[str] = field(default_factory=list)

    def fault(self, what: str) -> None:
        self.faults.append(what)
        print(f"FAULT {what}", flush=True)


class Training:
    """One folder in which one method is trained on a number of processes."""

    def __init__(self, folder: Path, processes: int, tally: Tally):
        self.folder, self.processes, self.tally = folder, processes, tally
        self.log = folder.with_suffix(".log")
        self.stage = next(stage for stage in project.stages() if stage.name == "pretrain")
        self.mark, self.first = "", None  # of the command that runs: its mark, the checkpoint it goes on from
        self.steps = 0  # of a whole training
        self.running: subprocess.Popen

    def start(self) -> None:
        self.mark, self.first = f"{self.folder.name}-{time.monotonic()}", self.newest()
        self.running = project.start(self.folder, self.stage.command, self.mark, self.processes, self.log)

    def clear(self) -> None:
        project.remove(self.folder, self.stage.outs)
        shutil.rmtree(self.folder / ".resume", ignore_errors=True)

    def newest(self) -> Path | None:
        """The newest checkpoint."""
        return max(self.folder.glob(".resume/*/step-*.pt"), default=None)

    def step(self) -> int:
        newest = self.newest()
        return int(newest.name.split("-")[1]) if newest else 0

    def train_until(self, seconds: float) -> bool:
        """Wait for the first new checkpoint and so many seconds more; False when the command ended before."""
        before = self.newest()
        while self.newest() == before and self.running.poll() is None:
            time.sleep(0.05)
        try:
            self.running.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def workers(self) -> list[psutil.Process]:
        """The processes that train, by rank; with one process, the command itself."""
        found = {}
        for process in project.bearing(self.mark):
            try:
                rank = process.environ().get("RANK")
                if rank is not None and "tracking/writer" not in " ".join(process.cmdline()):
                    found[int(rank)] = process
            except psutil.NoSuchProcess:
                continue
        return [found[rank] for rank in sorted(found)] or [psutil.Process(self.running.pid)]

    def disturb(self, kind: str, rng: random.Random) -> None:
        """One disturbance, and everything that must be true after it."""
        tally, known = self.tally, project.bearing(self.mark)
        training = self.newest() not in (None, self.first) and self.step() < self.steps  # not yet on its way out
        rank = rng.randrange(len(workers := self.workers()))
        if kind.startswith("rank") and self.processes > 1 and workers[0].pid == self.running.pid:
            kind = "launcher killed"  # on its way in or out, it has no ranks to lose
        at, step = time.time(), self.step()
        match kind:
            case "SIGTERM":
                self.running.send_signal(signal.SIGTERM)
            case "Ctrl-C":  # a terminal sends it to the whole foreground group
                os.killpg(self.running.pid, signal.SIGINT)
            case "rank killed":
                workers[rank].kill()
            case "rank stopped":
                workers[rank].suspend()
            case "launcher killed":
                self.running.kill()
        start, limit = time.monotonic(), LIMITS[kind] * tally.slack
        try:
            status = self.running.wait(timeout=limit * 3)
        except subprocess.TimeoutExpired:
            status = None
        took = time.monotonic() - start
        said = re.sub(r"[^\r\n]*\r", "", self.log.read_text(errors="replace"))
        case = f"{self.folder.name} {kind} (rank {rank}, step {step})"
        if status is None or took > limit:
            tally.fault(f"{case}: ended after {took:.1f} s, status {status}")
        if status is None:
            for process in project.bearing(self.mark):
                process.kill()
            self.running.wait()
        left = project.left_behind(self.mark, known, project.ENDED * tally.slack)
        for one in left:
            tally.fault(f"{case}: left behind: {one}")
        tally.left += len(left)
        finished = status == 0 and self.newest() is None  # its last moments cannot be disturbed
        if kind in KILLED and status not in KILLED[kind] and not finished:
            tally.fault(f"{case}: status {status}")
        newest = self.newest()
        fresh = newest is not None and newest.stat().st_mtime >= at
        if kind in KILLED and training:
            tally.at_once += fresh
            if not fresh:
                tally.fault(f"{case}: no checkpoint at once")
        if kind.startswith("rank") and len(workers) > 1 and not re.search(rf"process {rank}\b", said):
            tally.fault(f"{case}: not named: {said[-300:]!r}")
        if "Traceback" in said:
            tally.fault(f"{case}: a traceback: {said[-600:]!r}")
        recorded = "+".join(sorted(Counter(self.statuses(at)))) or "none yet"
        tally.statuses[f"{kind}: {recorded}"] += 1
        if "RUNNING" in recorded or (kind in KILLED and training and recorded != "KILLED"):
            tally.fault(f"{case}: MLflow says {recorded}")
        tally.disturbances[kind] += 1
        tally.slowest[kind] = round(max(took, tally.slowest.get(kind, 0.0)), 1)
        where = f"{self.folder.name:14} {kind:15} at step {step:5}, load {os.getloadavg()[0]:2.0f}"
        print(f"{where}: ended after {took:4.1f} s, MLflow {recorded}", flush=True)

    def statuses(self, since: float) -> list[str]:
        """Of the MLflow runs that ended, or still run, after `since` (seconds of the clock)."""
        store = self.folder / "mlflow.db"
        if not store.exists():
            return []
        with sqlite3.connect(store) as database:
            query = "SELECT status FROM runs WHERE end_time IS NULL OR end_time >= ?"
            return [status for (status,) in database.execute(query, (since * 1000 - 1000,))]

    def digests(self) -> dict[str, str]:
        return project.digests(self.folder, self.stage.outs)

    def quiet(self) -> tuple[dict[str, str], float]:
        """The outs of an undisturbed run, and its seconds of training."""
        self.clear()
        self.start()
        if self.running.wait() != 0:
            raise SystemExit(f"{self.folder.name} fails by itself: {self.log.read_text()[-2000:]}")
        metrics = self.folder / "metrics"
        self.steps = json.loads((metrics / "pretrain.json").read_text())["steps"]
        return self.digests(), json.loads((metrics / "times/pretrain.json").read_text())["seconds"]

    def cycle(self, expected: dict[str, str], kinds: "itertools.cycle[str]", until: float, rng: random.Random) -> None:
        """One training under disturbances, compared with the quiet one."""
        self.clear()
        starts = 0
        while True:
            begun = time.time()
            self.start()
            starts += 1
            early = rng.random() < 0.15  # now and then while it is still starting
            if time.monotonic() > until:
                self.running.wait()
                alive = False
            elif early:
                time.sleep(rng.uniform(0.5, 10))
                alive = self.running.poll() is None
            else:
                alive = self.train_until(rng.uniform(0, 15))
            if not alive:
                status = self.running.wait()
                if status == 0:
                    break
                self.tally.fault(f"{self.folder.name} fails when run again: {self.log.read_text()[-600:]!r}")
                if starts > 100:
                    return
                continue
            kind = next(kinds)
            while kind == "rank stopped" and (early or self.processes == 1):
                kind = next(kinds)
            self.disturb(kind, rng)
        self.tally.restarts += starts - 1
        self.tally.cycles[self.folder.name] += 1
        found = self.digests()
        different = sorted(name for name in found.keys() | expected if found.get(name) != expected.get(name))
        if different:
            self.tally.differences += 1
            self.tally.fault(f"{self.folder.name}: after {starts} starts {', '.join(different)} differ")
        if set(self.statuses(begun)) != {"FINISHED"}:
            self.tally.fault(f"{self.folder.name}: finished, and MLflow says {self.statuses(begun)}")
        print(f"{self.folder.name}: finished after {starts} starts, {'different' if different else 'the same bits'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=60, help="of each training")
    parser.add_argument("--runs", nargs="*", default=["simclr:2", "mae:2", "byol:1", "rotation:2"])
    parser.add_argument("--slack", type=float, default=1, help="times the limits in seconds, on a busy machine")
    options = parser.parse_args()
    begun, rng, tally = time.monotonic(), random.Random(options.seed), Tally(options.slack)
    os.environ["RANK_TIMEOUT"] = str(TIMEOUT)
    until = begun + options.minutes * 60
    place = project.workplace("soak-")
    base = project.make(place / "base")
    trainings: list[tuple[Training, dict[str, str]]] = []
    for run in options.runs:
        method, _, processes = run.partition(":")
        project.parameters(base, **SMALL, method=method, pretrain__epochs=options.epochs)
        if not trainings:
            for stage in project.stages()[:2]:
                assert project.start(base, stage.command, "base", 1, place / "base.log").wait() == 0
        training = Training(shutil.copytree(base, place / f"{method} x{processes}"), int(processes), tally)
        expected, seconds = training.quiet()
        trainings.append((training, expected))
        print(f"{run}: the quiet run trained for {seconds:.0f} s", flush=True)
    kinds = list(LIMITS)
    rng.shuffle(kinds)
    order = itertools.cycle(kinds)
    for training, expected in itertools.cycle(trainings):
        if time.monotonic() > until:
            break
        training.cycle(expected, order, until, rng)
    print(f"{'disturbance':16} times  slowest end  limit")
    for kind, limit in LIMITS.items():
        slowest = tally.slowest.get(kind, 0.0)
        print(f"{kind:16} {tally.disturbances[kind]:5} {slowest:10.1f} s {limit * tally.slack:5.0f} s")
    print("MLflow after each:", dict(sorted(tally.statuses.items())))
    print("\n".join(tally.faults) or "no faults")
    summary = {
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "seed": options.seed,
        "slack": options.slack,
        "cycles": dict(tally.cycles),
        "restarts": tally.restarts,
        "disturbances": dict(tally.disturbances),
        "slowest_end_s": tally.slowest,
        "checkpoints_at_once": tally.at_once,
        "left_behind": tally.left,
        "differences": tally.differences,
        "faults": len(tally.faults),
    }
    print(json.dumps(summary))
    shutil.rmtree(place)
    sys.exit(1 if tally.faults else 0)


if __name__ == "__main__":
    main()
