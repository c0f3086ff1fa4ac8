"""Scikit-learn's handwritten digits, which come with the installation."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from selfsup.blocks.image import ImageData
from selfsup.data.formats.image.files import png
from selfsup.data.source import Source, Watched, array_samples
from selfsup.errors import UserError


def listing(_data: ImageData, _scratch: Path) -> Source:
    return digits()


def watched(_data: ImageData) -> Watched:
    return Watched(None, why_not="digits are part of scikit-learn")


def digits() -> Source:
    """1,797 real scans of handwritten digits, 8x8 grey, that come with scikit-learn, without a split."""
    package = find_spec("sklearn")  # its file is read without it: importing it, and pandas with it, takes far longer
    if package is None or package.origin is None:
        raise UserError("data.image.source: digits come with scikit-learn, which is not installed; install it")
    values = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    scans, labels = values[:, :-1], values[:, -1]
    images = np.floor(scans.reshape(-1, 8, 8) * (255 / 16) + 0.5).astype(np.uint8)
    return Source([str(digit) for digit in range(10)], {"train": array_samples(images, labels)}, png)
