"""No store or writer, slow, dead or wrong, holds up a stage or says more than one line."""

import json
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from selfsup.params import Tracking
from selfsup.tracking import runs as tracking


@pytest.fixture(autouse=True)
def no_writers(monkeypatch, tmp_path):
    """Each test has its own: a stage keeps the writer of a store, and remembers one that it has given up."""
    monkeypatch.setattr(tracking, "_channels", {})
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


@pytest.fixture
def silent_server():
    """Accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def dying_server():
    """Answers whether it is well, then nothing."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path == "/health":
                self.send_response(200)
                self.end_headers()
            else:
                over.wait(60)

        do_POST = do_GET

        def log_message(self, *_):
            pass

    over = threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    over.set()
    server.shutdown()


def stage(uri: str) -> float:
    """A stage's dealings with the store: the seconds that they held it up."""
    began = time.monotonic()
    with tracking.start(Tracking(enabled=True, uri=uri, experiment="e"), "pretrain", "p", values={"a": 1}) as run:
        for step in range(100):
            run.metrics({"loss": 1.0}, step)
        run.artifact(__file__)
    return time.monotonic() - began


@pytest.mark.parametrize("uri", ["http://name:secret@127.0.0.1:9", "https://127.0.0.1:9/path"])
def test_a_server_that_is_down(uri, capfd):
    held = stage(uri)
    assert held < 30
    out, error = capfd.readouterr()
    assert out == ""
    assert len(error.splitlines()) == 1
    assert "127.0.0.1:9" in error
    assert "secret" not in error


def test_a_server_that_never_answers(silent_server, capfd):
    held = stage(silent_server)
    assert held < 30
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1
    assert silent_server in error


def test_a_server_that_falls_silent(dying_server, capfd, monkeypatch):
    monkeypatch.setattr(tracking, "_REACHED", 8.0)
    stage(dying_server)  # importing MLflow counts here, so the time says little
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1
    assert dying_server in error


def test_a_uri_that_nobody_knows(capfd):
    stage("carrier-pigeon://coop")
    error = capfd.readouterr().err
    assert len(error.splitlines()) == 1
    assert "carrier-pigeon://coop" in error


def silent_writer(monkeypatch, tmp_path, said: str) -> None:
    """A writer that says one thing, then neither reads nor speaks."""
    script = tmp_path / "writer.py"
    script.write_text(f"import sys, time\nprint({said!r}, flush=True)\ntime.sleep(60)\n")
    monkeypatch.setattr(tracking, "_WRITER", script)


def test_a_writer_that_waits_too_long_is_left_alone(monkeypatch, tmp_path, capfd):
    silent_writer(monkeypatch, tmp_path, json.dumps({"reached": False}))
    monkeypatch.setattr(tracking, "_UNREACHED", 0.2)
    assert stage("http://127.0.0.1:9") < 30
    (line,) = capfd.readouterr().err.splitlines()
    assert "is slow" in line


def test_points_never_wait_for_room(monkeypatch, tmp_path, capfd):
    silent_writer(monkeypatch, tmp_path, "{}")
    monkeypatch.setattr(tracking, "_BACKLOG", 300_000)
    uri = "sqlite:///x.db"
    run = tracking.start(Tracking(enabled=True, uri=uri, experiment="e"), "pretrain", "p")
    for step in range(10_000):  # 600 kB, where a pipe holds 64
        run.metrics({"loss": 1.0}, step)
    assert 200_000 < len(tracking._channels[uri]._unsent) <= 300_200
    monkeypatch.setattr(tracking, "_REACHED", 0.1)
    run.finish()
    assert "messages are lost" in capfd.readouterr().err


def test_a_writer_that_dies_is_one_line(monkeypatch, tmp_path, capfd):
    script = tmp_path / "writer.py"
    script.write_text("raise SystemExit\n")
    monkeypatch.setattr(tracking, "_WRITER", script)
    stage("sqlite:///x.db")
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_off_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with tracking.start(Tracking(enabled=False, uri=None, experiment="e"), "pretrain", "p") as run:
        run.metrics({"loss": 1.0}, 0)
        run.artifact("nothing")
        assert run.key is None
    run.finish()
    assert list(tmp_path.iterdir()) == []
