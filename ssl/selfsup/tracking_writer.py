"""The process that writes a stage's run to MLflow; `tracking.py` starts it. The only file that imports MLflow.

Reads JSON lines from stdin: the store's URI, then messages that each have the number of a run, to `open` it, with
`metrics` and `artifact`, and to `finish` it. Writes to stdout the runs' ids and what it is doing, so that the stage
knows how long to wait. An end of input without `finish` means that the stage was killed.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

_GATHER = 1.0  # seconds of points that go into one request
_SAMPLE = 15.0  # seconds between two readings of processor, memory and disk
_RETRY = 30.0  # seconds between two tries to reach a store that does not answer
_POINTS = 50_000  # metric values kept while the store does not answer
_TEXT = 6000  # characters of a value, which is what MLflow keeps
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in MLflow's names

Inbox = queue.Queue[dict[str, Any] | None]  # None: no more will come


@dataclass
class Record:
    """A run, and what waits to be sent to it."""

    opening: dict[str, Any]
    run: str = ""  # id, once the store has it
    started: int = 0  # milliseconds
    values: list[tuple[str, str]] = field(default_factory=list)
    points: list[tuple[Any, ...]] = field(default_factory=list)  # name, value, milliseconds, step
    files: list[dict[str, str]] = field(default_factory=list)
    end: tuple[str, int] | None = None  # final status and milliseconds, once the stage has said so


class Writer:
    """Keeps what the stage sends until the store has it."""

    def __init__(self, uri: str, stage: IO[str]):
        self.uri, self.stage = uri, stage
        self.remote = not uri.startswith("sqlite:")
        self.client: Any = None
        self.open: dict[int, Record] = {}
        self.ids: dict[int, str] = {}
        self.down = False
        self.retry_at = self.sample_at = 0.0
        self.monitor: Any = None

    def serve(self, inbox: Inbox) -> None:
        """Deliver until the stage ends."""
        while self.gather(inbox):
            self.sample()
            closing = any(record.end for record in self.open.values())
            if closing or (self.open and time.monotonic() >= self.retry_at):
                self.deliver(closing)
        for record in self.open.values():
            record.end = "KILLED", round(time.time() * 1000)
        if self.open:
            self.deliver(True)

    def gather(self, inbox: Inbox) -> bool:
        """Take in what arrives within `_GATHER` seconds, or until a run is opened or ends. False at the end."""
        until = time.monotonic() + _GATHER
        while (left := until - time.monotonic()) > 0:
            try:
                message = inbox.get(timeout=left)
            except queue.Empty:
                break
            match message:
                case None:
                    return False
                case {"run": number, "open": opening}:
                    self.open[number] = Record(opening)
                    break
                case {"run": number, "finish": status, "time": at}:
                    self.open[number].end = status, at
                    break
                case {"run": number, "artifact": _}:
                    self.open[number].files.append(message)
                case {"run": number, "metrics": values, "step": step, "time": at}:
                    points = self.open[number].points
                    # The store would keep an infinity as 1.8e308, which flattens every curve.
                    points += [(k, v if math.isfinite(v) else math.nan, at, step) for k, v in values.items()]
                    del points[:-_POINTS]
        return True

    def deliver(self, closing: bool) -> None:
        """Send what is waiting, and final statuses; a store that does not answer is asked again later."""
        for attempt in range(5 if closing and not self.remote else 1):  # another process may have locked the file
            time.sleep(attempt * 0.3)
            try:
                self.reach(1.0 if self.down else 2.0)
                for number, record in self.open.items():
                    if not record.run:
                        self.begin(number, record)
                    self.send(record)
                    if record.end:
                        self.ask(self.client.set_terminated, record.run, *record.end)
                self.down = False
                break
            except Exception as error:  # noqa: BLE001 - whatever a store does, the stage goes on
                self.warn(f"the stage goes on without {self.uri}: {error}")
                self.down = True
                self.retry_at = time.monotonic() + _RETRY
        if self.down:
            self.say(state="down")
        for number in [number for number, record in self.open.items() if record.end]:
            del self.open[number]
            self.say(ended=number)

    def reach(self, patience: float) -> None:
        """Connect to the store, unless that is done."""
        if self.remote and (self.down or not self.client):
            self.ask(probe, self.uri, patience)
        if not self.client:
            self.say(state="working")
            from filelock import FileLock
            from mlflow import MlflowClient

            # Two processes that create or migrate one database at the same time break each other.
            with nullcontext() if self.remote else FileLock(f"{database(self.uri)}.lock"):
                self.client = self.ask(MlflowClient, self.uri)

    def begin(self, number: int, record: Record) -> None:
        """Create or reopen a run."""
        opening, tags = record.opening, self.tags(record.opening)
        about = {"tags": tags, "run_name": opening["name"], "start_time": opening["time"]}
        run = self.reopened(opening["resume"], tags) or self.ask(
            self.client.create_run, self.experiment(opening["experiment"]), **about
        )
        record.run, record.started, known = run.info.run_id, run.info.start_time, run.data.params
        record.values = [(key, value) for key, value in opening["values"].items() if name(key) not in known]
        self.ids[number] = record.run
        self.say(run=number, id=record.run)

    def experiment(self, title: str) -> str:
        """The id of the experiment, created if need be, with its artifacts beside a local database."""
        from mlflow.exceptions import MlflowException

        if not (found := self.ask(self.client.get_experiment_by_name, title)):
            place = None if self.remote else str(database(self.uri).with_name("mlartifacts"))
            with suppress(MlflowException):  # another process was faster
                return self.ask(self.client.create_experiment, title, artifact_location=place)
            found = self.ask(self.client.get_experiment_by_name, title)
        return found.experiment_id

    def reopened(self, resume: str | None, tags: dict[str, str]) -> Any:
        """The run to go on with, or None."""
        from mlflow.exceptions import MlflowException

        if not resume:
            return None
        try:
            run = self.ask(self.client.get_run, resume)
        except MlflowException as error:
            if error.get_http_status_code() in (400, 404):  # another store's, or not an id at all
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None  # deleted
        self.ask(self.client.update_run, run.info.run_id, status="RUNNING")
        for key, value in tags.items():
            self.ask(self.client.set_tag, run.info.run_id, key, value)
        return run

    def tags(self, opening: dict[str, Any]) -> dict[str, str]:
        parent = opening["parent"]
        own = {
            "mlflow.source.git.commit": commit(),
            "mlflow.parentRunId": self.ids.get(parent) if isinstance(parent, int) else parent,
        }
        return {name(key): value[:_TEXT] for key, value in (own | opening["tags"]).items() if value}

    def send(self, record: Record) -> None:
        """Send values, points and files; what the store refuses for good is dropped with a warning."""
        from mlflow.entities import Metric, Param

        while params := [Param(name(key), value[:_TEXT]) for key, value in record.values[:100]]:
            self.settle(self.client.log_batch, record.run, params=params)
            del record.values[: len(params)]
        while metrics := [Metric(name(key), *point) for key, *point in record.points[:1000]]:
            self.settle(self.client.log_batch, record.run, metrics=metrics)
            del record.points[: len(metrics)]
        while record.files:
            path, folder = record.files[0]["artifact"], record.files[0]["folder"] or None
            log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
            self.settle(log, record.run, path, folder, state="uploading")
            del record.files[0]

    def settle(self, call: Callable[..., Any], *args: Any, state: str = "asking", **kwargs: Any) -> None:
        """`ask`, but an answer that will never change is a warning: there is no use in asking again."""
        from mlflow.exceptions import MlflowException
        from requests import RequestException

        try:
            self.ask(call, *args, state=state, **kwargs)
        except RequestException:
            raise
        except OSError as error:
            self.warn(f"an artifact is left out: {error}")
        except MlflowException as error:
            if error.get_http_status_code() not in (400, 403, 404, 409, 413):
                raise
            self.warn(f"{self.uri} refuses: {error}")

    def ask(self, call: Callable[..., Any], *args: Any, state: str = "asking", **kwargs: Any) -> Any:
        """Call the store, saying so to the stage, which waits less long for a server than for work done here."""
        self.say(state=state if self.remote else "working")
        return call(*args, **kwargs)

    def sample(self) -> None:
        """Add a reading of this machine every `_SAMPLE` seconds to the latest run, under MLflow's own names."""
        record = next(reversed(self.open.values()), None)
        if record is None or not record.run or time.monotonic() < self.sample_at:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.sample_at = time.monotonic() + _SAMPLE
        if self.monitor:
            self.monitor.collect_metrics()
            now = round(time.time() * 1000)
            step = (now - record.started) // 1000  # seconds since the run began: goes on rising after a resume
            readings = self.monitor.aggregate_metrics().items()
            record.points += [(f"system/{key}", float(value), now, step) for key, value in readings]
        self.monitor = SystemMetricsMonitor(record.run, tracking_uri=self.uri)  # for its sensors, not its thread

    def warn(self, what: str) -> None:
        self.say(warning=" ".join(what.split())[:200])

    def say(self, **message: Any) -> None:
        with suppress(BrokenPipeError):  # the stage was killed
            self.stage.write(json.dumps(message) + "\n")


