"""`stages/shard.py` as the pipeline runs it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from selfsup import needs
from selfsup.params import load

ROOT = Path(__file__).parents[2]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess:
    needs.write(load(folder / "params.yaml"), "image", "conv", folder)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "stages/shard.py", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def workspace(tmp_path) -> Path:
    """A copy of the repository as experiments make one."""
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    shutil.copytree(ROOT / "ssl", tmp_path / "ssl", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def change(workspace: Path, before: str, after: str) -> None:
    path = workspace / "params.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))


def test_the_embedded_digits_with_the_code_of_the_workspace(workspace):
    shards = workspace / "ssl" / "selfsup" / "data" / "index.py"
    shards.write_text(shards.read_text().replace("SCHEMA = 4\n", "SCHEMA = 77\n"))
    done = run(workspace)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["train 1293, validation 145, test 359 images; 10 classes; 0 skipped"]
    assert "images/s" in done.stderr
    index = json.loads((workspace / "data" / "shards" / "index.json").read_text())
    assert index["schema_version"] == 77
    assert sorted(path.name for path in (workspace / "data").iterdir()) == ["needs", "shards"]


def test_errors_are_one_line(workspace):
    change(workspace, "source: digits ", "source: image_folder ")
    change(workspace, "path: null  ", "path: nowhere  ")
    done = run(workspace)
    assert done.returncode == 1
    assert done.stderr == "error: data.image.path: no folder nowhere; fix the path\n"
    assert not (workspace / "data" / "shards").exists()


def test_help_is_one_line(workspace):
    done = run(workspace, "--help")
    assert done.returncode == 0
    assert "Write the samples of `data`" in done.stdout
