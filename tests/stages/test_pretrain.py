"""Bad input to the training stages: one line that says what to do, exit 1, nothing lost."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from ruamel.yaml import YAML

from selfsup import needs
from selfsup.data.loader import open_splits
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.features.writer import SPLITS
from selfsup.params import load
from tests.helpers import ROOT, SMALL, small, values

sys.path.insert(0, str(ROOT / "stages"))


def workspace(folder: Path, shards: Path, **overrides) -> Path:
    folder.mkdir(exist_ok=True)
    chosen = SMALL | {"tracking__enabled": False, "pretrain__epochs": 1} | overrides
    YAML().dump(values(**chosen), folder / "params.yaml")
    with contextlib.suppress(UserError):  # of parameters that are wrong on purpose
        found = load(folder / "params.yaml")
        needs.write(found, "image", found.methods[found.method]["backbone"], folder)
    (folder / "data").mkdir(exist_ok=True)
    if not (folder / "data/shards").exists():
        shutil.copytree(shards, folder / "data/shards")
    return folder


def stage(folder: Path, name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / f"stages/{name}.py"), *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=os.environ | environment, timeout=300
    )


def the_line(done: subprocess.CompletedProcess) -> str:
    """The one line of complaint; progress bars aside, nothing else may be on stderr."""
    assert done.returncode == 1, done.stderr
    lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip() and "img/s" not in line]
    lines = [line for line in lines if "images/s" not in line]
    assert len(lines) == 1 and lines[0].startswith("error: "), done.stderr
    return lines[0]


BAD = {
    "fewer images than the batch": ("pretrain", {"pretrain__batch_size": 512}, "pretrain.batch_size"),
    "half precision without a GPU": ("pretrain", {"pretrain__precision": "fp16"}, "pretrain.precision"),
    "unknown network": (
        "pretrain",
        {"backbones__conv": {"name": "resnet19", "small_stem": False, "options": {}}},
        "resnet18",
    ),
    "unknown option of a network": (
        "pretrain",
        {"backbones__conv": {"name": "resnet18", "small_stem": False, "options": {"widht": 3}}},
        "widht",
    ),
    "small stem on a network without": (
        "pretrain",
        {"backbones__conv": {"name": "mobilenetv3_small_050", "small_stem": True, "options": {}}},
        "small_stem",
    ),
    "MAE on a convolutional network": (
        "pretrain",
        {"method": "mae", "methods__mae__backbone": "conv"},
        "methods.mae.backbone",
    ),
    "an image size that patches do not cover": (
        "check",
        {"method": "mae", "data__image__image_size": 18},
        "not a multiple of the vision",
    ),
    "a backbone that timm does not have": (
        "check",
        {"backbones__conv": {"name": "resnet19", "small_stem": True, "options": {}}},
        "near: resnet9, resnet18",
    ),
    "chunks that do not divide the batch": ("check", {"pretrain__chunk_size": 5}, "chunk_size: 5 does not divide"),
    "chunks of one image for batch norm": (
        "pretrain",
        {"method": "byol", "pretrain__chunk_size": 1},
        "pretrain.chunk_size: 1 leaves batch norm no other sample",
    ),
    "a misspelt knob": ("check", {"methods__simclr__temprature": 1.0}, "did you mean temperature"),
    "a misspelt knob of another method": ("check", {"methods__byol__momentun": 1.0}, "did you mean momentum"),
    "an unknown method": ("check", {"method": "simclear"}, "mean simclr? Known: align_uniform, barlow_twins, byol, "),
    "an unknown protocol": ("check", {"evaluation__protocols": ["knnn"]}, ", ".join(protocols.names())),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_parameters_are_one_line(case, hundred, tmp_path):
    name, overrides, expected = BAD[case]
    line = the_line(stage(workspace(tmp_path, hundred, **overrides), name, CUDA_VISIBLE_DEVICES=""))
    assert expected in line


def test_labels_needed_but_absent(unlabelled_shards, tmp_path):
    folder = workspace(tmp_path, unlabelled_shards, method="supervised", pretrain__batch_size=8)
    assert "no labels" in the_line(stage(folder, "pretrain"))


def test_a_shard_that_was_cut_is_refused_before_training(hundred, tmp_path):
    folder = workspace(tmp_path, hundred)
    shard = next((folder / "data/shards/train").glob("*.tar"))
    shard.write_bytes(shard.read_bytes()[:-1024])
    assert str(shard.relative_to(folder)) in the_line(stage(folder, "pretrain"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_checkpoint(hundred, tmp_path):
    wild = {"name": "sgd", "lr": 1e30, "momentum": 0.0, "weight_decay": 0.0}
    folder = workspace(tmp_path, hundred, method="rotation", methods__rotation__optimizer=wild)
    line = the_line(stage(folder, "pretrain"))
    assert re.search(r"not finite at step [1-9]", line) and "last good checkpoint" in line
    assert not (folder / "models").exists()


@pytest.mark.parametrize("world", ["0", "two", "-1"])
def test_nonsense_in_nproc(world, hundred, tmp_path):
    assert f"NPROC={world}" in the_line(stage(workspace(tmp_path, hundred), "pretrain", NPROC=world))


def test_more_processes_than_gpus(monkeypatch):
    from selfsup.processes import launch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    launch.check_devices(2)
    with pytest.raises(UserError, match="only 2 CUDA devices"):
        launch.check_devices(3)


def test_the_batch_must_divide_among_processes(hundred, tmp_path):
    folder = workspace(tmp_path, hundred, pretrain__batch_size=33)
    done = stage(folder, "pretrain", NPROC="2")
    assert done.returncode == 1
    assert "pretrain.batch_size" in done.stderr and "Traceback" not in done.stderr


def test_a_loss_that_is_not_finite_is_said_once_by_two_processes(hundred, tmp_path):
    wild = {"name": "sgd", "lr": 1e30, "momentum": 0.0, "weight_decay": 0.0}
    on = {"tracking__enabled": True}
    folder = workspace(tmp_path, hundred, method="rotation", methods__rotation__optimizer=wild, **on)
    assert "not finite" in the_line(stage(folder, "pretrain", NPROC="2"))


def test_two_processes_write_what_one_writes(hundred, tmp_path):
    """The launcher really starts two processes, and their work is that of one up to float32 rounding."""
    from safetensors.torch import load_file

    outs = []
    for world in ("1", "2"):
        folder = workspace(tmp_path / world, hundred, method="rotation")
        done = stage(folder, "pretrain", NPROC=world)
        assert done.returncode == 0, done.stderr
        done = stage(folder, "extract", NPROC=world)
        assert done.returncode == 0, done.stderr
        features = {f"{name}.npy": torch.tensor(np.load(folder / f"features/pretrained/{name}.npy")) for name in SPLITS}
        outs.append(load_file(folder / "models/pretrained/task.safetensors") | features)
        assert f'"world_size": {world}' in (folder / "metrics/times/pretrain.json").read_text()
    for name, x in outs[0].items():
        torch.testing.assert_close(outs[1][name], x, rtol=1e-3, atol=1e-3)


def test_a_tracking_server_that_is_down_costs_a_warning(hundred, tmp_path):
    down = {"tracking__enabled": True, "tracking__uri": "http://127.0.0.1:9"}
    start = time.monotonic()
    off = stage(workspace(tmp_path / "off", hundred), "pretrain")
    between = time.monotonic()
    done = stage(workspace(tmp_path / "down", hundred, **down), "pretrain")
    assert off.returncode == done.returncode == 0, done.stderr
    assert "http://127.0.0.1:9" in done.stderr and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "127.0.0.1:9" in line]
    assert sum("are kept in" in line for line in lines) == 1
    assert len(lines) == 1 or (len(lines) == 2 and "cannot be reached" in lines[0])  # after some attempts
    print(f"off {between - start:.1f} s, down {time.monotonic() - between:.1f} s")
    assert (tmp_path / "down/models/backbone/model.safetensors").exists()


def test_small_is_valid():
    assert small().pretrain.batch_size == 32


@pytest.mark.parametrize("world", ["1", "2"])
def test_a_configuration_that_is_being_trained_is_waited_for(hundred, tmp_path, world):
    from selfsup.training import session

    folder = workspace(tmp_path, hundred)
    params = load(folder / "params.yaml")
    splits = open_splits(params.data, folder / "data/shards", verified=True)
    resume = session.resume_folder(Path(), "pretrain", params, "simclr", "conv", splits["train"].checksum)
    command, log = [sys.executable, str(ROOT / "stages/pretrain.py")], tmp_path / "log"
    with session.owned(folder / resume), log.open("w") as file:
        waiting = subprocess.Popen(command, cwd=folder, env=os.environ | {"NPROC": world}, stderr=file)
        while "another process runs exactly this configuration; waiting" not in log.read_text():
            assert waiting.poll() is None
            time.sleep(0.1)
        assert not list((folder / resume).glob("*")), "nothing is trained meanwhile"
    assert waiting.wait(timeout=120) == 0
    assert (folder / "models/pretrained/task.safetensors").exists()
    other = params.model_copy(update={"seed": 1})
    assert session.resume_folder(Path(), "pretrain", other, "simclr", "conv", splits["train"].checksum) != resume


def test_a_killed_process_is_named_and_the_run_goes_on_after(hundred, tmp_path):
    """SIGKILL to one of two workers ends the stage in a line; the same command then finishes, with the same bits."""
    from safetensors.torch import load_file

    longer = {"method": "mae", "pretrain__epochs": 40}
    quiet, killed = (workspace(tmp_path / name, hundred, **longer) for name in ("quiet", "killed"))
    assert stage(quiet, "pretrain", NPROC="2").returncode == 0
    command = [sys.executable, str(ROOT / "stages/pretrain.py")]
    running = subprocess.Popen(
        command, cwd=killed, env=os.environ | {"NPROC": "2"}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    while not list(killed.glob(".resume/*/step-*.pt")):
        assert running.poll() is None
        time.sleep(0.05)
    workers = [p for p in psutil.Process(running.pid).children(recursive=True) if "RANK" in p.environ()]
    workers[-1].kill()
    said = running.communicate(timeout=120)[1].decode()
    assert running.returncode == 1
    assert "was killed by signal 9; run the same command again" in said and "Traceback" not in said
    assert stage(killed, "pretrain", NPROC="2").returncode == 0
    one, other = (load_file(folder / "models/pretrained/task.safetensors") for folder in (quiet, killed))
    assert all(torch.equal(one[name], other[name]) for name in one)
