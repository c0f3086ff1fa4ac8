"""Images, folders and parameters for the tests of data."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfsup.data import decode
from selfsup.data.loader import Split, open_split
from selfsup.data.shards import write
from selfsup.params import Data
from tests.helpers import params


def data(**overrides: Any) -> Data:
    """The `data` section of `params.yaml` with overrides, decoding in memory."""
    return params(**{f"data__{name}": value for name, value in ({"cache": "memory"} | overrides).items()}).data


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A random image, uint8 [H W 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def file(image: Image.Image, format: str, **options: Any) -> bytes:
    """An image's file."""
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def class_folders(root: Path, counts: dict[str, int], size: int = 6) -> Path:
    """Class folders with so many PNGs each, every image different."""
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / name / f"{i:03d}.png").write_bytes(decode.png(noise(size, size + 1, seed=1000 * number + i)))
    return root


def shards(folder: Path, seed: int = 0, processes: int | None = 1, **overrides: Any) -> dict[str, Split]:
    """Write shards and open the splits."""
    values = data(**overrides)
    write(values, seed, folder, processes)
    return {name: open_split(folder, name, values) for name in ("train", "validation", "test")}


def contents(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
