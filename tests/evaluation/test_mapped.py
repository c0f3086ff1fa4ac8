import errno
import os
import tempfile

import numpy as np
import pytest

from selfsup.evaluation import logistic, mapped
from selfsup.evaluation.protocols import dimensions, few_label, linear
from selfsup.evaluation.result import flat, labelled
from selfsup.features.store import Splits
from tests.evaluation.test_neighbours import splits


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Everything but a few rows is too large for memory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(mapped, "SMALL", 8)
    return tmp_path


def test_large_arrays_lie_in_a_file_without_a_name(small):
    blocks = [np.arange(6).reshape(3, 2), np.ones((2, 2), np.float32)]
    found = mapped.gathered(iter(blocks), 5, 2)
    assert isinstance(found, np.memmap) and not found.flags.writeable and found.dtype == np.float32
    assert found.tolist() == [[0, 1], [2, 3], [4, 5], [1, 1], [1, 1]]
    assert list(small.iterdir()) == [], "a stage that is killed leaves nothing behind"
    assert not isinstance(mapped.gathered(iter(blocks[1:]), 2, 2), np.memmap)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("protocol", "params"),
    [
        (linear, linear.Params(c=[0.1, 1.0])),
        (few_label, few_label.Params(per_class=[2], fraction=[1.0], draws=2, c=[0.1])),
        (dimensions, dimensions.Params(components=[1, 3], neighbours=5, temperature=0.07)),
    ],
)
def test_figures_are_the_same_bits_in_memory_and_in_a_file(monkeypatch, protocol, params):
    features, labels = splits(1)
    labels = labels._replace(train=np.where(np.arange(60) % 5 == 0, -1, labels.train))
    by_file = protocol.run(features, labels, params, 0)
    assert isinstance(logistic.Standardise(features.train)(features.train), np.memmap)
    assert isinstance(labelled(features, labels)[0].train, np.memmap)
    monkeypatch.setattr(mapped, "SMALL", 1 << 26)
    in_memory = protocol.run(features, labels, params, 0)
    assert not isinstance(labelled(features, labels)[0].train, np.memmap)
    assert flat(by_file) == flat(in_memory)


def test_arrays_in_which_all_are_labelled_are_not_copied():
    features, labels = splits(2)
    assert all(a is b for a, b in zip(labelled(features, labels)[0], features, strict=True))
    assert labelled(features, Splits(*(np.full_like(y, -1) for y in labels)))[0].train.shape == (0, 6)


@pytest.mark.usefixtures("small")
def test_a_full_disk_names_what_is_written(monkeypatch):
    class Full:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

        def write(self, _):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "TemporaryFile", lambda dir: Full())
    with pytest.raises(OSError, match=r"No space left on device: 'a temporary file of the working folder'"):
        mapped.gathered([np.ones((5, 2))], 5, 2)
