"""A run as it waits to be delivered, and the store that takes it. The only file that imports MLflow, and does it late.

Whatever was sent once may be sent again after an answer that was lost: a run is found by its key before it is created,
values and files are the same ones, and a point that the store has already is no second point. A stage that goes on from
a checkpoint repeats steps that it had sent before it was killed: they are left out.
"""

from __future__ import annotations

import re
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_TEXT = 6000  # characters of a value, which is what MLflow keeps
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in MLflow's names
_NEVER = (400, 403, 404, 409)  # statuses of a store that will not think better of it


@dataclass
class Record:
    """A run, and what waits to be sent to it. All fields are plain data."""

    opening: dict[str, Any]
    run: str = ""  # id, once the store has it
    started: int = 0  # milliseconds
    values: list[list[str]] = field(default_factory=list)  # key, value
    points: list[list[Any]] = field(default_factory=list)  # name, value, milliseconds, step
    files: list[dict[str, Any]] = field(default_factory=list)
    end: list[Any] | None = None  # final status and milliseconds, once the stage has said so
    told: bool = False  # the store knows the end
    last: dict[str, list[float]] = field(default_factory=dict)  # step and value that curves had before, by their names


class Store:
    """What MLflow has at a URI. Methods raise whatever MLflow, its client or the file system raise."""

    def __init__(self, uri: str):
        self.uri = uri
        self.remote = not uri.startswith("sqlite:")
        self.client: Any = None
        self.ids: dict[str, str] = {}  # of runs, by key
        self.monitor: Any = None

    def reach(self, check: bool, patience: float) -> None:
        """Connect, unless that is done. `check` first asks a server for a sign of life within `patience` seconds."""
        if self.remote and check:
            probe(self.uri, patience)
        if not self.client:
            from filelock import FileLock
            from mlflow import MlflowClient

            # Two processes that create or migrate one database at the same time break each other.
            with nullcontext() if self.remote else FileLock(f"{database(self.uri)}.lock"):
                self.client = MlflowClient(self.uri)

    def deliver(self, record: Record, old: bool) -> Iterator[str]:
        """Send all but the files; yields what was refused for good. An `old` end does not undo a later one."""
        from mlflow.entities import Metric, Param

        if not record.run:
            self.begin(record)
        while params := [Param(name(key), value[:_TEXT]) for key, value in record.values[:100]]:
            yield from self.settle(f"{len(params)} values", params=params, run_id=record.run)
            del record.values[: len(params)]
        while points := record.points[:1000]:
            if metrics := [Metric(name(key), *point) for key, *point in points if old or new(record, key, *point)]:
                yield from self.settle(f"{len(metrics)} points", metrics=metrics, run_id=record.run)
            del record.points[: len(points)]
        if record.end and not record.told:
            status, at = record.end
            if not old or (self.client.get_run(record.run).info.end_time or 0) < at:
                self.client.set_terminated(record.run, status, at)
            record.told = True

    def settle(self, what: str, **batch: Any) -> Iterator[str]:
        """Send a batch; yields `what`, with the reason, when the store itself refuses it for good."""
        from mlflow.exceptions import MlflowException, RestException

        try:
            self.client.log_batch(**batch)
        except MlflowException as error:
            # An answer that is no JSON is not the store's own, but that of something in between.
            own = isinstance(error, RestException) or not self.remote
            if not own or error.get_http_status_code() not in _NEVER:
                raise
            yield f"{what} ({error})"

    def upload(self, record: Record) -> None:
        """Send the first file or folder that waits."""
        path, folder = record.files[0]["artifact"], record.files[0]["folder"] or None
        log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        log(record.run, path, folder)
        del record.files[0]

    def begin(self, record: Record) -> None:
        """Create the run, or go on with the one that has its key."""
        opening = record.opening
        experiment = self.experiment(opening["experiment"])
        own = {
            "run_key": opening["key"],
            "mlflow.source.git.commit": commit(),
            "mlflow.parentRunId": self.find(experiment, opening["parent"]) if opening["parent"] else "",
        }
        tags = {name(key): value[:_TEXT] for key, value in (own | opening["tags"]).items() if value}
        known: dict[str, str] = {}
        if found := self.find(experiment, opening["key"]):
            run = self.client.get_run(found)
            known = run.data.params
            record.last = {last.key: [last.step, last.value] for last in run.data.to_proto().metrics}
            if not record.end:
                self.client.update_run(found, status="RUNNING")
            for key, value in tags.items():
                if run.data.tags.get(key) != value:
                    self.client.set_tag(found, key, value)
        else:
            run = self.client.create_run(experiment, opening["time"], tags, opening["name"])
        record.values = [[key, value] for key, value in opening["values"].items() if name(key) not in known]
        record.started = run.info.start_time
        record.run = self.ids[opening["key"]] = run.info.run_id

    def find(self, experiment: str, key: str) -> str:
        """The id of the run with this key, or nothing."""
        if key not in self.ids:
            for run in self.client.search_runs([experiment], f"tags.run_key = '{key}'", max_results=1):
                self.ids[key] = run.info.run_id
        return self.ids.get(key, "")

    def experiment(self, title: str) -> str:
        """The id of the experiment, created if need be, with its artifacts beside a local database."""
        from mlflow.exceptions import MlflowException

        if not (found := self.client.get_experiment_by_name(title)):
            place = None if self.remote else str(database(self.uri).with_name("mlartifacts"))
            with suppress(MlflowException):  # another process was faster
                return self.client.create_experiment(title, artifact_location=place)
            found = self.client.get_experiment_by_name(title)
        return found.experiment_id

    def sample(self, record: Record) -> None:
        """Add a reading of this machine to a run, under MLflow's own names; the first one only begins to count."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self.monitor:
            self.monitor.collect_metrics()
            now = round(time.time() * 1000)
            step = (now - record.started) // 1000  # seconds since the run began: goes on rising after a resume
            readings = self.monitor.aggregate_metrics().items()
            record.points += [[f"system/{key}", float(value), now, step] for key, value in readings]
        self.monitor = SystemMetricsMonitor(record.run, tracking_uri=self.uri)  # for its sensors, not its thread


def new(record: Record, key: str, value: float, _: int, step: int) -> bool:
    """False for what a run that goes on from a checkpoint says once more. A step's value may change."""
    known_step, known = record.last.get(name(key), (-1, 0.0))
    return step > known_step or (step == known_step and value != known)


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


def database(uri: str) -> Path:  # of sqlite:///PATH?OPTIONS
    return Path(uri.partition(":///")[2].partition("?")[0].removeprefix("file:")).resolve()


def name(key: str) -> str:  # as MLflow allows it
    return _FORBIDDEN.sub("_", key)[:250]
