"""Signals and lost processes: a checkpoint at once, an end in time with the culprit's name, then the same bits."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import ROOT
from tests.stages.test_pretrain import stage, workspace

RUN = {"method": "mae", "pretrain__epochs": 1, "pretrain__batch_size": 8, "pretrain__checkpoint_every": 10**6}
STEPS = 161  # of the digits' 1,293 training images


def start(folder: Path, **environment: str) -> subprocess.Popen:
    """Pretraining under way in a session of its own, past its first steps."""
    running = subprocess.Popen(
        [sys.executable, str(ROOT / "stages/pretrain.py")],
        cwd=folder, env=os.environ | environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        start_new_session=True,
    )  # fmt: skip
    while not any(path.stat().st_size for path in folder.glob(".resume/*/curves.jsonl")):
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.02)
    return running


def family(running: subprocess.Popen) -> list[psutil.Process]:
    return [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]


def worker(running: subprocess.Popen, rank: int) -> psutil.Process:
    return next(p for p in family(running) if p.environ().get("RANK") == str(rank))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "models/pretrained/task.safetensors")


@pytest.fixture(scope="module")
def quiet(shards, tmp_path_factory):
    """Weights of runs that nobody disturbed, by the number of processes."""
    out = {}
    for world in ("1", "2"):
        folder = workspace(tmp_path_factory.mktemp(f"quiet{world}"), shards, **RUN)
        assert stage(folder, "pretrain", NPROC=world).returncode == 0
        out[world] = weights(folder)
    return out


def finish(folder: Path, world: str, quiet: dict) -> None:
    done = stage(folder, "pretrain", NPROC=world)
    assert done.returncode == 0, done.stderr
    found = weights(folder)
    assert all(torch.equal(x, found[name]) for name, x in quiet[world].items())


@pytest.mark.parametrize("world", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_polite_signal_writes_a_checkpoint_at_once(shards, tmp_path, quiet, world, number):
    folder = workspace(tmp_path, shards, **RUN)
    running = start(folder, NPROC=world)
    members, asked = family(running), time.monotonic()
    groups = [os.getpgid(process.pid) for process in members]
    assert running.pid not in groups[1:]  # a terminal's Ctrl-C reaches the others through the stage alone, once
    for _ in range(2):  # by an impatient user
        (os.killpg if number == signal.SIGINT else os.kill)(running.pid, number)
    said = running.communicate(timeout=60)[1]
    assert time.monotonic() - asked < 10
    assert running.returncode == 128 + number and "Traceback" not in said
    step = int(re.search(rf"stopped by {number.name} after step (\d+), checkpoint written", said)[1])
    assert 0 < step < STEPS
    assert [path.name[:14] for path in folder.glob(".resume/*/step-*.pt")] == [f"step-{step:09d}"]
    assert not [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finish(folder, world, quiet)


LATE = """
import os, signal, sys, time
sys.path.insert(0, {stages!r})
import pretrain
from selfsup.processes import launch
from selfsup.training import pretraining, session
stage = int(os.environ.setdefault("STAGE", str(os.getpid())))
train, clear = pretraining.work, session.finished
def work(*given):
    train(*given)
    if launch.first_process() and {when!r} == "before":
        os.kill(stage, signal.SIGTERM)
        time.sleep(60)
    if launch.first_process() and {when!r} == "alone":
        os.kill(os.getpid(), signal.SIGSTOP)
def finished(resume):
    clear(resume)
    os.kill(stage, signal.SIGTERM)
