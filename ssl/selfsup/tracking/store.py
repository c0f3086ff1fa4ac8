"""A run as it waits to be delivered, and the store that takes it. The only file that imports MLflow, and does it late.

Requests are idempotent, as a lost reply may make the writer repeat one: a run is looked up by its key before it is
created, and values, files and points that are sent twice are stored once. A stage that resumes from a checkpoint sends
some steps again: these are left out.
"""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_ARTIFACTS = "mlartifacts"  # the folder beside a local database
_TEXT = 6000  # characters of a value that MLflow keeps
_FORBIDDEN = re.compile(r"[^\w\-. :/]", re.ASCII)  # in MLflow's names
_PERMANENT = (400, 403, 404, 409)  # statuses that no retry changes


@dataclass
class Record:
    """A run, and what waits to be sent to it. All fields are plain data."""

    opening: dict[str, Any]
    run: str = ""  # id, once the store has the run
    started: int = 0  # milliseconds
    values: list[list[str]] = field(default_factory=list)  # key, value
    points: list[list[Any]] = field(default_factory=list)  # name, value, milliseconds, step
    files: list[dict[str, Any]] = field(default_factory=list)
    end: list[Any] | None = None  # final status and milliseconds, once the stage has ended the run
    told: bool = False  # the store knows the end
    sealed: bool = False  # the run had finished before it was opened again: what it holds stays
    last: dict[str, int] = field(default_factory=dict)  # last step of each curve before this opening, by name


class Store:
    """What MLflow has at a URI. Methods raise whatever MLflow, its client or the file system raise."""

    def __init__(self, uri: str):
        self.uri = uri
        self.remote = not uri.startswith("sqlite:")
        self.client: Any = None
        self.ids: dict[str, str] = {}  # of runs, by key
        self.monitor: Any = None

    def reach(self, check: bool, patience: float) -> None:
        """Connect, unless connected. `check`: first ask a server for a sign of life within `patience` seconds."""
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
        """Send everything but the files. Yields what is refused for good.

        `old`: an earlier stage left the record behind. Its end does not undo a later one.
        """
        from mlflow.entities import Metric, Param

        if not record.run:
            self.begin(record)
        while params := [Param(name(key), value[:_TEXT]) for key, value in record.values[:100]]:
            yield from self.settle(f"{len(params)} values", params=params, run_id=record.run)
            del record.values[: len(params)]
        # An old record precedes the resumption of its run: its points are new, although the run has later steps.
        early = old and not record.sealed
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
        """When the store's run ended, in milliseconds. 0 while it is running."""
        return self.client.get_run(record.run).info.end_time or 0

    def settle(self, what: str, **batch: Any) -> Iterator[str]:
        """Send a batch. Yields `what` with the reason if MLflow itself refuses it for good."""
        from mlflow.exceptions import MlflowException, RestException

        try:
            self.client.log_batch(**batch)
        except MlflowException as error:
            # A reply that is not JSON comes from a proxy, not from MLflow.
            own = isinstance(error, RestException) or not self.remote
            if not own or error.get_http_status_code() not in _PERMANENT:
                raise
            yield f"{what} ({error})"

    def upload(self, record: Record) -> None:
        """Send the first of the waiting files and folders."""
        path, folder = record.files[0]["artifact"], record.files[0]["folder"] or None
        log = self.client.log_artifacts if Path(path).is_dir() else self.client.log_artifact
        if not record.sealed:
            log(record.run, path, folder)
        del record.files[0]

    def begin(self, record: Record) -> None:
        """Create the run, or continue the run that has its key. A run that had already finished is sealed."""
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
        """The id of the run with this key, empty if there is none."""
        if key not in self.ids:
            for run in self.client.search_runs([experiment], f"tags.run_key = '{key}'", max_results=1):
                self.ids[key] = run.info.run_id
        return self.ids.get(key, "")

    def experiment(self, title: str) -> str:
        """The id of the experiment, which is created if it is missing, with its artifacts beside a local database."""
        from mlflow.exceptions import MlflowException

        if not (found := self.client.get_experiment_by_name(title)):
            place = None if self.remote else artifacts(database(self.uri))
            with suppress(MlflowException):  # another process was faster
                return self.client.create_experiment(title, artifact_location=place)
            found = self.client.get_experiment_by_name(title)
        return found.experiment_id

    def sample(self, record: Record) -> None:
        """Add a reading of this machine to a run, under MLflow's own names. The first one only starts the counters."""
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        if self.monitor:
            self.monitor.collect_metrics()
            now = round(time.time() * 1000)
            step = (now - record.started) // 1000  # seconds since the run started, also after a resumption
            readings = self.monitor.aggregate_metrics().items()
            record.points += [[f"system/{key}", float(value), now, step] for key, value in readings]
        self.monitor = SystemMetricsMonitor(record.run, tracking_uri=self.uri)  # for its sensors, not its thread


