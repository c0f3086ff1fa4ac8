"""Runs at the same time: four experiments in a queue with two workers, and two processes of one configuration."""

import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ruamel.yaml import YAML

from selfsup.data.loader import open_split
from tests.helpers import ROOT, params
from tests.stages.test_pipeline import dvc, project
from tests.stages.test_pretrain import stage, workspace

TINY = {"data__limit": 120, "data__cache": "disk", "pretrain__batch_size": 32, "pretrain__knn_every": 0}
GRID = {("simclr", 0), ("simclr", 1), ("rotation", 0), ("rotation", 1)}  # one baseline a seed


def inhabitants(folder: Path) -> list[psutil.Process]:
    """Processes that work in a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            there = Path(process.cwd()).is_relative_to(folder) or str(folder) in " ".join(process.cmdline())
            if there and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):  # gone
            continue
    return found


@dataclass
class Experiment:
    """What an experiment of the queue left."""

    folder: Path
    name: str

    def read(self, file: str) -> dict:
        return YAML(typ="safe", pure=True).load(dvc(self.folder, "git", "show", f"refs/exps/{self.name}:{file}"))

    @cached_property
    def outs(self) -> dict[str, str]:
        """Checksums by path."""
        return {out["path"]: out["md5"] for stage in self.read("dvc.lock")["stages"].values() for out in stage["outs"]}

    @cached_property
    def metrics(self) -> dict:
        md5 = self.outs["metrics/pretrain.json"]
        return json.loads((self.folder / ".dvc/cache/files/md5" / md5[:2] / md5[2:]).read_text())


def experiments(folder: Path) -> list[str]:
    return dvc(folder, "git", "for-each-ref", "--format=%(refname:lstrip=2)", "refs/exps/*/*/*").split()


@dataclass
class Queue:
    """The project after its queue."""

    folder: Path
    said: str
    done: dict[tuple[str, int], Experiment]  # by method and seed


@pytest.fixture(scope="module")
def queue(tmp_path_factory):
    folder = tmp_path_factory.mktemp("queue") / "project"
    project(folder, data__image__source="digits", tracking__enabled=True, **TINY)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    dvc(folder, "git", "add", ".")
    dvc(folder, *git, "commit", "-q", "-m", "first")
    grid = ["-S", "method=simclr,rotation", "-S", "seed=0,1"]
    dvc(folder, "dvc", "exp", "run", "--queue", *grid, "baseline", "extract")
    try:
        with (folder.parent / "queue.log").open("w") as log:  # the workers keep it open
            environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
            environment.pop("DVC_ROOT", None)
            command = ["dvc", "queue", "start", "-j", "2"]
            subprocess.run(command, cwd=folder, env=environment, stdout=log, stderr=log, check=True, timeout=300)
        deadline = time.monotonic() + 500
        while len(experiments(folder)) < len(GRID) and inhabitants(folder) and time.monotonic() < deadline:
            time.sleep(0.5)
        said = dvc(folder, "dvc", "queue", "status")
        found = [Experiment(folder, name) for name in experiments(folder)]
        yield Queue(folder, said, {(e.read("params.yaml")["method"], e.read("params.yaml")["seed"]): e for e in found})
    finally:
        dvc(folder, "dvc", "queue", "stop", "--kill")
        _, alive = psutil.wait_procs(inhabitants(folder), timeout=30)
        for process in alive:
            process.kill()
    assert not alive


def test_all_four_succeed(queue):
    assert set(queue.done) == GRID, queue.said
    assert "Failed" not in queue.said


def test_each_has_its_own_results_and_shares_what_is_the_same(queue):
    for out, count in {"data/shards": 2, "features/baselines/random": 2, "models/pretrained": 4}.items():
        assert len({experiment.outs[out] for experiment in queue.done.values()}) == count
    assert {(experiment.metrics["method"], seed) for (_, seed), experiment in queue.done.items()} == GRID


def test_a_queued_run_has_the_bits_of_one_by_itself(queue, hundred, tmp_path):
    alone = workspace(tmp_path, hundred, method="rotation", pretrain__epochs=2, **TINY)
    assert stage(alone, "pretrain").returncode == 0
    done = json.loads((alone / "metrics/pretrain.json").read_text())
    assert done["last"] == queue.done["rotation", 0].metrics["last"]
    backbone = (alone / "models/backbone/model.safetensors").read_bytes()
    files = queue.folder.glob(".dvc/cache/files/md5/*/*")
    assert hashlib.md5(backbone).hexdigest() in {path.parent.name + path.name for path in files}


def test_images_decoded_once_for_all_are_the_images(queue, hundred, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(queue.folder))
    before = [(path, path.stat().st_mtime_ns) for path in queue.folder.glob(".cache/decoded/*/*/*")]
    for name in ("train", "validation", "test"):
        images, cached = (
            open_split(hundred, name, params(data__cache=cache).data).gather(range(10)) for cache in ("none", "disk")
        )
        assert all(torch.equal(x, cached[key]) for key, x in images.items())
    assert [(path, path.stat().st_mtime_ns) for path in queue.folder.glob(".cache/decoded/*/*/*")] == before


def test_mlflow_has_four_parents_with_their_own_children(queue):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{queue.folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("selfsup").experiment_id])
    assert {run.info.status for run in runs} == {"FINISHED"}
    parents = [run for run in runs if run.data.tags["stage"] == "pipeline"]
    assert len(parents) == len(GRID)
    for parent in parents:
        experiment = queue.done[parent.data.params["method"], int(parent.data.params["seed"])]
        children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
        assert sorted(run.data.tags["stage"] for run in children) == ["extract", "pretrain"]
        assert {run.data.tags["dvc.experiment"] for run in [parent, *children]} == {Path(experiment.name).name}
        pretrain = next(run for run in children if run.data.tags["stage"] == "pretrain")
        history = {point.step: point.value for point in client.get_metric_history(pretrain.info.run_id, "loss")}
        assert list(history) == list(range(1, experiment.metrics["steps"] + 1))
        assert round(history[experiment.metrics["steps"]], 6) == experiment.metrics["loss"]


def test_checkpoints_lie_apart_and_are_gone(queue):
    assert [path for path in (queue.folder / ".resume").iterdir() if path.is_dir()] == []
    names = {path.name.partition(".")[0].rpartition("-") for path in (queue.folder / ".resume").iterdir()}
    stages = [stage for stage, _, _ in names]
    assert (stages.count("pretrain"), stages.count("baseline")) == (4, 2)


def test_two_processes_of_one_configuration(hundred, tmp_path):
    quiet, both = (workspace(tmp_path / name, hundred, method="mae") for name in ("quiet", "both"))
    assert stage(quiet, "pretrain").returncode == 0
    command = [sys.executable, str(ROOT / "stages/pretrain.py")]
    running = [subprocess.Popen(command, cwd=both, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300)[1] for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    assert sum("waiting for its end" in text for text in said) == 1
    found, wanted = (folder / "models/pretrained/task.safetensors" for folder in (both, quiet))
    assert found.read_bytes() == wanted.read_bytes()
    assert np.array_equal(*(np.loadtxt(folder / "plots/pretrain.csv", str) for folder in (both, quiet)))
