"""A real MLflow server with faults on demand, and a writer in a thread, where MLflow is imported already."""

from __future__ import annotations

import io
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from werkzeug.serving import WSGIRequestHandler, make_server

from selfsup.params import Tracking
from selfsup.tracking import runs as tracking
from selfsup.tracking import writer as tracking_writer

if TYPE_CHECKING:
    import pytest

Fault = Callable[[dict, Callable, Callable], Iterable[bytes]]  # environ, start_response, the true application


class ThreadedWriter:
    """Stands in for the writer's process: the same code between the same pipes."""

    def __init__(self, *_: Any, **__: Any):
        reading, writing = os.pipe(), os.pipe()
        self.stdin, self.stdout = os.fdopen(reading[1], "wb", 0), os.fdopen(writing[0], "rb", 0)
        self.thread = threading.Thread(
            target=self.serve, args=(os.fdopen(reading[0]), os.fdopen(writing[1], "w", 1)), daemon=True
        )
        self.thread.start()

    def serve(self, stdin: io.TextIOBase, stdout: io.TextIOBase) -> None:
        class Writer(tracking_writer.Writer):
            def exit(self, _: int) -> None:
                with suppress(OSError):  # nobody listens
                    stdout.close()

        first = json.loads(stdin.readline())
        writer = Writer(first["uri"], stdout, Path(first["spool"]))
        threading.Thread(target=writer.listen, args=(stdin,), daemon=True).start()
        writer.serve()


class Server:
    """MLflow's own application, on a port that is kept while the server is down."""

    def __init__(self, folder: Path):
        os.environ |= {"_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder}/server.db"}
        os.environ |= {"_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/", "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true"}
        os.environ |= {"_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts")}  # read when MLflow is imported
        from mlflow import MlflowClient
        from mlflow.server import app

        self.app, self.artifacts = app, folder / "artifacts"
        self.client = MlflowClient(f"sqlite:///{folder}/server.db")
        self.fault: Fault | None = None
        self.asked: list[str] = []
        self.server: Any = None
        self.port = 0
        self.up()
        self.uri = f"http://127.0.0.1:{self.port}"

    def up(self) -> None:
        self.server = make_server("127.0.0.1", self.port, self.answer, threaded=True, request_handler=Quiet)
        self.server.daemon_threads = True
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
        self.server = None

    def answer(self, environ: dict, start_response: Callable) -> Iterable[bytes]:
        self.asked.append(environ["PATH_INFO"])
        if self.fault:
            return self.fault(environ, start_response, self.app)
        return self.app(environ, start_response)


class Quiet(WSGIRequestHandler):
    def log(self, *_: Any) -> None:
        pass


def says(status: str, body: bytes, kind: str = "application/json") -> Fault:
    """Answers this to everything."""

    def fault(_environ: dict, start_response: Callable, _app: Callable) -> Iterable[bytes]:
        start_response(status, [("Content-Type", kind), ("Content-Length", str(len(body)))])
        return [body]

    return fault


def cut(environ: dict, start_response: Callable, app: Callable) -> Iterable[bytes]:
    """Does what it is asked, and closes the connection in the middle of saying so."""
    b"".join(app(environ, lambda *_: None))
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "1000")])
    return [b'{"run": ']


def trickle(_environ: dict, start_response: Callable, _app: Callable) -> Iterable[bytes]:
    """A byte now and then, for ten minutes."""
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", "1000")])

    def slowly() -> Iterable[bytes]:
        for _ in range(1000):
            yield b" "
            time.sleep(0.6)

    return slowly()


def late(seconds: float) -> Fault:
    """Answers rightly, but late."""

    def fault(environ: dict, start_response: Callable, app: Callable) -> Iterable[bytes]:
        time.sleep(seconds)
        return app(environ, start_response)

    return fault


def in_a_thread(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Stages of this test have their writers in threads, quick to try again, and their files in `folder`."""
    monkeypatch.setattr(tracking, "_channels", {})
    monkeypatch.setattr(tracking, "subprocess", Popen)
    for name, seconds in {"_GATHER": 0.05, "_RETRY": 0.1, "_SAMPLE": 1000.0}.items():
        monkeypatch.setattr(tracking_writer, name, seconds)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    for name, value in tracking._ENVIRONMENT.items():
        monkeypatch.setenv(name, value)


class Popen:
    Popen = ThreadedWriter
    PIPE = subprocess.PIPE


def store(uri: str | None, experiment: str) -> Tracking:
    return Tracking(enabled=True, uri=uri, experiment=experiment)


def wait_for(what: Callable[[], object], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def recorded(client: Any, experiment: str) -> dict[str, tuple[str, list[tuple[int, float]]]]:
    """Status and points of the curve `loss` of each run of an experiment, by the run's name, which must be single."""
    found = client.get_experiment_by_name(experiment)
    runs = client.search_runs([found.experiment_id]) if found else []
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {
        run.info.run_name: (
            run.info.status,
            sorted((point.step, point.value) for point in client.get_metric_history(run.info.run_id, "loss")),
        )
        for run in runs
    }
