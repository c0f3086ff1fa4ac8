"""SIGKILL every stage again and again: the same command then finishes, with the bits of an undisturbed run.

python -m tests.soak.kills [--times 20] [--stages pretrain extract] [--processes 1 2] [--methods simclr mae] [--seed 0]

Each stage is run once undisturbed and then, `--times` times, killed and run again. What is killed: the stage's own
process, one of its workers, its process group, or all of them at once. When: at any moment, during the work (from the
first word or file on), or while its outs are written. Outs were removed before, as DVC does, or stale ones lie there,
as when a stage is run by hand. Afterwards no process of the killed command may be left, every out must have its old
SHA-256 (but for metrics/times) and no other file may have come or gone.
"""

import argparse
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.soak import project
from tests.soak.project import Stage

KILLED = ("stage", "worker", "group", "all")
MOMENTS = ("any", "work", "outs")
BEFORE = ("removed", "stale")
LAUNCHED = ("pretrain", "baseline", "extract")
PATIENCE = 900.0  # seconds after which a command that does not end is a failure


@dataclass
class Row:
    """A stage on a number of processes, and what became of it."""

    stage: Stage
    method: str
    processes: int
    folder: Path
    slack: float
    seconds: float = 0.0  # of the undisturbed run
    first: dict[str, float] = field(default_factory=dict)  # seconds until its first word or file, and its first out
    digests: dict[str, str] = field(default_factory=dict)
    names: set[str] = field(default_factory=set)  # of all files in the folder
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"pretrain {self.method}" if self.stage.name == "pretrain" else self.stage.name

    @property
    def title(self) -> str:
        return f"{self.name} x{self.processes}"

    def start(self, mark: str):
        sharding = self.stage.name == "shard"  # its processes are as many as it may use cores
        log = self.folder.with_suffix(".log")
        log.unlink(missing_ok=True)
        count, cores = (1, self.processes) if sharding else (self.processes, 0)
        return project.start(self.folder, self.stage.command, mark, count, log, cores)

    def said(self) -> str:
        return self.folder.with_suffix(".log").read_text(errors="replace")

    def progress(self, before: dict) -> str:
        """How far the command is by what it wrote: `none`, `work` or `outs`."""
        now = project.files(self.folder)
        changed = {name for name in before.keys() | now.keys() if before.get(name) != now.get(name)}
        if any(name == out or name.startswith((f"{out}/", f"{out}.")) for name in changed for out in self.stage.outs):
            return "outs"
        return "work" if changed or self.folder.with_suffix(".log").stat().st_size else "none"

    def wait_for(self, running, moment: str, before: dict) -> dict[str, float]:
        """Seconds until the command showed each sign, waiting for `moment` or for its end."""
        start, seen = time.monotonic(), {}
        while moment not in seen and running.poll() is None:
            found = self.progress(before)
            for sign in ("work", "outs") if found == "outs" else (found,):
                seen.setdefault(sign, time.monotonic() - start)
            time.sleep(0.01)
        return seen

    def clear(self, how: str) -> None:
        """The folder as it is before the stage is run; without caches."""
        for name in (".cache", ".resume", *(f"data/shards.{part}" for part in ("partial", "old"))):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        if how == "removed":
            project.remove(self.folder, self.stage.outs)
            return
        for name in self.digests:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).write_text("stale\n")

    def undisturbed(self) -> None:
        """Run the stage in peace, and keep what it wrote and how long it took."""
        self.clear("removed")
        before = project.files(self.folder)
        start = time.monotonic()
        running = self.start("quiet")
        self.first = self.wait_for(running, "end", before)
        if running.wait() != 0:
            raise SystemExit(f"{self.title} fails by itself:\n{self.said()[-2000:]}")
        self.seconds = time.monotonic() - start
        self.digests, self.names = project.digests(self.folder, self.stage.outs), set(project.files(self.folder))

    def fault(self, what: str) -> None:
        self.faults.append(what)
        print(f"FAULT {self.title} {what}", flush=True)

    def end(self, running, what: str) -> int:
        """The command's exit status; one that does not end is killed."""
        try:
            return running.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.fault(f"{what}: no end within {PATIENCE:.0f} s")
            running.kill()
            return running.wait()

    def once(self, number: int, what: str, moment: str, how: str, rng: random.Random) -> None:
        """Kill the stage and run it again. A command that ends before it is killed is started anew."""
        mark, share = f"{self.title}-{number}", rng.random()
        for attempt in range(8):
            self.clear(how)
            before = project.files(self.folder)
            running = self.start(mark)
            seen = {} if moment == "any" else self.wait_for(running, moment, before)
            span = self.seconds - (self.first.get(moment, 0.0) if seen else 0.0)
            time.sleep(share * span * 0.7**attempt)
            progress = self.progress(before)
            known = project.bearing(mark)
            if kill(running, what, known, rng):
                break
            running.wait()
        else:
            self.fault(f"{number}: was always faster than its kill")
            return
        self.counts["kills"] += 1
        self.counts[progress] += 1
        checkpoints = list(self.folder.glob(".resume/*/step-*.pt"))
        start = time.monotonic()
        status = self.end(running, f"{number}: after the kill of {what}")
        took = time.monotonic() - start
        words = self.said()
        patience = project.ENDED * self.slack
        left = project.left_behind(mark, known, patience)
        self.counts["orphans"] += len(left)
        for one in left:
            self.fault(f"{number}: {what} killed at {progress}, left after {patience:.0f} s: {one}")
        if what == "worker" and len(known) > 1:
            self.counts["survived"] += status == 0
            if status and ("Traceback" in words or not re.search(r"^error: ", words, re.MULTILINE)):
                self.fault(f"{number}: a killed worker leaves no clear line: {words[-300:]!r}")
        if how == "removed":
            project.remove(self.folder, self.stage.outs)  # as DVC does
        self.counts["resumed"] += bool(checkpoints)
        again = self.start(mark + "-again")
        if self.end(again, f"{number}: run again") != 0:
            self.fault(f"{number}: {what} killed at {progress}: fails when run again: {self.said()[-300:]!r}")
            return
        found, names = project.digests(self.folder, self.stage.outs), set(project.files(self.folder))
        different = sorted(name for name in found.keys() | self.digests if found.get(name) != self.digests.get(name))
        self.counts["differences"] += bool(different)
        self.counts["leftovers"] += bool(names ^ self.names)
        case = f"{number}: {what} killed at {progress} over {how} outs"
        if different:
            self.fault(f"{case}: {', '.join(different)} differ")
        if names ^ self.names:
            self.fault(f"{case}: files {', '.join(sorted(names ^ self.names))} came or went")
        print(f"{self.title:22} {number:3} {what:6} at {progress:5} ended after {took:4.1f} s", flush=True)


