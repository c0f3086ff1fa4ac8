"""Images, folders and parameters for the tests of data."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfsup.blocks import Shared
from selfsup.blocks.image import ImageData
from selfsup.data.formats.image import files as decode
from selfsup.data.loader import Split, open_split
from selfsup.data.shards import write
from tests.helpers import params


def data(**overrides: Any) -> ImageData:
    """The keys of `data` that images have, of `params.yaml` with overrides, decoding in memory."""
    shared = {name: value for name, value in ({"cache": "memory"} | overrides).items() if name in Shared.model_fields}
    own = {f"data__image__{name}": value for name, value in overrides.items() if name not in shared}
    return params(**{f"data__{name}": value for name, value in shared.items()}, **own).data.of("image")


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


def tiff(values: np.ndarray, order: str = "<", **tags: int | tuple[int, ...]) -> bytes:
    """An uncompressed TIFF of an array [H W] or [H W bands] of any type, written by hand: Pillow writes few of them.

    `order` is < or >. `tags` overrides `photometric` and adds `extra`, the meaning of the bands beyond colour, and
    `colours`, of a palette: all reds, all greens, all blues.
    """
    height, width, *rest = values.shape
    bands, bits = (rest or [1])[0], 8 * values.dtype.itemsize
    body = values.astype(values.dtype.newbyteorder(order)).tobytes()
    body += b"\0" * (len(body) % 2)
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    entries: dict[int, int | tuple[int, ...]] = {
        256: width, 257: height, 258: (bits,) * bands, 259: 1, 262: tags.get("photometric", 2 if bands > 2 else 1),
        273: 8, 277: bands, 278: height, 279: values.nbytes, 339: (kind,) * bands,
    }  # fmt: skip
    if "extra" in tags:
        entries[338] = tags["extra"]
    if "colours" in tags:
        entries[320] = tags["colours"]
    place = 8 + len(body) + 2 + 12 * len(entries) + 4
    table, long = b"", b""
    for tag, value in sorted(entries.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        raw = struct.pack(f"{order}{len(numbers)}{'I' if tag in (273, 279) else 'H'}", *numbers)
        table += struct.pack(f"{order}HHI", tag, 4 if tag in (273, 279) else 3, len(numbers))
        if len(raw) > 4:
            table += struct.pack(f"{order}I", place + len(long))
            long += raw + b"\0" * (len(raw) % 4)
        else:
            table += raw.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", 8 + len(body))
    return head + body + struct.pack(f"{order}H", len(entries)) + table + b"\0" * 4 + long
