"""Run the experiments of a comparison, several at a time, each in a temporary workspace of its own."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from selfsup.compare import gather, locks, workspace
from selfsup.compare.by_dvc import Cache
from selfsup.compare.gather import Experiment
from selfsup.compare.locks import Project, Wanted
from selfsup.compare.plan import Cell
from selfsup.errors import UserError

TAIL = 8_192  # bytes of a run's output that are searched for what it does
FULL = 200e6  # bytes; with less, a full disk is the likely cause of a failure
EVERY = 0.5  # seconds between two looks at the runs
QUEUED, RUNNING, ELSEWHERE, DONE, FAILED, STOPPED = "queued", "running", "in use", "done", "failed", "stopped"


@dataclass
class Job:
    """An experiment that is asked for, and how far it is."""

    cell: Cell
    wanted: Wanted
    changes: Sequence[str]  # of params.yaml
    name: str  # of the experiment
    key: str  # digest of all that decides its results
    shared: str  # digest of what it shares with other experiments, so that they do not compute it at the same time
    state: str = QUEUED
    stage: str = ""
    reason: str = ""
    began: float | None = None
    ended: float | None = None
    found: Experiment | None = None
    log: Path | None = None

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    @property
    def open(self) -> bool:
        return self.state in (QUEUED, RUNNING, ELSEWHERE)


@dataclass
class Runner:
    """What all runs of a comparison share."""

    project: Project
    cache: Cache
    count: int  # runs at a time
    shown: Callable[[Sequence[Job]], object]
    stop: threading.Event = field(default_factory=threading.Event)
    preparing: threading.Lock = field(default_factory=threading.Lock)  # git, and hydra inside DVC, are not shared

    def run(self, jobs: Sequence[Job], ready: set[str]) -> None:
        """Run all jobs that are not done; a failed one leaves the others alone.

        `ready` are the digests `shared` of what was computed before. Raises `KeyboardInterrupt` at Ctrl-C and
        `SystemExit` at SIGTERM, after the runs have been stopped and their checkpoints written.
        """
        threads: dict[int, threading.Thread] = {}
        with stopping(self.stop) as request:
            while threads or (any(job.open for job in jobs) and not self.stop.is_set()):
                for number, thread in list(threads.items()):
                    if not thread.is_alive():
                        del threads[number]
                        if jobs[number].state == DONE:
                            ready.add(jobs[number].shared)
                busy = {jobs[number].shared for number in threads} - ready
                for number, job in enumerate(jobs):
                    if self.stop.is_set() or len(threads) >= self.count:
                        break
                    if job.state == QUEUED and number not in threads and job.shared not in busy:
                        threads[number] = threading.Thread(target=self._guarded, args=[job], daemon=True)
                        busy |= {job.shared} - ready
                        threads[number].start()
                for number in threads:
                    look(jobs[number])
                self.shown(jobs)
                time.sleep(EVERY)
        self.shown(jobs)
        if request:
            raise KeyboardInterrupt if request[0] == signal.SIGINT else SystemExit(128 + request[0])

    def _guarded(self, job: Job) -> None:
        try:
            job.began = time.monotonic()
            self._one(job)
        except (UserError, OSError) as error:
            job.state, job.reason = FAILED, " ".join(str(error).split())
        except Exception as error:  # noqa: BLE001 - one experiment must not end the others
            job.state, job.reason = FAILED, f"{type(error).__name__}: {' '.join(str(error).split())}"
        finally:
            job.ended = time.monotonic()
            if job.state == FAILED:
                job.reason += space_left(self.project.root)

    def _one(self, job: Job) -> None:
        root, taken = self.project.root, self.project.snapshot
        with contextlib.ExitStack() as stack:
            while True:
                try:
                    self.preparing.acquire()
                    copy = workspace.made(root, taken, job.name, job.key, self.cache.folder, job.changes)
                    space = stack.enter_context(copy)
                    break
                except workspace.InUse:
                    job.state = ELSEWHERE
                finally:
                    self.preparing.release()
                if self.stop.wait(2 * EVERY):
                    job.state = STOPPED
                    return
            if job.state == ELSEWHERE and (done := gather.found(job.wanted, gather.experiments(root), self.cache)):
                job.state, job.found = DONE, done
                return
            job.state, job.log = RUNNING, space.log
            own = environment(self.count) | {"DVC_EXP_BASELINE_REV": taken.head}
            dvc = dvc_command()
            save = [dvc, "exp", "save", "--force", "--name", job.name, *job.wanted.finals]
            shards = [[dvc, "checkout", "--quiet", "data/shards"]] if self.project.pulled else []
            for words in [*shards, [dvc, "repro", *job.wanted.finals], save]:
                status = space.run(words, own, self.stop)
                if self.stop.is_set():
                    job.state = STOPPED
                    return
                if status:
                    job.state, job.reason = FAILED, reason(space.log, status)
                    return
            with self.preparing:
                revision = space.fetch(taken.head)
                job.found = gather.experiment(root, job.name, revision)
        self._check(job)

    def _check(self, job: Job) -> None:
        """The run is done if it is what was asked for: the user may have edited data while it ran."""
        why = "it left no dvc.lock"
        if job.found is not None:
            why = locks.differs(job.found.lock, job.wanted, self.cache.listing) or ""
        if not why:
            job.state = DONE
            return
        job.found, job.reason = None, f"not what was asked for: {why}; run the same command again"
        job.state = FAILED


def environment(count: int) -> dict[str, str]:
    """Of one of `count` runs at a time: each gets its share of the cores, unless the user set the number of threads."""
    processes = int(os.environ.get("NPROC") or 1)
    threads = max(1, (os.cpu_count() or 1) // (count * processes))
    own = {"OMP_NUM_THREADS": str(threads)} | dict(os.environ)
    return own | {"DVC_NO_ANALYTICS": "true", "PYTHONUNBUFFERED": "1"}


def dvc_command() -> str:
    found = shutil.which("dvc")
    if found is None:
        raise UserError("dvc is not on PATH: activate the environment first, `source .venv/bin/activate`")
    return found


@contextlib.contextmanager
def stopping(stop: threading.Event) -> Iterator[list[int]]:
    """Set `stop` at Ctrl-C, SIGTERM or SIGHUP, and yield the list that the signal's number is put into.

    SIGHUP stays ignored where it was, so that under `nohup` the runs outlive their terminal.
    """
    request: list[int] = []

    def note(number: int, _: object) -> None:
        request.append(number)
        stop.set()

    numbers = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    main = threading.current_thread() is threading.main_thread()
    before: Mapping[int, object] = {number: signal.signal(number, note) for number in numbers} if main else {}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]


def space_left(folder: Path) -> str:
    """A remark on a disk that is full, or nearly; the run that filled it often could not report that."""
    left = shutil.disk_usage(folder).free
    return f"; only {left / 1e6:.0f} MB of disk are left, so free some space" if left < FULL else ""


def look(job: Job) -> None:
    """Read from a run's output what it does now."""
    if job.log is None or job.state != RUNNING:
        return
    try:
        with job.log.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            text = file.read().decode(errors="replace")
    except OSError:
        return
    if stages := re.findall(r"^(?:Running stage|Stage) '([^']+)'", text, re.MULTILINE):
        job.stage = stages[-1]
    after = text.rpartition(f"'{job.stage}'")[2]
    share = re.findall(r"(\d+)%\|", after)
    job.stage = job.stage.partition(" ")[0] + (f" {share[-1]} %" if share else "")


def reason(log: Path, status: int) -> str:
    """Why a run failed, in one line, from its output: what its stage says, else what DVC says."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    for start in ("error: ", "ERROR: "):
        said = [line.removeprefix(start) for line in lines if line.startswith(start)]
        if said:
            return said[-1].strip()
    return f"exit status {status}; its output is in {log}"
