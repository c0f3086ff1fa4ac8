"""Data that several tests share, written once a session."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsup import logs
from selfsup.data.shards import write
from selfsup.evaluation import protocols
from tests import toykinds
from tests.helpers import params

os.environ.setdefault("OMP_NUM_THREADS", "1")
logs.configure()  # as the stages do: what is logged is on stderr


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """The embedded digits."""
    folder = tmp_path_factory.mktemp("digits") / "shards"
    write(params(data__cache="none").data.of("image"), 0, folder, processes=1)
    return folder


@pytest.fixture(scope="session")
def hundred(tmp_path_factory) -> Path:
    """A hundred labelled training images or so: three steps of 32."""
    folder = tmp_path_factory.mktemp("hundred") / "shards"
    write(params(data__limit=120).data.of("image"), 0, folder, processes=1)
    return folder


@pytest.fixture(scope="session")
def unlabelled_shards(tmp_path_factory) -> Path:
    """Forty images in one folder, without classes."""
    root = tmp_path_factory.mktemp("unlabelled")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    for i in range(40):
        Image.fromarray(rng.integers(0, 255, (20, 24, 3), np.uint8)).save(root / "images" / f"{i}.png")
    write(
        params(data__image__source="image_folder", data__image__path=str(root / "images")).data.of("image"),
        0,
        root / "shards",
        processes=1,
    )
    return root / "shards"


@pytest.fixture
def found_in(monkeypatch):
    """A function that adds a folder to those in which protocols are found."""
    before = set(sys.modules)

    def add(folder: Path) -> None:
        monkeypatch.setattr(protocols, "__path__", [*protocols.__path__, str(folder)])

    yield add
    for name in set(sys.modules) - before:
        if name.startswith(f"{protocols.__name__}."):  # a file of the same name is another module in another test
            del sys.modules[name]


@pytest.fixture
def toy(found_in) -> str:
    """The protocol in evaluation/toys/nearest.py is known; its name."""
    found_in(Path(__file__).parent / "evaluation/toys")
    return "nearest"


@pytest.fixture(scope="module")
def sequence_kind():
    """The kind of data in toykind/ is known: its name."""
    with pytest.MonkeyPatch.context() as patch:
        toykinds.mount(patch)
        yield "sequence"
    toykinds.unmount()