def new(record: Record, key: str, step: int) -> bool:
    """Whether a point is after the last step that its curve had before this opening: what is stored stays."""
    return step > record.last.get(name(key), -1)


def probe(uri: str, patience: float) -> None:
    """Raise OSError unless an HTTP server answers within `patience` seconds. Any answer will do."""
    import requests

    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        plain = parts._replace(netloc=parts.netloc.rpartition("@")[2], path=f"{parts.path.rstrip('/')}/health")
        # MLflow may know the certificate. Nothing secret is sent here, not even what a .netrc holds.
        requests.get(plain.geturl(), timeout=patience, verify=False, auth=lambda request: request, stream=True).close()


def commit() -> str:
    """The commit that the stage runs at, empty outside a repository."""
    try:
        git = subprocess.run(["git", "rev-parse", "HEAD"], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except OSError:
        return ""
    return git.stdout.strip() if git.returncode == 0 else ""


def database(uri: str) -> Path:
    """The file of sqlite:///PATH?OPTIONS, in which `%20` is a space, as for SQLAlchemy."""
    return Path(unquote(uri.partition(":///")[2].partition("?")[0]).removeprefix("file:")).resolve()


def artifacts(path: Path) -> str:
    """Location of the artifacts of a local database: beside it. MLflow reads a location as quoted, like a URL."""
    return str(path.with_name(_ARTIFACTS)).replace("%", "%25")


def find_again(path: Path) -> None:
    """Let a local database that was moved, renamed or copied with its folder find its artifacts beside it again.

    MLflow stores absolute locations, so a copy would write into the original. An experiment is only changed if this
    package recorded all its runs, and if its location is gone or beside another database. Raises `sqlite3.Error`.
    """
    new = artifacts(path)
    foreign = "SELECT experiment_id FROM runs WHERE run_uuid NOT IN (SELECT run_uuid FROM tags WHERE key = 'run_key')"
    ours = f"SELECT experiment_id, artifact_location FROM experiments WHERE experiment_id NOT IN ({foreign})"
    with closing(sqlite3.connect(path, timeout=60)) as database, database:
        for experiment, old in database.execute(ours).fetchall():
            if old != new and old and _left_behind(old, path.name):
                database.execute(
                    "UPDATE runs SET artifact_uri = ?1 || substr(artifact_uri, ?2) "
                    "WHERE experiment_id = ?3 AND substr(artifact_uri, 1, ?2) = ?4",
                    (new + "/", len(old) + 1, experiment, old + "/"),
                )
                renamed = "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?"
                database.execute(renamed, (new, experiment))


def _left_behind(location: str, database: str) -> bool:
    """Whether artifacts of this package were here, and are gone or belong to the database that was copied."""
    folder = Path(unquote(location))
    kind = location.startswith("/") and folder.name == _ARTIFACTS
    return kind and (not folder.exists() or folder.with_name(database).exists())


def name(key: str) -> str:
    """A key with the characters that MLflow does not allow replaced."""
    return _FORBIDDEN.sub("_", key)[:250]


if __name__ == "__main__":  # as `make ui` does, with the database
    if Path(sys.argv[1]).exists():
        find_again(Path(sys.argv[1]).resolve())
