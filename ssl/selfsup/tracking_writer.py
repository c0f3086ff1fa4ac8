"""The process that writes a stage's run to MLflow; `tracking.py` starts it. The only file that imports MLflow.

Reads JSON lines from stdin: first what it needs to open the run, then metrics and artifacts, last `finish`. Writes to
stdout the run's id and what it is doing, so that the stage knows how long to wait. An end of input without `finish`
means that the stage was killed.
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
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

_GATHER = 1.0  # seconds of points that go into one request
_SAMPLE = 15.0  # seconds between two readings of processor, memory and disk
_RETRY = 30.0  # seconds between two tries to reach a store that does not answer
_TRIES = 5  # at the end, for a database that another process has locked
_POINTS = 50_000  # metric values kept while the store does not answer
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in MLflow's names


class Writer:
    """Keeps what the stage sends until the store has it."""

    def __init__(self, opening: dict[str, Any], say: Callable[[dict[str, str]], None]):
        self.opening, self.say = opening, say
        self.uri: str = opening["uri"]
        self.remote = not self.uri.startswith("sqlite:")
        self.note = Path(opening["resume"]) if opening["resume"] else None  # file of the run's id
        self.client: Any = None
        self.run = ""  # id
        self.started = 0  # milliseconds
        self.values: list[Any] = []
        self.points: list[Any] = []
        self.files: list[dict[str, str]] = []
        self.down = False
        self.retry_at = self.sample_at = 0.0
        self.monitor: Any = None

    def serve(self, inbox: queue.Queue[dict[str, Any]]) -> None:
        """Deliver until the stage ends."""
        status = None
        while True:
            if status or time.monotonic() >= self.retry_at:
                self.deliver(status)
            if status:
                return
            status = self.gather(inbox)
            self.sample()

    def gather(self, inbox: queue.Queue[dict[str, Any]]) -> str | None:
        """Take in what arrives within `_GATHER` seconds. Returns the final status if the stage has ended."""
        until = time.monotonic() + _GATHER
        while (left := until - time.monotonic()) > 0:
            try:
                message = inbox.get(timeout=left)
            except queue.Empty:
                break
            if "finish" in message:
                return message["finish"]
            if "artifact" in message:
                self.files.append(message)
            else:
                points = [(key, value, message["time"], message["step"]) for key, value in message["metrics"].items()]
                self.points += points
                del self.points[:-_POINTS]
        return None

    def deliver(self, status: str | None) -> None:
        """Send what is waiting, and the final status. A store that does not answer is tried again later."""
        for attempt in range(_TRIES if status and not self.remote else 1):
            time.sleep(attempt * 0.3)
            try:
                # A server known to be down is asked once more at the end, briefly.
                self.open(1.0 if self.down else 2.0)
                self.send()
                if status:
                    self.ask(self.client.set_terminated, self.run, status)
            except Exception as error:  # noqa: BLE001 - whatever a store does, the stage goes on
                self.warn(f"the stage goes on without {self.uri}: {error}")
                self.down = True
                self.retry_at = time.monotonic() + _RETRY
            else:
                self.down = False
                return
        self.say({"state": "down"})

    def open(self, patience: float) -> None:
        """Reach the store, and create or reopen the run unless it is open already."""
        if self.remote and (self.down or not self.client):
            self.say({"state": "asking"})
            probe(self.uri, patience)
            self.say({"state": "working"})
        if self.run:
            return
        from filelock import FileLock
        from mlflow import MlflowClient

        # Two processes that create or migrate one database at the same time break each other.
        with nullcontext() if self.remote else FileLock(f"{database(self.uri)}.lock"):
            self.client = self.ask(MlflowClient, self.uri)
            experiment = self.experiment()
        run = self.reopened() or self.ask(
            self.client.create_run, experiment, tags=self.tags(), run_name=self.opening["name"]
        )
        self.started = run.info.start_time
        known = run.data.params
        self.values = [(key, value) for key, value in self.opening["values"].items() if name(key) not in known]
        self.run = run.info.run_id
        if self.note:
            self.note.parent.mkdir(parents=True, exist_ok=True)
            self.note.write_text(self.run)
        self.say({"id": self.run})

    def experiment(self) -> str:
        """The id of the experiment, created if need be, with its artifacts beside a local database."""
        from mlflow.exceptions import MlflowException

        title = self.opening["experiment"]
        place = None if self.remote else str(database(self.uri).with_name("mlartifacts"))
        found = self.ask(self.client.get_experiment_by_name, title)
        if found:
            return found.experiment_id
        try:
            return self.ask(self.client.create_experiment, title, artifact_location=place)
        except MlflowException:  # another process was faster
            if found := self.ask(self.client.get_experiment_by_name, title):
                return found.experiment_id
            raise

    def reopened(self) -> Any:
        """The run to go on with, or None."""
        from mlflow.exceptions import MlflowException

        if not self.note or not self.note.exists():
            return None
        try:
            run = self.ask(self.client.get_run, self.note.read_text().strip())
        except MlflowException as error:
            if error.get_http_status_code() in (400, 404):  # another store's, or not an id at all
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self.ask(self.client.update_run, run.info.run_id, status="RUNNING")
        for key, value in self.tags().items():
            self.ask(self.client.set_tag, run.info.run_id, key, value)
        return run

    def tags(self) -> dict[str, str]:
        from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

        git = subprocess.run(["git", "rev-parse", "HEAD"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
        commit = {"mlflow.source.git.commit": git.stdout.strip()} if git.returncode == 0 else {}
        return {name(key): value[:MAX_TAG_VAL_LENGTH] for key, value in (commit | self.opening["tags"]).items()}

    def send(self) -> None:
        """Send values, points and files; what the store refuses for good is dropped with a warning."""
        from mlflow.entities import Metric, Param
        from mlflow.utils import validation

        while batch := self.values[: validation.MAX_PARAMS_TAGS_PER_BATCH]:
            cut = [Param(name(key), value[: validation.MAX_PARAM_VAL_LENGTH]) for key, value in batch]
            self.settle(self.client.log_batch, self.run, params=cut)
            del self.values[: len(batch)]
        while batch := self.points[: validation.MAX_METRICS_PER_BATCH]:
            # The store would keep an infinity as 1.8e308, which flattens every curve.
            finite = [(key, value if math.isfinite(value) else math.nan, at, step) for key, value, at, step in batch]
            self.settle(self.client.log_batch, self.run, metrics=[Metric(name(key), *rest) for key, *rest in finite])
            del self.points[: len(batch)]
        while self.files:
            path, folder = self.files[0]["artifact"], self.files[0]["folder"] or None
            log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
            self.settle(log, self.run, path, folder, state="uploading")
            del self.files[0]

    def settle(self, call: Callable[..., Any], *args: Any, state: str = "asking", **kwargs: Any) -> None:
        """`ask`, but an answer that will never change is a warning: there is no use in asking again."""
        from mlflow.exceptions import MlflowException

        try:
            self.ask(call, *args, state=state, **kwargs)
        except FileNotFoundError as error:
            self.warn(f"artifact not found: {error.filename}")
        except MlflowException as error:
            if error.get_http_status_code() not in (400, 403, 404, 409, 413):
                raise
            self.warn(f"{self.uri} refuses: {error}")

    def ask(self, call: Callable[..., Any], *args: Any, state: str = "asking", **kwargs: Any) -> Any:
        """Call the store, saying so to the stage, which waits less long for a server than for work done here."""
        self.say({"state": state if self.remote else "working"})
        try:
            return call(*args, **kwargs)
        finally:
            self.say({"state": "working"})

    def sample(self) -> None:
        """Add a reading of this machine every `_SAMPLE` seconds, under the names that MLflow's pages show."""
        if not self.run or time.monotonic() < self.sample_at:
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        self.sample_at = time.monotonic() + _SAMPLE
        if self.monitor:
            self.monitor.collect_metrics()
            now = round(time.time() * 1000)
            step = (now - self.started) // 1000  # seconds since the run began: goes on rising after a resume
            readings = self.monitor.aggregate_metrics().items()
            self.points += [(f"system/{key}", float(value), now, step) for key, value in readings]
        # Only its sensors are used, never its thread; a new one holds no old readings.
        self.monitor = SystemMetricsMonitor(self.run, tracking_uri=self.uri)

    def warn(self, what: str) -> None:
        self.say({"warning": " ".join(what.split())[:200]})


