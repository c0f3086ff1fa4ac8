"""The live table of a comparison's runs, on a terminal; elsewhere a line whenever a run begins or ends."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from selfsup.compare.jobs import DONE, ELSEWHERE, FAILED, QUEUED, RUNNING, Job

STYLES = {DONE: "green", FAILED: "bold red", RUNNING: "cyan", QUEUED: "dim"}


class Shown:
    """Shows the jobs given to `__call__`."""

    def __init__(self, stream: TextIO, count: int):
        self.stream, self.count = stream, count
        self.live: Any = None
        self._told: dict[str, str] = {}

    def __call__(self, jobs: Sequence[Job]) -> None:
        if self.live is not None:
            self.live.update(table(jobs, self.count, self.live.console.size.height))
            return
        for job in jobs:
            if self._told.get(job.name, QUEUED) != job.state:
                self._told[job.name] = job.state
                print(line(job, jobs, self.count), file=self.stream, flush=True)


@contextmanager
def shown(count: int, stream: TextIO | None = None) -> Iterator[Shown]:
    """What shows the progress of runs, `count` at a time, on `stream`, stderr if none is given."""
    stream = stream or sys.stderr
    view = Shown(stream, count)
    if not stream.isatty():
        yield view
        return
    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=stream), refresh_per_second=4, transient=False) as live:
        view.live = live
        yield view


def line(job: Job, jobs: Sequence[Job], count: int) -> str:
    """One job in plain words."""
    closed = sum(not one.open for one in jobs)
    text = f"[{closed}/{len(jobs)}] {job.cell.title}: {words(job)}"
    left = remaining(jobs, count)
    return text + (f", about {duration(left)} left" if left and not job.open else "")


def words(job: Job) -> str:
    if job.state == DONE:
        return f"done as {job.found.name if job.found else job.name}" + (
            f" in {duration(job.seconds)}" if job.began else ""
        )
    if job.state == FAILED:
        return f"failed: {job.reason}"
    if job.state == ELSEWHERE:
        return "another comparison runs it; waiting"
    return job.state


def remaining(jobs: Sequence[Job], count: int) -> float | None:
    """Seconds until all jobs are done; None before one has ended.

    An open job is expected to take as long as those of its method that were run took, or else as all took.
    """
    ran = [job for job in jobs if job.state == DONE and job.began is not None]
    if not ran:
        return None
    every = statistics.mean(job.seconds for job in ran)
    total = 0.0
    for job in jobs:
        if job.open:
            own = [one.seconds for one in ran if one.cell.method == job.cell.method]
            total += max((statistics.mean(own) if own else every) - job.seconds, 0)
    return total / max(1, count)


def duration(seconds: float) -> str:
    """`8 s`, `3 min 20 s`, `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def table(jobs: Sequence[Job], count: int, height: int) -> Any:
    """The jobs as a table for a terminal of `height` lines: what runs and failed first, then queued, then done."""
    from rich.table import Table

    order = {RUNNING: 0, ELSEWHERE: 0, FAILED: 1, QUEUED: 2, DONE: 3}
    kept = sorted(jobs, key=lambda job: order.get(job.state, 1))[: max(3, height - 6)]
    closed, left = sum(not job.open for job in jobs), remaining(jobs, count)
    title = f"{closed} of {len(jobs)} runs ended" + (f", about {duration(left)} left" if left else "")
    found = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for head in ("run", "state", "stage", "time", "note"):
        found.add_column(head, overflow="ellipsis", no_wrap=head != "note")
    for job in jobs:
        if job in kept:
            style = STYLES.get(job.state, "")
            note = job.reason or (job.found.name if job.found else "")
            spent = duration(job.seconds) if job.began else ""
            found.add_row(
                job.cell.title, job.state, job.stage if job.state == RUNNING else "", spent, note, style=style
            )
    if len(kept) < len(jobs):
        found.caption = f"{len(jobs) - len(kept)} more"
    return found
