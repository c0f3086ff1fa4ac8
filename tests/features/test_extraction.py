"""Features lie in the file in the order of the samples, and a full disk is an error that names the file."""

import errno
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from selfsup.features.encode import BATCH
from selfsup.features.writer import _put, write_features
from selfsup.nets.image import Raw


class Few:
    """A split of random images."""

    kind, data = "image", SimpleNamespace(image_size=4, noun="images")

    def __init__(self, samples: int):
        self.samples = samples
        self.images = torch.randint(0, 256, (samples, 3, 4, 4), dtype=torch.uint8)

    def gather(self, ids):
        return {"id": ids, "image": self.images[ids], "box": torch.full((len(ids), 2), 4)}


@pytest.mark.parametrize("samples", [0, 1, BATCH + 3])
def test_rows_are_those_of_the_samples(tmp_path, samples):
    split, path = Few(samples), tmp_path / "new" / "test.npy"
    width = write_features(Raw(), split, torch.device("cpu"), path, "test").width
    found = np.load(path)
    assert found.dtype == np.float32 and found.shape == (samples, width)
    if samples:
        np.testing.assert_allclose(found, split.images.flatten(1).numpy() / 255, atol=1e-6)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that is always full")
def test_a_full_disk_is_an_error_that_names_the_file():
    with Path("/dev/full").open("r+b", buffering=0) as file, pytest.raises(OSError) as error:
        _put(file, 0, np.ones((BATCH, 100), np.float32))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, "/dev/full")


def test_only_the_first_process_makes_the_folder(tmp_path, monkeypatch):
    """Another one that did would meet `replaced`, which clears the place of what a killed run left."""
    for name, value in (("rank", 1), ("world", 2)):
        for module in ("features.writer", "features.encode"):
            monkeypatch.setattr(f"selfsup.{module}.{name}", lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "barrier", lambda: None)
    with pytest.raises(FileNotFoundError):
        write_features(Raw(), Few(3), torch.device("cpu"), tmp_path / "new" / "train.npy", "test")
    assert not (tmp_path / "new").exists()