def probe(uri: str, patience: float) -> None:
    """Raise OSError unless an HTTP server answers within `patience` seconds; any answer will do."""
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health")
        unverified = ssl._create_unverified_context()  # MLflow may know the certificate; nothing is sent here
        with suppress(urllib.error.HTTPError):
            urllib.request.urlopen(plain.geturl(), timeout=patience, context=unverified).close()


def commit() -> str:
    """The commit that the stage runs at, or nothing outside a repository."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return ""
    return git.stdout.strip() if git.returncode == 0 else ""


def database(uri: str) -> Path:  # of sqlite:///PATH
    return Path(uri.partition(":///")[2]).resolve()


def name(key: str) -> str:  # as MLflow allows it
    return _FORBIDDEN.sub("_", key)[:250]


def _read(lines: IO[str], inbox: Inbox) -> None:
    for line in lines:
        inbox.put(json.loads(line))
    inbox.put(None)


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of input says when to stop
    stage = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # MLflow prints of migrations and pages to view
    os.dup2(nowhere, 2)
    uri = json.loads(sys.stdin.readline())
    inbox: Inbox = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin, inbox), daemon=True).start()
    Writer(uri, stage).serve(inbox)
    os._exit(0)  # at once: idle connections have nothing to say


if __name__ == "__main__":
    main()
