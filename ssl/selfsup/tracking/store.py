"""A run as it waits to be delivered, and the store that takes it. The only file that imports MLflow, and does it late.

Whatever was sent once may be sent again after an answer that was lost: a run is found by its key before it is created,
values and files are the same ones, and a point that the store has already is no second point. A stage that goes on from
a checkpoint repeats steps that it had sent before it was killed: they are left out.
"""

from __future__ import annotations

import re
import sqlite3
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_ARTIFACTS = "mlartifacts"  # the folder beside a local database
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
    sealed: bool = False  # the run had finished before it was opened again: what it holds stays
    last: dict[str, int] = field(default_factory=dict)  # the last step that curves had before, by their names


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
                client = MlflowClient(self.uri)
                if not self.remote:
                    find_again(database(self.uri))
            self.client = client

    def deliver(self, record: Record, old: bool) -> Iterator[str]:
        """Send all but the files; yields what was refused for good. An `old` end does not undo a later one."""
        from mlflow.entities import Metric, Param

        if not record.run:
            self.begin(record)
        while params := [Param(name(key), value[:_TEXT]) for key, value in record.values[:100]]:
            yield from self.settle(f"{len(params)} values", params=params, run_id=record.run)
            del record.values[: len(params)]
        early = old and not record.sealed  # from before a resumption: new, although the run has later steps
        while points := record.points[:1000]:
            if metrics := [Metric(name(key), *point) for key, *point in points if early or new(record, key, point[-1])]:
                yield from self.settle(f"{len(metrics)} points", metrics=metrics, run_id=record.run)
            del record.points[: len(points)]
        if record.end and not record.told:
            status, at = record.end
            if not record.sealed and not (old and self.ended(record) >= at):
                self.client.set_terminated(record.run, status, at)
            record.told = True

    def ended(self, record: Record) -> int:
        """When the store's run ended, in milliseconds; 0 while it runs."""
        return self.client.get_run(record.run).info.end_time or 0

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
        if not record.sealed:
            log(record.run, path, folder)
        del record.files[0]

    def begin(self, record: Record) -> None:
        """Create the run, or continue the one that has its key. One that had finished by then is sealed."""
        opening = record.opening
        experiment = self.experiment(opening["experiment"])
        own = {
            "run_key": opening["key"],
            "mlflow.source.git.commit": commit(),
            "mlflow.parentRunId": self.find(experiment, opening["parent"]) if opening["parent"] else "",
            "training": self.find(experiment, opening["training"]) if opening.get("training") else "",
        }
        tags = {name(key): value[:_TEXT] for key, value in (own | opening["tags"]).items() if value}
        known: dict[str, str] = {}
        if found := self.find(experiment, opening["key"]):
            run = self.client.get_run(found)
            known = run.data.params
            record.last = {last.key: last.step for last in run.data.to_proto().metrics}
            record.sealed = run.info.status == "FINISHED" and run.info.end_time <= opening["time"]
            if not record.end and not record.sealed:
                self.client.update_run(found, status="RUNNING")
            for key, value in tags.items() if not record.sealed else ():
                if run.data.tags.get(key) != value:
                    self.client.set_tag(found, key, value)
        else:
            run = self.client.create_run(experiment, opening["time"], tags, opening["name"])
        values = {} if record.sealed else opening["values"]
        record.values = [[key, value] for key, value in values.items() if name(key) not in known]
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
            place = None if self.remote else artifacts(database(self.uri))
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


def new(record: Record, key: str, step: int) -> bool:
    """False for what a run that is opened again says once more: a step that has a value keeps it."""
    return step > record.last.get(name(key), -1)


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


def artifacts(path: Path) -> str:
    """Where the artifacts of a local database lie: beside it. MLflow takes the place for quoted."""
    return str(path.with_name(_ARTIFACTS)).replace("%", "%25")


def find_again(path: Path) -> None:
    """Have a local database that was moved, renamed or copied with its folder look for artifacts beside it again.

    MLflow notes absolute places: a copy would write into the original. A place that is no folder of this project's kind
    of name is left as it is. Raises `sqlite3.Error`.
    """
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        places = [place for (place,) in database.execute("SELECT artifact_location FROM experiments") if place]
        for old in {place for place in places if place.startswith("/") and place.endswith(f"/{_ARTIFACTS}")}:
            moved = (artifacts(path), len(old) + 1, old + "/", len(old) + 1)
            if old != moved[0]:
                below = "WHERE substr(artifact_uri, 1, ?4) = ?3"
                database.execute(f"UPDATE runs SET artifact_uri = ?1 || substr(artifact_uri, ?2) {below}", moved)
                database.execute(
                    "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (moved[0], old)
                )


def name(key: str) -> str:  # as MLflow allows it
    return _FORBIDDEN.sub("_", key)[:250]


if __name__ == "__main__":  # as `make ui` does, with the database
    if Path(sys.argv[1]).exists():
        find_again(Path(sys.argv[1]).resolve())
