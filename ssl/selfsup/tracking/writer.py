"""The process that sends a stage's runs to their store; `runs.py` starts it.

It reads JSON lines from stdin. The first one has the store's URI. Every other one has the key of a run and is of one of
four kinds: `open`, `metrics`, `artifact`, `finish`. It writes JSON lines to stdout: that it has reached the store, the
keys of runs that it has finished, and warnings. What the store does not take is kept in files in the folder `spool`,
which the next writer of the same store delivers. The writer exits at most `_AFTER` seconds after its stage or after
the end of its input.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from selfsup.tracking.store import Record, Store, database

_GATHER = 5.0  # seconds of points that go into one request
_SAMPLE = 15.0  # seconds between two readings of processor, memory and disk
_PATIENCE = 60.0  # seconds that a server may take to answer while the stage works
_RETRY = 30.0  # seconds between two attempts to reach a store that does not answer, at most
_POINTS = 200_000  # metric values per run that are kept while the store does not answer
_AFTER = 60.0  # seconds that a writer may outlive its stage


class Writer:
    """Keeps what the stage sends until the store has it. One thread reads from the stage, another one delivers."""

    exit = staticmethod(os._exit)  # at once: idle connections have nothing to send

    def __init__(self, uri: str, stage: IO[str], spool: Path):
        self.uri, self.stage, self.spool = uri, stage, spool
        self.store = Store(uri)
        self.open: dict[str, Record] = {}  # by key
        self.left: dict[Path, Record] = {}  # records that earlier writers could not deliver
        self.claim: Any = None  # the lock on these records, which one writer at a time delivers
        self.lost: list[str] = []
        self.dropped = 0  # points beyond `_POINTS`
        self.reason = ""  # why the store cannot be reached; empty: it can
        self.pause = self.retry_at = self.sample_at = 0.0
        self.failures = 0
        self.over = False  # the stage is gone
        self.news = threading.Event()
        self.keeping = threading.Lock()

    def listen(self, lines: IO[str]) -> None:
        """Read the stage's messages until its end."""
        for line in lines:
            self.take(json.loads(line))
        self.end()

    def take(self, message: dict[str, Any]) -> None:
        """Add a message to the record of its run."""
        match message:
            case {"run": key, "open": opening}:
                self.open[key] = Record(opening)
                self.news.set()
            case {"run": key, "finish": status, "time": at}:
                self.open[key].end = [status, at]
                self.news.set()
            case {"run": key, "artifact": path, "folder": folder}:
                self.open[key].files.append({"artifact": path, "folder": folder, "state": state(Path(path))})
            case {"run": key, "metrics": values, "step": step, "time": at}:
                points = self.open[key].points
                if len(points) < _POINTS:
                    # MLflow would store an infinity as 1.8e308, which flattens the curve.
                    points += [[k, v if math.isfinite(v) else math.nan, at, step] for k, v in values.items()]
                else:
                    self.dropped += len(values)

    def end(self) -> None:
        """The stage has ended: exit after `_AFTER` seconds, even if something is not delivered."""
        self.over = True
        self.news.set()
        threading.Timer(_AFTER, self.leave).start()

    def watch(self, stage: int) -> None:
        """Notice that the stage was killed, even if its child processes keep the pipe open."""
        while os.getppid() == stage:
            time.sleep(1)
        self.end()

    def serve(self) -> None:
        """Deliver until the stage ends."""
        self.find_left()
        while not self.over:
            self.news.wait(_GATHER)
            self.news.clear()
            if self.open and all(record.end for record in list(self.open.values())):
                self.close()
            elif (self.open or self.left) and time.monotonic() >= self.retry_at:
                self.deliver(_PATIENCE)
                self.sample()
        self.leave(patient=True)

    def close(self) -> None:
        """Deliver everything, or keep it for the next writer. The stage is waiting."""
        while not self.deliver(3.0 if self.reason or self.over else _PATIENCE):
            if "is locked" not in self.reason:
                self.keep()
                return
            time.sleep(0.2)  # another process uses the database for a moment

    def deliver(self, patience: float) -> bool:
        """Send what is waiting, the oldest first. False if the store cannot be reached."""
        try:
            self.store.reach(not self.store.client or bool(self.reason), patience)
            self.report(reached=True)
            failed = self.deliver_left()
            for record in list(self.open.values()):
                self.lost += self.store.deliver(record, old=False)
            for key, record in list(self.open.items()):
                self.upload(record)
                if record.told:
                    self.account([])
                    del self.open[key]
                    self.report(ended=key)
        except Exception as error:  # noqa: BLE001 - no error of a store may stop the stage
            self.fail(error)
            return False
        if failed:
            del self.left[failed]  # the store works, so the record is at fault: its file stays
        if not self.left and self.claim:
            self.claim = self.claim.release()
        self.reason, self.pause, self.failures = "", 0.0, 0
        return True

    def fail(self, error: Exception) -> None:
        """Record why the store cannot be reached, and when to try again."""
        self.reason = " ".join(str(error).split())[:200]
        self.failures += 1
        self.pause = min(_RETRY, 2 * self.pause + 1)
        self.retry_at = time.monotonic() + self.pause
        if self.failures == 5:  # a shorter failure is not worth a line
            self.report(warning=f"{self.uri} cannot be reached ({self.reason}); the stage continues, its run is kept")

    def upload(self, record: Record, old: bool = False) -> None:
        """Send a run's files. A file that is gone, or has changed since an earlier stage, is left out."""
        while record.files:
            path = Path(record.files[0]["artifact"])
            try:
                if old and state(path) != record.files[0]["state"]:
                    raise FileNotFoundError("it has changed since then, or is gone")
                self.store.upload(record)
            except Exception as error:
                if not old and (not isinstance(error, OSError) or hasattr(error, "request")):
                    raise  # an error of the store, which may be temporary
                self.lost.append(f"artifact {path} ({error})")
                del record.files[0]

    def find_left(self) -> None:
        """Take over the records that earlier writers of this store left, unless another writer is delivering them."""
        from filelock import FileLock, Timeout

        files = sorted(self.spool.glob(f"{self.mark()}-*.json"))
        if not files:
            return
        claim = FileLock(self.spool / f"{self.mark()}.lock")
        with suppress(OSError, Timeout):
            claim.acquire(timeout=0)
            self.claim = claim
        for path in files if self.claim else []:
            try:
                self.left[path] = Record(**json.loads(path.read_text()))
            except (OSError, ValueError, TypeError) as error:  # already delivered, or damaged
                if path.exists():
                    self.report(warning=f"{path} is damaged and cannot be delivered ({error}); delete it")

    def deliver_left(self) -> Path | None:
        """Deliver the records of earlier writers up to the first that fails, whose path is returned."""
        for path, record in list(self.left.items()):
            try:
                self.lost += self.store.deliver(record, old=True)
                self.upload(record, old=True)
            except Exception:  # noqa: BLE001 - if the store is at fault, the stage's own runs fail too
                return path
            path.unlink(missing_ok=True)
            del self.left[path]
        return None

    def mark(self) -> str:
        """The store's name in file names: without the URI's password, and unchanged when the project moves."""
        local = os.path.relpath(database(self.uri), self.spool.resolve())
        return hashlib.sha256((self.uri if self.store.remote else local).encode()).hexdigest()[:16]

    def keep(self) -> None:
        """Write to files what was not delivered, and report it."""
        with self.keeping:
            kept = list(self.open.values())
            try:
                for record in kept:
                    self.spool.mkdir(parents=True, exist_ok=True)
                    path = self.spool / f"{self.mark()}-{time.time_ns()}.json"
                    path.with_suffix(".partial").write_text(json.dumps(asdict(record)))
                    path.with_suffix(".partial").rename(path)
            except OSError as error:
                self.lost.append(f"{count(kept)} ({error})")
                kept = []
            self.account(kept)
            for key in list(self.open):
                del self.open[key]
                self.report(ended=key)

    def account(self, kept: list[Record]) -> None:
        """Report what is kept and what is lost, if anything is."""
        if self.dropped:
            self.lost.append(f"{self.dropped} points, too many to keep")
        parts = [f"{count(kept)} are kept in {self.spool} and sent by the next stage ({self.reason})"] if kept else []
        if self.lost:
            parts.append(f"lost: {'; '.join(self.lost)}"[:500])
        if parts:
            self.report(warning=f"{self.uri}: {'; '.join(parts)}")
        self.lost, self.dropped = [], 0

    def leave(self, patient: bool = False) -> None:
        """End the process: runs without an end are KILLED, and what cannot be delivered is kept."""
        now = round(time.time() * 1000)
        for record in list(self.open.values()):
            record.end = record.end or ["KILLED", now]
        if patient and self.open:
            self.close()
        self.keep()
        self.exit(0)

    def sample(self) -> None:
        """Read processor, memory and disk every `_SAMPLE` seconds for the latest run."""
        record = next(reversed(self.open.values()), None)
        if record and record.run and not record.sealed and time.monotonic() >= self.sample_at:
            self.sample_at = time.monotonic() + _SAMPLE
            self.store.sample(record)

    def report(self, **message: Any) -> None:
        """Send a report to the stage."""
        with suppress(OSError):  # the stage was killed
            self.stage.write(json.dumps(message) + "\n")


def count(records: list[Record]) -> str:
    """How much is waiting in records, in words."""
    points, files = sum(len(record.points) for record in records), sum(len(record.files) for record in records)
    return f"{points} points and {files} artifacts of {len(records)} runs"


def state(path: Path) -> list[Any]:
    """Names, sizes and times of the files, which distinguish a file or folder from a later one in its place."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files if file.is_file()]


def main() -> None:
    """Serve the stage that started this process."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the writer ends when its input ends
    stage = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # MLflow prints migrations and addresses of pages
    os.dup2(nowhere, 2)
    first = json.loads(sys.stdin.readline())
    writer = Writer(first["uri"], stage, Path(first["spool"]))
    threading.Thread(target=writer.listen, args=(sys.stdin,), daemon=True).start()
    threading.Thread(target=writer.watch, args=(first["stage"],), daemon=True).start()
    writer.serve()


if __name__ == "__main__":
    main()
