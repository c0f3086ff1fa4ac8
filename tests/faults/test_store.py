"""A tracking store that fails in any way: the stage is not held up, and each point arrives exactly once or is kept."""

import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing

import pytest

from selfsup.tracking import runs as tracking
from selfsup.tracking import writer as tracking_writer
from tests.faults.server import Server, cut, in_a_thread, late, recorded, says, store, trickle, wait_for

HTML = b"<!doctype html><title>Bad gateway</title>"


@pytest.fixture(scope="module")
def lasting(tmp_path_factory):
    before = dict(os.environ)
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.down()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def server(lasting, tmp_path, monkeypatch):
    in_a_thread(monkeypatch, tmp_path)
    lasting.asked.clear()
    yield lasting
    lasting.fault = None
    if not lasting.server:
        lasting.up()


@pytest.fixture
def title(request):
    """Each test has its own experiment."""
    return request.node.name


def kept(folder):
    return sorted((folder / ".cache/tracking").glob("*.json"))


FAULTS = {
    "500": says("500 Internal Server Error", b'{"error_code": "INTERNAL_ERROR", "message": "no"}'),
    "429": says("429 Too Many Requests", b'{"error_code": "REQUEST_LIMIT_EXCEEDED", "message": "no"}'),
    "html": says("200 OK", HTML, "text/html"),
    "html 404": says("404 Not Found", HTML, "text/html"),
    "cut": cut,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_was_missed_half_way_is_delivered_once(server, title, fault, capfd, tmp_path):
    with tracking.start(store(server.uri, title), "pretrain", "p", values={"lr": 1}) as run:
        run.metrics({"loss": 1.0}, 0)
        wait_for(lambda: recorded(server.client, title).get("p", ("", []))[1])
        server.fault = FAULTS[fault]
        asked = len(server.asked)
        run.metrics({"loss": 2.0}, 1)
        wait_for(lambda: len(server.asked) > asked + 3)
        run.metrics({"loss": 3.0}, 2)
        server.fault = None
    assert recorded(server.client, title) == {"p": ("FINISHED", [(0, 1.0), (1, 2.0), (2, 3.0)])}
    assert kept(tmp_path) == []
    assert "lost" not in capfd.readouterr().err


@pytest.mark.parametrize("fault", ["500", "cut"])
def test_a_run_whose_creation_was_not_answered_is_created_once(server, title, fault):
    asked = []

    def first_creation(environ, start_response, app):
        asked.append(environ["PATH_INFO"].endswith("/runs/create"))
        answer = FAULTS[fault] if asked[-1] and sum(asked) == 1 else lambda environ, start, app: app(environ, start)
        return answer(environ, start_response, app)

    server.fault = first_creation
    with tracking.start(store(server.uri, title), "pretrain", "p", values={"lr": 1}) as run:
        run.metrics({"loss": 1.0}, 0)
        wait_for(lambda: any(asked[:-3]))  # some requests after the creation
    assert sum(asked) == (1 if fault == "cut" else 2)
    assert recorded(server.client, title) == {"p": ("FINISHED", [(0, 1.0)])}


def test_a_server_that_comes_up_late(server, title, capfd):
    server.down()
    with tracking.start(store(server.uri, title), "pretrain", "p") as run:
        for step in range(100):
            run.metrics({"loss": float(step)}, step)
        time.sleep(0.3)
        server.up()
    assert recorded(server.client, title) == {"p": ("FINISHED", [(step, float(step)) for step in range(100)])}
    assert capfd.readouterr().err == ""


def test_a_server_that_is_down_at_the_end_gets_all_from_the_next_stage(server, title, capfd, tmp_path):
    (tmp_path / "kept.txt").write_text("kept")
    (tmp_path / "changed.txt").write_text("before")
    with tracking.start(store(server.uri, title), "pipeline", "parent") as parent:
        server.down()
        with tracking.start(store(server.uri, title), "pretrain", "p", parent, values={"lr": 1}) as run:
            run.metrics({"loss": 1.0}, 0)
            run.metrics({"loss": 2.0}, 1)
            run.artifact(tmp_path / "kept.txt")
            run.artifact(tmp_path / "changed.txt")
    (line,) = capfd.readouterr().err.splitlines()
    assert "2 points and 2 artifacts of 2 runs are kept" in line and server.uri in line
    assert len(kept(tmp_path)) == 2
    (tmp_path / "changed.txt").write_text("of another run")
    server.up()
    tracking._channels.clear()
    with tracking.start(store(server.uri, title), "extract", "child", run.key) as child:
        child.metrics({"loss": 0.0}, 5)
    found = recorded(server.client, title)
    assert found == {
        "parent": ("FINISHED", []),
        "p": ("FINISHED", [(0, 1.0), (1, 2.0)]),
        "child": ("FINISHED", [(5, 0.0)]),
    }
    assert kept(tmp_path) == []
    (line,) = capfd.readouterr().err.splitlines()
    assert "lost: artifact" in line and "changed.txt" in line
    experiment = server.client.get_experiment_by_name(title).experiment_id
    runs = {run.info.run_name: run for run in server.client.search_runs([experiment])}
    assert runs["p"].data.params == {"lr": "1"}
    assert runs["p"].data.tags["mlflow.parentRunId"] == runs["parent"].info.run_id
    assert runs["child"].data.tags["mlflow.parentRunId"] == runs["p"].info.run_id
    assert [path.read_text() for path in server.artifacts.rglob("*.txt")] == ["kept"]


def test_an_end_that_was_kept_does_not_undo_a_later_one(server, title, tmp_path):
    def interrupted():
        with pytest.raises(KeyboardInterrupt), tracking.start(store(server.uri, title), "pretrain", "p") as run:
            raise KeyboardInterrupt
        return run

    server.down()
    run = interrupted()
    (file,) = kept(tmp_path)
    aside = file.rename(tmp_path / file.name)
    server.up()
    for name in ("p", "q"):
        resume = run.key if name == "p" else None
        with tracking.start(store(server.uri, title), "pretrain", name, resume=resume):
            pass
        if name == "p":
            tracking._channels.clear()
            aside.rename(file)
    assert kept(tmp_path) == []
    assert recorded(server.client, title) == {"p": ("FINISHED", []), "q": ("FINISHED", [])}


def test_steps_that_a_resumed_run_repeats_are_no_second_points(server, title):
    key = None
    for first, last in ((0, 6), (3, 9)):  # from the checkpoint of step 3
        with tracking.start(store(server.uri, title), "pretrain", "p", resume=key) as run:
            for step in range(first, last):
                run.metrics({"loss": float(step), "at@step": 1.0}, step)
        key = run.key
    with tracking.start(store(server.uri, title), "report", "p", resume=key) as run:
        run.metrics({"accuracy": 0.5}, 0)
    with tracking.start(store(server.uri, title), "report", "p", resume=key) as run:
        run.metrics({"accuracy": 0.25}, 0)  # of other images
    assert recorded(server.client, title) == {"p": ("FINISHED", [(step, float(step)) for step in range(9)])}
    (found,) = server.client.search_runs([server.client.get_experiment_by_name(title).experiment_id])
    assert len(server.client.get_metric_history(found.info.run_id, "at_step")) == 9
    assert found.data.metrics["accuracy"] == 0.5  # which was recorded first


@pytest.mark.parametrize("fault", [late(1.5), trickle], ids=["late", "trickle"])
def test_the_end_of_a_stage_does_not_wait_for_a_slow_server(server, title, fault, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(tracking, "_REACHED", 1.0)
    monkeypatch.setattr(tracking_writer, "_AFTER", 0.5)
    server.fault = fault
    run = tracking.start(store(server.uri, title), "pretrain", "p")
    run.metrics({"loss": 1.0}, 0)
    wait_for(lambda: server.asked)
    began = time.monotonic()
    run.finish()
    assert time.monotonic() - began < 20
    (line,) = capfd.readouterr().err.splitlines()
    assert "is slow" in line and server.uri in line
    wait_for(lambda: kept(tmp_path))  # the writer has gone
    server.fault = None
    monkeypatch.setattr(tracking, "_REACHED", 60.0)
    with tracking.start(store(server.uri, title), "extract", "next"):
        pass
    assert recorded(server.client, title) == {"p": ("FINISHED", [(0, 1.0)]), "next": ("FINISHED", [])}


def test_a_slow_server_gets_all_while_the_stage_works(server, title, capfd):
    server.fault = late(0.4)
    with tracking.start(store(server.uri, title), "pretrain", "p") as run:
        for step in range(3):
            run.metrics({"loss": float(step)}, step)
            time.sleep(0.1)
    assert recorded(server.client, title) == {"p": ("FINISHED", [(step, float(step)) for step in range(3)])}
    assert capfd.readouterr().err == ""


def test_what_the_server_refuses_for_good_is_said(server, title, capfd):
    with tracking.start(store(server.uri, title), "pretrain", "p") as run:
        run.metrics({"loss": 1.0}, 0)
        wait_for(lambda: recorded(server.client, title).get("p", ("", []))[1])
        experiment = server.client.get_experiment_by_name(title).experiment_id
        server.client.delete_run(server.client.search_runs([experiment])[0].info.run_id)
        run.metrics({"loss": 2.0}, 1)
        wait_for(lambda: sum(path.endswith("log-batch") for path in server.asked) > 1)
    assert "lost: 1 points" in capfd.readouterr().err


@pytest.fixture
def fresh(tmp_path, monkeypatch, template):
    """A local store that has one run."""
    in_a_thread(monkeypatch, tmp_path)
    shutil.copy(template, tmp_path / "mlflow.db")
    return tmp_path / "mlflow.db"


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("template") / "mlflow.db"
    client = MlflowClient(f"sqlite:///{path}")
    client.set_terminated(client.create_run(client.create_experiment("e"), run_name="first").info.run_id)
    return path


def local_runs(path):
    from mlflow import MlflowClient

    return recorded(MlflowClient(f"sqlite:///{path}"), "e")


def test_a_locked_database_is_waited_for(fresh, capfd):
    uri = f"sqlite:///{fresh}?timeout=0.05"
    other = sqlite3.connect(fresh, isolation_level=None, check_same_thread=False)
    with closing(other), tracking.start(store(uri, "e"), "pretrain", "p") as run:
        run.metrics({"loss": 1.0}, 0)
        wait_for(lambda: local_runs(fresh).get("p", ("", []))[1])
        other.execute("BEGIN EXCLUSIVE")
        run.metrics({"loss": 2.0}, 1)
        threading.Timer(1.0, lambda: other.execute("COMMIT")).start()
    assert local_runs(fresh) == {"first": ("FINISHED", []), "p": ("FINISHED", [(0, 1.0), (1, 2.0)])}
    assert "tracking:" not in capfd.readouterr().err


def spoil(path, how):
    if how == "corrupted":
        path.write_bytes(path.read_bytes()[:4096] + os.urandom(200_000))
    elif how == "no database":
        path.write_bytes(b"not a database" * 1000)
    elif how == "newer":
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = 'fffffffffff'")


@pytest.mark.parametrize("how", ["corrupted", "no database", "newer", "read-only"])
def test_a_database_that_cannot_be_written_is_left_alone(fresh, how, capfd, template):
    spoil(fresh, how)
    before = fresh.read_bytes()
    uri = f"sqlite:///file:{fresh}?mode=ro&uri=true" if how == "read-only" else f"sqlite:///{fresh}"
    began = time.monotonic()
    with tracking.start(store(uri, "e"), "pretrain", "p") as run:
        run.metrics({"loss": 1.0}, 0)
    assert time.monotonic() - began < 30
    (line,) = (line for line in capfd.readouterr().err.splitlines() if line.startswith("tracking:"))
    assert "1 points and 0 artifacts of 1 runs are kept" in line
    assert fresh.read_bytes() == before
    shutil.copy(template, fresh)
    tracking._channels.clear()
    with tracking.start(store(f"sqlite:///{fresh}", "e"), "extract", "next"):
        pass
    assert local_runs(fresh)["p"] == ("FINISHED", [(0, 1.0)])


def test_nowhere_to_keep_anything_is_said(server, title, capfd, tmp_path):
    (tmp_path / ".cache").write_text("not a folder")
    server.down()
    with tracking.start(store(server.uri, title), "pretrain", "p") as run:
        run.metrics({"loss": 1.0, "other": 2.0}, 0)
    (line,) = capfd.readouterr().err.splitlines()
    assert "lost: 2 points and 0 artifacts of 1 runs" in line


def test_a_kept_file_that_is_damaged_holds_up_nothing(server, title, tmp_path):
    server.down()
    with tracking.start(store(server.uri, title), "pretrain", "p"):
        pass
    (file,) = kept(tmp_path)
    file.with_name(file.stem + "0.json").write_text(file.read_text()[:-9])
    server.up()
    tracking._channels.clear()
    with tracking.start(store(server.uri, title), "extract", "next"):
        pass
    assert set(recorded(server.client, title)) == {"p", "next"}


def test_points_beyond_what_can_be_kept_are_counted(server, title, capfd, monkeypatch):
    monkeypatch.setattr(tracking_writer, "_POINTS", 10)
    server.down()
    with tracking.start(store(server.uri, title), "pretrain", "p") as run:
        for step in range(15):
            run.metrics({"loss": 1.0}, step)
    error = capfd.readouterr().err
    assert "10 points and 0 artifacts of 1 runs are kept" in error and "lost: 5 points" in error


def test_a_password_is_kept_nowhere(server, title, capfd, tmp_path):
    server.down()
    with tracking.start(store(server.uri.replace("//", "//name:secret@"), title), "pretrain", "p"):
        pass
    (file,) = kept(tmp_path)
    assert "secret" not in file.name + file.read_text() + capfd.readouterr().err
    assert json.loads(file.read_text())["end"][0] == "FINISHED"
