"""An extraction that is killed and started again continues where it stopped, with the bits of an undisturbed one."""

import math
import os
import random
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from selfsup.data.loader import open_splits
from selfsup.features import encode, writer
from selfsup.features.writer import write_feature_set
from selfsup.processes.accelerator import make_accelerator
from tests.helpers import params, processes

SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(2**32))  # another one each time
BATCH = 8  # samples


class Mean(nn.Module):
    """Twelve weighted means of an image, whose last bits depend on the batch that it is in; counts its batches."""

    def __init__(self, scale: float, die_at: int | None):
        super().__init__()
        self.weight, self.die_at, self.calls = nn.Parameter(scale * torch.arange(12.0)[:, None]), die_at, 0

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if self.calls == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        means = images.flatten(1).mean(1, keepdim=True)
        return {"pooled": means @ self.weight.T + means.mean()}


def extract(shards: Path, place: Path, die_at: int | None = None, scale: float = 1.0, every: float = 0.0) -> int:
    """Write a feature set into `place`; the number of batches that the first process encoded."""
    encode.BATCH, writer.EVERY = BATCH, every
    device, splits = (
        make_accelerator("fp32").device,
        open_splits(params(data__cache="none").data, shards, verified=True),
    )
    encoder = Mean(scale, die_at if writer.rank() == writer.world() - 1 else None)
    write_feature_set(encoder, splits, device, place / "set", {}, place / "resume")
    return encoder.calls


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (place / "set").iterdir()}


def batches(shards: Path, world: int) -> int:
    """Of the first process in an undisturbed extraction."""
    counts = [split.samples for split in open_splits(params().data, shards, verified=True).values()]
    return sum(math.ceil(math.ceil(count / world) / BATCH) for count in counts)


def killed(world: int, *arguments: Any) -> bool:
    """Whether the extraction was killed: no result, or the other process noticed that its peer was gone."""
    try:
        return processes(world, extract, *arguments) is None
    except RuntimeError as error:
        return "closed by peer" in str(error) or "reset by peer" in str(error)


@pytest.mark.parametrize("world", [1, 2])
def test_killed_and_continued_equals_undisturbed(world, hundred, tmp_path):
    """The last process dies in the midst of a batch; the first is then killed wherever it is."""
    total = batches(hundred, world)
    at = random.Random(f"{SEED} {world}").randrange(1, total - 1)
    print(f"killed in batch {at}; to do the same again: KILL_SEED={SEED} pytest -k killed_and_continued")
    assert processes(world, extract, hundred, tmp_path / "whole") == total
    for folder in ("killed", "unnoted"):
        every = 0.0 if folder == "killed" else 1e9  # seconds between notes
        assert killed(world, hundred, tmp_path / folder, at, 1.0, every)
        assert not (tmp_path / folder / "set").exists()
        encoded = processes(world, extract, hundred, tmp_path / folder)
        assert contents(tmp_path / folder) == contents(tmp_path / "whole"), f"killed in batch {at}, KILL_SEED={SEED}"
        if world == 1:
            assert encoded == total - at if folder == "killed" else total - at <= encoded <= total
    assert processes(world, extract, hundred, tmp_path / "killed") == 0, "all is there already"


@pytest.mark.parametrize("change", ["weights", "processes", "damage", "cut short", "another number of rows"])
def test_what_belongs_to_something_else_is_not_continued(change, hundred, tmp_path):
    place, total = tmp_path / "killed", batches(hundred, 1)
    assert processes(1, extract, hundred, place, total - 1) is None
    (left,) = place.glob("resume/*/train.npy")
    if change == "damage":
        content = bytearray(left.read_bytes())
        content[-1] ^= 1
        left.write_bytes(content)
    elif change == "cut short":
        os.truncate(left, left.stat().st_size - 4)
    elif change == "another number of rows":
        np.save(left, np.load(left)[:-1])
    scale, world = 2.0 if change == "weights" else 1.0, 2 if change == "processes" else 1
    encoded = processes(world, extract, hundred, place, None, scale)
    assert processes(world, extract, hundred, tmp_path / "whole", None, scale) == batches(hundred, world)
    assert contents(place) == contents(tmp_path / "whole")
    trained = math.ceil(len(np.load(place / "set/train.npy")) / BATCH)
    again = trained + 1 if change in ("damage", "cut short", "another number of rows") else batches(hundred, world)
    assert encoded == again, "the training split, and the batch in which it was killed; or all"