pretraining.work, session.finished = work, finished
pretrain.main()
"""


@pytest.mark.parametrize("world", ["1", "2"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_signal_at_the_very_end_costs_no_training(shards, tmp_path, quiet, world, when):
    """Before the checkpoints are cleared away, the stage fails and keeps them; from then on, it does not fail."""
    folder = workspace(tmp_path, shards, **RUN)
    script = folder / "late.py"
    script.write_text(LATE.format(stages=str(ROOT / "stages"), when=when))
    command, environment = [sys.executable, str(script)], os.environ | {"NPROC": world}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == (128 + signal.SIGTERM if when == "before" else 0), done.stderr
    left = [path.name[:14] for path in folder.glob(".resume/*/step-*.pt")]
    assert left == ([f"step-{STEPS:09d}"] if when == "before" else [])
    if left and world == "1":
        finish(folder, world, quiet)
        assert not list(folder.glob(".resume/*/step-*.pt"))


def stored(folder: Path) -> dict[str, list[str]]:
    """Id and status of each MLflow run, by name; none while the store is being made or is locked."""
    with (
        contextlib.suppress(sqlite3.Error),
        contextlib.closing(sqlite3.connect(f"file:{folder}/mlflow.db?mode=ro", uri=True)) as database,
    ):
        return {name: rest for name, *rest in database.execute("SELECT name, run_uuid, status FROM runs")}
    return {}


def test_a_run_that_was_stopped_goes_on_as_the_same_mlflow_run(shards, tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    folder = workspace(tmp_path, shards, **RUN, tracking__enabled=True)
    running = start(folder)
    running.send_signal(signal.SIGSTOP)  # until the store, which takes its time, has both runs
    deadline = time.monotonic() + 120
    while len(stored(folder)) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    running.terminate()
    running.send_signal(signal.SIGCONT)
    assert running.communicate(timeout=60) and running.returncode == 128 + signal.SIGTERM
    deadline, stopped = time.monotonic() + 120, {}
    while [status for _, status in stopped.values()] != ["KILLED", "KILLED"] and time.monotonic() < deadline:
        time.sleep(0.2)  # the writer outlives the stage a little
        stopped = stored(folder)
    assert {name: status for name, (_, status) in stopped.items()} == {"mae": "KILLED", "pretrain": "KILLED"}
    assert stage(folder, "pretrain").returncode == 0
    assert stored(folder) == {name: [run, "FINISHED"] for name, (run, _) in stopped.items()}
    with contextlib.closing(sqlite3.connect(folder / "mlflow.db")) as database:
        of_loss = "SELECT step FROM metrics WHERE key = 'loss' AND run_uuid = ? ORDER BY step"
        steps = [step for (step,) in database.execute(of_loss, [stopped["pretrain"][0]])]
    assert steps == list(range(1, STEPS + 1))


def test_a_process_that_does_not_answer_is_named_and_ended(shards, tmp_path, quiet):
    folder = workspace(tmp_path, shards, **RUN)
    running = start(folder, NPROC="2", RANK_TIMEOUT="4")
    members, asked = family(running), time.monotonic()
    worker(running, 1).suspend()
    said = running.communicate(timeout=120)[1]
    assert time.monotonic() - asked < 60
    assert running.returncode == 1 and "Traceback" not in said
    assert "error: process 1 did not answer for RANK_TIMEOUT" in said
    assert not [p for p in members if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    finish(folder, "2", quiet)


def test_a_process_that_hangs_when_the_others_have_ended(shards, tmp_path):
    folder = workspace(tmp_path, shards, **RUN)
    script = folder / "late.py"
    script.write_text(LATE.format(stages=str(ROOT / "stages"), when="alone"))
    environment = os.environ | {"NPROC": "2", "RANK_TIMEOUT": "5"}
    command = [sys.executable, str(script)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and "error: process 0 did not answer for RANK_TIMEOUT" in done.stderr
    assert [path.name[:14] for path in folder.glob(".resume/*/step-*.pt")] == [f"step-{STEPS:09d}"]


@pytest.mark.parametrize("which", ["the stage's process", "Accelerate's"])
def test_the_launchers_death_ends_the_workers(shards, tmp_path, quiet, which):
    folder = workspace(tmp_path, shards, **RUN)
    running = start(folder, NPROC="2")
    members = family(running)
    victim = members[0] if which == "the stage's process" else psutil.Process(running.pid).children()[0]
    victim.kill()
    said = running.communicate()[1]
    gone, alive = psutil.wait_procs(members[1:], timeout=15)
    assert len(gone) >= 3 and not alive
    assert not (folder / "models").exists()  # none went on to the end of the training
    assert victim == members[0] or "error: the launcher of the processes was killed by signal 9" in said
    finish(folder, "2", quiet)


@pytest.mark.parametrize("seconds", ["0", "soon"])
def test_nonsense_in_rank_timeout(hundred, tmp_path, seconds):
    done = stage(workspace(tmp_path, hundred), "pretrain", RANK_TIMEOUT=seconds)
    assert done.returncode == 1 and done.stderr.strip().splitlines()[-1].startswith(f"error: RANK_TIMEOUT={seconds}")
