"""Runs are recorded whole and end with the right status."""

import io
import math
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from contextlib import closing
from pathlib import Path

import pytest

from selfsup.tracking import runs as tracking

PRELUDE = """
import contextlib, math, os, signal, sqlite3, sys, time
from pathlib import Path
from selfsup.tracking import runs as tracking
from selfsup.params import Tracking
HERE = Tracking(enabled=True, uri=None, experiment="digits")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it

def wait_for(name):  # until the store has the run
    while True:
        time.sleep(0.2)
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect("../mlflow.db")) as database:
            if list(database.execute("SELECT name FROM runs WHERE name = ?", [name])):
                return
"""
STAGES = {
    "whole": """
        values = {"seed": 0, "data": {"path": None, "sizes": [1, 2]}, "lr": 1e-4, "long": "x" * 9000, "a@b": True}
        with tracking.start(HERE, "pretrain", "simclr", values=values, tags={"data": "abc", "none": None}) as run:
            for step in range(2500):
                run.metrics({"loss": 1 / (step + 1), "acc@5": step}, step)
            for step, value in enumerate([1.0, math.nan, math.inf, -math.inf]):
                run.metrics({"odd": value}, step)
            run.artifact("kept.txt", "notes")
            run.artifact("folder")
            run.artifact("missing.txt")
            Path("whole.key").write_text(run.key)
    """,
    "failed": """
        with tracking.start(HERE, "evaluate", "failed") as run:
            run.metrics({"last": 7}, 3)
            raise ValueError("no")
    """,
    "interrupted": """
        with tracking.start(HERE, "pretrain", "interrupted", values={"lr": 1}) as run:
            Path("interrupted.key").write_text(run.key)
            run.metrics({"loss": 2.0}, 0)
            wait_for("interrupted")
            signal.raise_signal(signal.SIGINT)
    """,
    "murdered": """
        with tracking.start(HERE, "pretrain", "murdered", resume="0" * 32) as run:
            run.metrics({"loss": 3.0}, 0)
            if not (child := os.fork()):  # a process of the stage's that outlives it, and holds its pipes
                os.closerange(0, 3)
                time.sleep(600)
                os._exit(0)
            Path("child").write_text(str(child))
            wait_for("murdered")
            os.kill(os.getpid(), signal.SIGKILL)
    """,
}
SECOND = {
    "resumed": """
        key = Path("interrupted.key").read_text()
        with tracking.start(HERE, "pretrain", "again", resume=key, values={"lr": 2, "new": 3}) as run:
            run.metrics({"loss": 1.0}, 1)
    """,
    "child": """
        whole = Path("whole.key").read_text()
        timed = tracking.start(HERE, "timed", "timed")
        timed.finish()
        with tracking.start(HERE, "evaluate", "knn", parent=whole) as run:
            run.metrics({"test.accuracy": 0.5}, 0)
        with tracking.start(HERE, "pretrain", "ignored", resume=whole) as run:
            run.metrics({"accuracy": 0.5}, 0)
        with tracking.start(HERE, "pipeline", "pipeline") as outer:
            with tracking.start(HERE, "pretrain", "inner", parent=outer) as run:
                run.metrics({"loss": 0.25}, 0)
            outer.metrics({"loss": 0.125}, 0)
            timed.finish()  # once more: nothing happens
            sys.exit(0)
    """,
}


def launch(folder: Path, code: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "DVC_ROOT": str(folder), "DVC_EXP_NAME": "odd-yam", "DVC_EXP_BASELINE_REV": "f00"}
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code)]
    work = folder / "work"
    return subprocess.Popen(command, cwd=work, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True)


