"""A stage that is killed while it writes leaves its old outs; run again, it writes the bits of an undisturbed run."""

import hashlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from selfsup.data.loader import open_splits
from selfsup.errors import one_line_errors
from selfsup.training.build import build_task, method_params
from tests.evaluation import workspace
from tests.helpers import ROOT, values

KILL_AT = """
import os, runpy, signal, sys
_, last, script, *arguments = sys.argv
sys.argv = [script, *arguments]

def hook(event, values):
    if event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR) and str(values[0]).endswith(last):
        os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""  # SIGKILL to itself in the middle of its outs

ONE_EPOCH = {"pretrain__epochs": 1, "pretrain__warmup_epochs": 0.5, "pretrain__batch_size": 32}
PROTOCOL = values()["evaluation"]["protocols"][0]
TRAINED = ["models/pretrained", "models/backbone", "plots/pretrain.csv", "metrics/pretrain.json"]
STAGES = {  # stage: its outs, and the file that it opens for writing when it is killed
    "shard": (["data/shards"], "index.json"),
    "pretrain": (TRAINED, "config.json"),
    "extract": (["features/pretrained", "metrics/extract.json"], "validation.npy"),
    f"evaluate {PROTOCOL}": ([f"evaluations/{PROTOCOL}", f"metrics/evaluate/{PROTOCOL}.json"], "details.json.partial"),
}


def run(folder: Path, stage: str, *killer: str) -> int:
    name, *arguments = stage.split()
    command = [sys.executable, *killer, str(ROOT / f"stages/{name}.py"), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ, timeout=200)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


def files(folder: Path, outs: list[str]) -> list[Path]:
    return sorted(path for out in outs for path in [folder / out, *(folder / out).rglob("*")] if path.is_file())


def digests(folder: Path, outs: list[str]) -> dict[Path, str]:
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in files(folder, outs)}


@pytest.mark.parametrize("stage", STAGES)
def test_old_outs_stay_and_the_next_run_has_the_same_bits(stage, hundred, tmp_path):
    outs, last = STAGES[stage]
    params = workspace.make(tmp_path, hundred, data__limit=120, **ONE_EPOCH)
    if stage == "shard":
        (tmp_path / "data/shards").unlink()
    if stage == "extract":
        split = open_splits(params.data, tmp_path / "data/shards")["train"]
        task = build_task(params, params.method, method_params(params, params.method), split)
        save_file(
            {name: x.contiguous() for name, x in task.state_dict().items()},
            tmp_path / "models/pretrained/task.safetensors",
        )
    assert run(tmp_path, stage) == 0
    before = digests(tmp_path, outs)
    times = {path: path.stat().st_mtime_ns for path in files(tmp_path, outs)}
    everything = set(tmp_path.rglob("*"))

    assert run(tmp_path, stage, "-c", KILL_AT, last) == -signal.SIGKILL
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path, outs)} == times
    assert run(tmp_path, stage) == 0
    assert digests(tmp_path, outs) == before and set(tmp_path.rglob("*")) == everything


def test_a_killed_launcher_is_said_instead_of_its_notices(monkeypatch, tmp_path):
    from selfsup.processes import launch

    notices = "The following values were not passed to `accelerate launch` and had defaults used instead"
    expected = "error: the launcher of the processes was killed by signal 9; run the same command again"
    assert launch.cause(notices, [], -signal.SIGKILL).startswith(expected)
    monkeypatch.chdir(tmp_path)
    line = launch.cause(f"usage: accelerate\n\n{notices}\n", [], 1)
    found = re.fullmatch(rf"error: the processes could not be started \({notices}\); .* is in (\S+\.log)", line)
    assert found and "usage: accelerate" in (tmp_path / found[1]).read_text()


ELASTIC = """W1121 16:08:07.683000 26338 torch/distributed/elastic/api.py] Sending process 26343 closing signal SIGTERM
E1121 16:08:16.776000 26338 torch/elastic/api.py] failed (exitcode: {0}) local_rank: 0 (pid: 26342) of binary
Failures:
[1]:
  time      : 2026-11-21_16:08:16
  rank      : 1 (local_rank: 1)
  exitcode  : {1} (pid: 26343)
------------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-11-21_16:08:07
  rank      : 0 (local_rank: 0)
  exitcode  : {0} (pid: 26342)
  error_file: <N/A>
"""


@pytest.mark.parametrize(("first", "second", "expected"), [(75, -9, "process 1"), (-9, 75, "process 0"), (1, -15, "")])
def test_the_process_that_was_killed_is_the_one_named(first, second, expected):
    from selfsup.processes import launch

    said = launch.cause(ELASTIC.format(first, second), [])
    assert said.startswith(f"error: {expected} was killed by signal 9") if expected else not said


def test_an_interrupted_stage_ends_in_a_line(capsys):
    with pytest.raises(SystemExit) as end, one_line_errors():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "stopped by SIGINT\n"