def kill(running, what: str, known: list[psutil.Process], rng: random.Random) -> bool:
    """SIGKILL; False when the command had ended before."""
    workers = [process for process in known if process.pid != running.pid]
    targets = {"worker": [rng.choice(workers)] if workers else known, "all": known}.get(what, [])
    if running.poll() is not None:
        return False
    for process in targets:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    if what == "group":
        os.killpg(running.pid, signal.SIGKILL)
    elif what == "stage":
        os.kill(running.pid, signal.SIGKILL)
    return True


def check(row: Row, times: int, seed: int) -> None:
    """All kills of a row, every combination of what, when and over what before any comes again."""
    rng = random.Random(f"{seed} {row.title}")
    row.undisturbed()
    cases: list[tuple[str, str, str]] = []
    while len(cases) < times:
        cases += rng.sample(combinations := list(itertools.product(KILLED, MOMENTS, BEFORE)), len(combinations))
    for number, (what, moment, how) in enumerate(cases[:times]):
        row.once(number, what, moment, how, rng)
    shutil.rmtree(row.folder)


def prepare(place: Path, names: list[str] | None, processes: list[int], methods: list[str], slack: float) -> list[Row]:
    """Run the pipeline once as far as is wanted, each row getting the folder as it is before its stage."""
    base, rows = project.make(place / "base", method=methods[0]), []
    wanted = [stage for stage in project.stages() if not names or {stage.name, stage.name.split()[0]} & set(names)]
    for stage in project.stages():
        script = stage.name.split()[0]
        for method in (methods if script == "pretrain" else methods[:1]) if stage in wanted else []:
            for count in processes if script in (*LAUNCHED, "shard") else [1]:
                row = Row(stage, method, count, place / f"{stage.name} {method} {count}", slack)
                shutil.copytree(base, row.folder)
                project.parameters(row.folder, method=method)
                rows.append(row)
        if stage == wanted[-1]:
            break
        if project.start(base, stage.command, "base", 1, place / "base.log").wait() != 0:
            raise SystemExit(f"{stage.name} fails by itself:\n{(place / 'base.log').read_text()[-2000:]}")
    return rows


def table(rows: list[Row]) -> str:
    """A line a row."""
    columns = ("kills", "none", "work", "outs", "resumed", "survived", "orphans", "leftovers", "differences")
    lines = [f"{'stage':18} procs seconds " + " ".join(f"{name:>11}" for name in columns)]
    for row in rows:
        numbers = " ".join(f"{row.counts[name]:11}" for name in columns)
        lines.append(f"{row.name:18} {row.processes:5} {row.seconds:7.1f} {numbers}")
    return "\n".join([*lines, "of the kills: before any word or file (none), during the work, while outs were written"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=20, help="kills of each stage")
    parser.add_argument("--stages", nargs="*", help="names or their first words; default: all")
    parser.add_argument("--processes", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--methods", nargs="*", default=["simclr", "mae"], help="that pretrain is tried with")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="rows at a time")
    parser.add_argument("--slack", type=float, default=1, help="times the limits in seconds, on a busy machine")
    options = parser.parse_args()
    begun = time.monotonic()
    rows: list[Row] = []
    place = project.workplace("kills-", lambda: table(rows))  # an interruption shows how far it got
    rows += prepare(place, options.stages, options.processes, options.methods, options.slack)
    print(f"the undisturbed pipeline took {time.monotonic() - begun:.0f} s", flush=True)
    with ThreadPoolExecutor(options.jobs) as pool:
        for row, done in [(row, pool.submit(check, row, options.times, options.seed)) for row in rows]:
            if error := done.exception():  # of this row: the others go on
                row.fault(f"ends early: {error!r}")
    print(table(rows))
    faults = [f"{row.title}: {fault}" for row in rows for fault in row.faults]
    print("\n".join(faults) or "no faults")
    totals = sum((row.counts for row in rows), Counter())
    summary = {
        "seed": options.seed,
        "slack": options.slack,
        "minutes": round((time.monotonic() - begun) / 60, 1),
        "faults": len(faults),
    }
    print(json.dumps(summary | {name: totals[name] for name in ("kills", "orphans", "leftovers", "differences")}))
    for process in project.bearing(""):  # of rows that ended early
        process.kill()
    shutil.rmtree(place, ignore_errors=True)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
