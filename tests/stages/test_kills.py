"""A stage that is killed while it writes leaves its old outs; run again, it writes the bits of an undisturbed run."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from selfsup.training.build import build_task
from selfsup.training.session import open_splits
from tests.evaluation import workspace
from tests.helpers import ROOT

KILL_AT = """
import os, runpy, signal, sys
_, left, outs, script, *arguments = sys.argv
left, outs, sys.argv = int(left), outs.split(","), [script, *arguments]

def hook(event, values):
    global left
    if event == "open" and values[2] & (os.O_WRONLY | os.O_RDWR) and any(out in str(values[0]) for out in outs):
        left -= 1
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
sys.path.insert(0, os.path.dirname(script))
runpy.run_path(script, run_name="__main__")
"""  # SIGKILL to itself when it opens a file of its outs for writing, not for the first time

STAGES = {  # stage: its outs, and the files it opens for writing before it is killed
    "shard": (["data/shards"], 1),  # of the process itself: the index
    "extract": (["features/pretrained", "metrics/extract.json"], 4),
    "evaluate knn": (["evaluations/knn", "metrics/evaluate/knn.json"], 3),
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
    """Of all files but that with timings."""
    return {
        path: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files(folder, outs)
        if path.name != "extract.json"
    }


@pytest.mark.parametrize("stage", STAGES)
def test_old_outs_stay_and_the_next_run_has_the_same_bits(stage, hundred, tmp_path):
    outs, opened = STAGES[stage]
    params = workspace.make(tmp_path, hundred, **({"data__limit": 120} if stage == "shard" else {}))
    if stage == "shard":
        (tmp_path / "data/shards").unlink()
    if stage == "extract":
        split = open_splits(params.data, tmp_path / "data/shards")["train"]
        task = build_task(params, params.method, "conv", split)
        save_file(
            {name: x.contiguous() for name, x in task.state_dict().items()},
            tmp_path / "models/pretrained/task.safetensors",
        )
    assert run(tmp_path, stage) == 0
    before = digests(tmp_path, outs)
    times = {path: path.stat().st_mtime_ns for path in files(tmp_path, outs)}
    everything = set(tmp_path.rglob("*"))

    assert run(tmp_path, stage, "-c", KILL_AT, str(opened), ",".join(outs)) == -signal.SIGKILL
    assert {path: path.stat().st_mtime_ns for path in files(tmp_path, outs)} == times
    assert run(tmp_path, stage) == 0
    assert digests(tmp_path, outs) == before and set(tmp_path.rglob("*")) == everything
