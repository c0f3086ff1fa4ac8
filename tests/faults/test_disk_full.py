"""A full disk ends each kind of writing with one clear line; what was there is intact, and the work goes on after.

On a small tmpfs where one can be mounted, which the test says in its output; else under a limit on a file's size.
"""

import contextlib
import io
import json
import os
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

from selfsup.data import decoded
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.errors import one_line_errors
from selfsup.features.writer import write_feature_set
from selfsup.nets.image import Raw
from selfsup.params import Tracking
from selfsup.tracking import runs as tracking
from selfsup.training import checkpoint
from selfsup.training.curves import Curves
from tests.data.make import contents, data
from tests.faults.limits import SmallDisk
from tests.helpers import processes

MIB = 1 << 20


def line(work) -> str:
    """The one line with which a stage would end."""
    with pytest.raises(SystemExit) as ended, one_line_errors():
        work()
    text = str(ended.value.code)
    assert text.startswith("error: ")
    assert len(text.splitlines()) == 1
    return text


def full(text: str) -> bool:
    return "No space left on device" in text or "File too large" in text


def _sharding(place: Path) -> str:
    disk = SmallDisk(place / "disk", 16 * MIB)
    values = data(limit=300)
    index = write(values, 0, disk.folder / "shards", processes=1)
    before = contents(disk.folder)
    disk.fill(leave=150_000)
    said = line(lambda: write(values.model_copy(update={"limit": None}), 1, disk.folder / "shards", processes=2))
    assert full(said)
    assert "shards" in said
    disk.free()
    assert contents(disk.folder) == before
    assert open_split(disk.folder / "shards", "train", values).checksum == index.checksum
    again = write(values.model_copy(update={"limit": None}), 1, disk.folder / "shards", processes=1)
    assert sum(again.samples(split) for split in again.splits) == 1797
    return disk.kind


def _checkpointing(place: Path) -> str:
    disk = SmallDisk(place / "disk", 16 * MIB)
    folder = disk.folder / "resume"
    checkpoint.save(folder, 1, {"step": 1, "w": torch.ones(MIB // 4)})
    before = contents(folder)
    for leave in (0, 1000, 600_000):
        disk.fill(leave)
        said = line(lambda: checkpoint.save(folder, 2, {"step": 2, "w": torch.ones(MIB // 4)}))
        assert "checkpoint of step 2" in said
        assert "previous checkpoint is intact" in said
        disk.free()
        assert contents(folder) == before
        assert checkpoint.load(folder)["step"] == 1
    checkpoint.save(folder, 2, {"step": 2, "w": torch.ones(MIB // 4)})
    assert checkpoint.load(folder)["step"] == 2
    return disk.kind


def _extraction(place: Path, shards: Path) -> str:
    disk = SmallDisk(place / "disk", 16 * MIB)
    splits = {name: open_split(shards, name, data()) for name in ("train", "validation", "test")}
    folder = disk.folder / "pixels"

    def extract(encoder: torch.nn.Module) -> None:
        write_feature_set(encoder, splits, torch.device("cpu"), folder, {"method": "pixels"}, disk.folder / "resume")

    extract(Raw())
    before = contents(folder)
    disk.fill(leave=MIB)  # the training split's features take 4
    said = line(lambda: extract(Twice()))
    assert full(said)
    assert "pixels" in said
    disk.free()
    after = contents(folder)
    assert {name: after[name] for name in before} == before
    assert set(after) == set(before)
    extract(Twice())
    assert np.array_equal(np.load(folder / "train.npy"), 2 * _features(before["train.npy"]))
    return disk.kind


class Twice(Raw):
    """Another network."""

    def forward(self, images):
        return {"pooled": 2 * super().forward(images)["pooled"]}


def _features(content: bytes) -> np.ndarray:
    return np.load(io.BytesIO(content))


def _caching(place: Path, shards: Path) -> str:
    disk = SmallDisk(place / "disk", 16 * MIB)
    os.environ["DVC_ROOT"] = str(disk.folder)
    expected = open_split(shards, "train", data()).gather(range(100))["image"]
    disk.fill(leave=300_000)  # the decoded images take a MiB
    said = line(lambda: open_split(shards, "train", data(cache="disk")).gather([0]))
    assert full(said)
    assert "data.cache" in said
    decoded._fits = lambda *_: True  # as when the disk fills up meanwhile
    assert torch.equal(open_split(shards, "train", data(cache="auto")).gather(range(100))["image"], expected)
    disk.free()
    assert not [name for name in contents(disk.folder) if not name.endswith(".lock")]
    assert torch.equal(open_split(shards, "train", data(cache="disk")).gather(range(100))["image"], expected)
    return disk.kind


def _curves(place: Path) -> str:
    disk = SmallDisk(place / "disk", MIB)
    path = disk.folder / "curves.jsonl"
    curves = Curves(path, 0)
    disk.fill(leave=10_000)

    def log() -> None:
        for step in range(1000):
            curves.add({"step": step, "loss": 1.0})

    said = line(log)
    assert full(said)
    disk.free()
    curves = Curves(path, 50)  # goes on from a checkpoint
    assert [row["step"] for row in curves.rows] == list(range(51))
    curves.add({"step": 51, "loss": 1.0})
    assert [json.loads(text)["step"] for text in path.read_text().splitlines()] == list(range(52))
    return disk.kind


def _tracking(place: Path) -> str:
    """The store and what would be kept for it lie on one disk: the stage goes on, and what is lost is said."""
    disk = SmallDisk(place / "disk", 16 * MIB)
    os.environ["DVC_ROOT"] = str(disk.folder)

    def stage(value: float) -> tuple[str, list[str]]:
        with contextlib.redirect_stderr(io.StringIO()) as said:
            with tracking.start(Tracking(enabled=True, uri=None, experiment="e"), "pretrain", "pretrain") as run:
                for step in range(3):
                    run.metrics({"loss": value}, step)
            tracking._channels.clear()  # the next stage is another process
        return run.key, said.getvalue().splitlines()

    def stored() -> dict[str, tuple[str, int]]:
        """Status and number of points of each run, by key."""
        runs = "select t.value, r.status, count(m.step) from runs r join tags t using (run_uuid) "
        runs += "left join metrics m using (run_uuid) where t.key = 'run_key' and m.key = 'loss' group by r.run_uuid"
        with contextlib.closing(sqlite3.connect(disk.folder / "mlflow.db")) as database:
            return {key: (status, points) for key, status, points in database.execute(runs)}

    first, said = stage(1.0)
    assert said == []
    assert stored() == {first: ("FINISHED", 3)}
    disk.fill(0)
    _, said = stage(2.0)
    assert len(said) == 1
    assert re.search(r"tracking: sqlite:.*lost: 3 points.*No space left on device|File too large", said[0])
    disk.free()
    assert stored()[first] == ("FINISHED", 3)
    third, said = stage(3.0)
    assert said == []
    assert stored()[first] == stored()[third] == ("FINISHED", 3)
    return disk.kind


@pytest.mark.parametrize("work", [_sharding, _checkpointing, _extraction, _caching, _curves, _tracking])
def test_a_full_disk_is_one_line_and_costs_nothing_that_was_there(tmp_path, shards, work):
    needed = {_extraction: (shards,), _caching: (shards,)}.get(work, ())
    kind = processes(1, work, tmp_path, *needed)
    print(f"small disk: {kind}")
    assert kind in ("tmpfs", "limit")