def probe(uri: str, patience: float) -> None:
    """Raise OSError unless an HTTP server answers within `patience` seconds; any answer will do."""
    parts = urlsplit(uri)
    if parts.scheme not in ("http", "https"):
        return
    host = parts.netloc.rpartition("@")[2]
    try:
        urllib.request.urlopen(f"{parts.scheme}://{host}{parts.path.rstrip('/')}/health", timeout=patience).close()
    except urllib.error.HTTPError:
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow may know the certificate
            raise OSError(error.reason) from None


def database(uri: str) -> Path:
    """The file of `sqlite:///PATH`."""
    return Path(uri.partition(":///")[2]).resolve()


def name(key: str) -> str:
    """A name as MLflow allows it."""
    return _FORBIDDEN.sub("_", key)[:250]


def _read(lines: IO[str], inbox: queue.Queue[dict[str, Any]]) -> None:
    for line in lines:
        inbox.put(json.loads(line))
    inbox.put({"finish": "KILLED"})


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the end of input says when to stop
    stage = os.fdopen(os.dup(1), "w", buffering=1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)  # MLflow prints of migrations and pages to view
    os.dup2(nowhere, 2)
    opening = json.loads(sys.stdin.readline())
    inbox: queue.Queue[dict[str, Any]] = queue.Queue()
    threading.Thread(target=_read, args=(sys.stdin, inbox), daemon=True).start()

    def say(message: dict[str, str]) -> None:
        with suppress(BrokenPipeError):  # the stage was killed
            stage.write(json.dumps(message) + "\n")

    writer = Writer(opening, say)
    writer.serve(inbox)
    if not writer.down:
        say({"state": "done"})
    os._exit(0)  # at once: a client's idle connections must not hold up the stage


if __name__ == "__main__":
    main()