def ended(path: Path, names: set[str]) -> dict[str, str]:
    """Statuses of the runs; the writers of stages that were interrupted or killed outlive them a little."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with closing(sqlite3.connect(path)) as database:
            found = dict(database.execute("SELECT name, status FROM runs WHERE status != 'RUNNING'"))
        if len(found) == len(names):
            break
        time.sleep(0.2)
    return found


class Store:
    """What a set of stages, some of them started at the same time on a fresh store, left there."""

    def __init__(self, folder: Path):
        work = folder / "work"
        (work / "folder" / "deep").mkdir(parents=True)
        (work / "folder" / "deep" / "file.txt").write_text("deep")
        (work / "kept.txt").write_text("kept")
        self.folder, self.code, self.said = folder, {}, {}
        self.at_first: dict[str, str] = {}  # statuses when the first set had ended
        for stages in (STAGES, SECOND):
            processes = {name: launch(folder, code) for name, code in stages.items()}
            for name, process in processes.items():
                out, error = process.communicate(timeout=300)
                self.code[name], self.said[name] = process.returncode, out + error
            if not self.at_first:
                self.at_first = ended(folder / "mlflow.db", set(processes))
                os.kill(int((work / "child").read_text()), signal.SIGKILL)
        from mlflow import MlflowClient

        self.client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
        self.experiment = self.client.get_experiment_by_name("digits").experiment_id

    def run(self, name: str):
        (found,) = self.client.search_runs([self.experiment], f"attributes.run_name = '{name}'")
        return found


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return Store(tmp_path_factory.mktemp("a store"))


def test_values_are_flat_and_cut(store):
    params = store.run("simclr").data.params
    assert params["seed"] == "0"
    assert params["data.path"] == "null"
    assert params["data.sizes"] == "[1, 2]"
    assert float(params["lr"]) == 1e-4
    assert params["a_b"] == "true"
    assert params["long"] == "x" * 6000


def test_tags_say_where_the_run_comes_from(store):
    tags = store.run("simclr").data.tags
    assert tags["stage"] == "pretrain"
    assert tags["data"] == "abc"
    assert tags["dvc.experiment"] == "odd-yam"
    assert tags["dvc.baseline"] == "f00"
    assert "none" not in tags
    assert "mlflow.parentRunId" not in tags


def test_a_commit_is_recorded(tmp_path, monkeypatch):
    from selfsup.tracking.store import commit

    monkeypatch.chdir(tmp_path)
    assert commit() == ""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert commit() == head


def test_curves_have_every_point(store):
    run = store.run("simclr").info.run_id
    history = sorted((point.step, point.value) for point in store.client.get_metric_history(run, "loss"))
    assert history == [(step, 1 / (step + 1)) for step in range(2500)]
    assert len(store.client.get_metric_history(run, "acc_5")) == 2500


def test_values_that_are_not_finite_are_gaps(store):
    history = store.client.get_metric_history(store.run("simclr").info.run_id, "odd")
    values = [point.value for point in sorted(history, key=lambda point: point.step)]
    assert values[0] == 1.0
    assert [math.isnan(value) for value in values] == [False, True, True, True]


def test_artifacts_lie_beside_the_database(store):
    run = store.run("simclr").info.run_id
    assert [item.path for item in store.client.list_artifacts(run, "notes")] == ["notes/kept.txt"]
    files = {path.name: path.read_text() for path in (store.folder / "mlartifacts").rglob("*") if path.is_file()}
    assert files == {"kept.txt": "kept", "file.txt": "deep"}


def test_a_missing_artifact_is_one_line(store):
    lines = store.said["whole"].splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tracking: ")
    assert "missing.txt" in lines[0]


def test_a_stage_says_nothing_of_its_own_accord(store):
    assert store.said["child"] == store.said["resumed"] == store.said["murdered"] == ""


def test_a_finished_run(store):
    assert store.code["whole"] == 0
    assert store.run("simclr").info.status == "FINISHED"


def test_times_are_the_stages_own(store):
    info = store.run("timed").info  # the writer takes longer to start than this stage lasted
    assert info.end_time - info.start_time < 1000


def test_a_failed_run_keeps_its_last_points(store):
    assert store.code["failed"] == 1
    assert "ValueError: no" in store.said["failed"]
    assert store.run("failed").info.status == "FAILED"
    assert store.run("failed").data.metrics == {"last": 7.0}


def test_a_stage_killed_outright_ends_as_killed(store):
    assert store.code["murdered"] == -signal.SIGKILL
    assert store.run("murdered").info.status == "KILLED"
    assert store.run("murdered").data.metrics == {"loss": 3.0}


def test_interrupted_then_resumed_is_one_run(store):
    assert store.code["interrupted"] == -signal.SIGINT
    assert store.at_first["interrupted"] == "KILLED"
    run = store.run("interrupted")
    assert store.folder.joinpath("work/interrupted.key").read_text() == run.data.tags["run_key"]
    assert run.info.status == "FINISHED"
    assert run.data.params == {"lr": "1", "new": "3"}
    history = store.client.get_metric_history(run.info.run_id, "loss")
    assert sorted((point.step, point.value) for point in history) == [(0, 2.0), (1, 1.0)]
    assert not store.client.search_runs([store.experiment], "attributes.run_name = 'again'")


def test_how_a_stage_ends_decides_the_status():
    run = tracking.Run(None, None)
    ends = []
    run.finish = ends.append
    for error in (None, SystemExit(0), SystemExit(143), SystemExit("error: x"), KeyboardInterrupt(), OSError()):
        try:
            with run:
                if error:
                    raise error
        except BaseException as caught:  # noqa: BLE001
            assert caught is error
    assert ends == ["FINISHED", "FINISHED", "KILLED", "FAILED", "KILLED", "FAILED"]


def test_sigterm_ends_the_run_and_then_the_stage():
    run = tracking.Run(None, None)
    ends = []
    run.finish = ends.append
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as end, run:
        signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 128 + signal.SIGTERM
    assert ends == ["KILLED"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_later_stages_nest_under_pretraining(store):
    run, parent = store.run("knn"), store.run("simclr")
    assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.metrics == {"test.accuracy": 0.5}
    assert run.info.status == parent.info.status == "FINISHED"
    assert parent.data.metrics["accuracy"] == 0.5


def test_a_stage_may_have_several_runs(store):
    inner, outer = store.run("inner"), store.run("pipeline")
    assert inner.data.tags["mlflow.parentRunId"] == outer.info.run_id
    assert (inner.data.metrics, outer.data.metrics) == ({"loss": 0.25}, {"loss": 0.125})
    assert inner.info.status == outer.info.status == "FINISHED"


def test_readings_of_the_machine(tmp_path, monkeypatch):
    from selfsup.tracking.store import Record
    from selfsup.tracking.writer import Writer

    monkeypatch.setattr("selfsup.tracking.writer._SAMPLE", 1e6)
    writer = Writer(f"sqlite:///{tmp_path}/x.db", io.StringIO(), tmp_path)
    record, parent = Record({}), Record({}, run="1" * 32)
    writer.open = {"1": parent, "2": record}
    writer.sample()
    assert record.points == []  # there is no run yet
    record.run, record.started = "0" * 32, round((time.time() - 100) * 1000)
    writer.sample()
    assert record.points == []  # rates need two readings
    writer.sample()
    assert record.points == []  # too early
    writer.sample_at = -1e9
    writer.sample()
    assert parent.points == []  # the stage's own run has them
    readings = {key: (value, step) for key, value, _, step in record.points}
    value, step = readings["system/system_memory_usage_megabytes"]
    assert value > 0
    assert 100 <= step < 1000


def test_only_the_writer_pays_for_mlflow():
    code = "import sys; from selfsup import tracking; print(sorted({'mlflow', 'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
