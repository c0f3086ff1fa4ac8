"""Features of all splits as files, written by all processes. An extraction that was killed continues where it stopped.

The rows are first written to a folder outside the stage's outputs, which DVC deletes before each run. Beside each file,
every process notes how many rows of its share are on the disk, with their checksum.
"""

import json
import os
import shutil
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from selfsup import digests
from selfsup.data.loader import Split
from selfsup.features.encode import encoded, share
from selfsup.files import replaced, write_json
from selfsup.nn.distributed import rank, world

SPLITS = ("train", "validation", "test")
EVERY = 1.0  # seconds between two notes of a process, at least


class Written(NamedTuple):
    """What is known of a split whose features are written."""

    width: int  # D
    seconds: float  # of this process, over all restarts


class _Note(NamedTuple):
    """How far a process has come in its share of a split."""

    rows: int = 0
    crc32: int = 0  # of these rows
    seconds: float = 0.0


def write_features(encoder: nn.Module, split: Split, device: torch.device, path: Path, title: str) -> Written:
    """Write a split's pooled features as float32 [N D] to the `.npy` file `path`, in parts: memory is bounded.

    Continues what a killed call left at `path`, which must have had the same encoder, samples, device and number of
    processes. A whole file is left as it is.
    """
    encoder.to(memory_format=torch.channels_last)  # faster for convolutions, without effect on all else
    start, place = time.monotonic(), path.with_suffix(f".{rank()}.json")
    width = _width(path, split.samples)
    _wait()  # all have looked before the first process creates the file
    first, stop = share(split.samples)
    note = earlier = _noted(place, path, first) if width else _Note()
    file: BinaryIO | None = path.open("r+b") if width else None
    noted, unit, silent = start, f" {split.data.noun}", rank() != 0
    bar = tqdm(total=split.samples, initial=note.rows * world(), unit=unit, unit_scale=True, desc=title, disable=silent)
    for row, pooled in encoded(encoder, split, device, note.rows):
        if file is None:
            width = pooled.shape[1]
            file = _shared_file(path, split.samples, width)
        rows = np.ascontiguousarray(pooled.float().cpu().numpy())
        _put(file, path.stat().st_size - 4 * width * (split.samples - row), rows)
        now = time.monotonic()
        note = _Note(row + len(rows) - first, zlib.crc32(rows.data, note.crc32), earlier.seconds + now - start)
        if now - noted >= EVERY or row + len(rows) == stop:
            _put(file, None)
            write_json(place, note._asdict())
            noted = now
        bar.update(len(rows) * world())
    bar.close()
    if file is None:
        file = _shared_file(path, split.samples, width)
    file.close()
    _wait()
    return Written(width, note.seconds)


def _wait() -> None:
    if world() > 1:
        torch.distributed.barrier()


def _width(path: Path, rows: int) -> int:
    """D of the file that a killed call left; 0 without one, or where it is not of `rows` rows."""
    try:
        left = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return 0
    return left.shape[1] if left.ndim == 2 and len(left) == rows and left.dtype == np.float32 else 0


def _noted(place: Path, path: Path, first: int) -> _Note:
    """The note in `place` of the rows in `path` from `first` on; an empty one where the rows are not those noted."""
    try:
        note = _Note(**json.loads(place.read_text()))
        rows = np.load(path, mmap_mode="r", allow_pickle=False)[first : first + note.rows]
        return note if zlib.crc32(rows.data) == note.crc32 else _Note()
    except (OSError, ValueError, TypeError):
        return _Note()


def _shared_file(path: Path, rows: int, width: int) -> BinaryIO:
    """One `.npy` file to which every process writes its rows. Rank 0 creates the file."""
    if rank() == 0:
        with replaced(path) as new:  # not in place: the file of before may be linked to the outputs
            np.lib.format.open_memmap(new, "w+", np.float32, (rows, width)).flush()
    _wait()
    return path.open("r+b")


def _put(file: BinaryIO, place: int | None, rows: np.ndarray | None = None) -> None:
    """Write `rows` at `place`, or without rows put on the disk what was written.

    Unlike with a memory map, a full disk raises `OSError`, with the file's name, instead of SIGBUS.
    """
    try:
        if rows is None:
            os.fsync(file.fileno())
        else:
            file.seek(place or 0)
            file.write(np.ascontiguousarray(rows).data)
            file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), file.name) from error


def write_feature_set(
    encoder: nn.Module,
    splits: Mapping[str, Split],
    device: torch.device,
    folder: Path,
    facts: dict[str, Any],
    resume: Path,
) -> dict[str, Any]:
    """Features of all splits and their `meta.json` in `folder`, by way of `resume`, a folder for these samples alone.

    Returns the contents of the meta file, timings over all restarts and, on rank 0, the features' `digest`.
    """
    place = resume / f"{folder.name}-{_key(encoder, device)}"
    written = [
        write_features(encoder, split, device, place / f"{name}.npy", f"features {folder.name} {name}")
        for name, split in splits.items()
    ]
    meta, digest = facts | {"width": written[-1].width}, ""
    if rank() == 0:  # without timings: equal features are equal outs
        with replaced(folder) as new:
            new.mkdir()
            for name in splits:
                _link(place / f"{name}.npy", new / f"{name}.npy")
            (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
            digest = digests.of_files(*(new / f"{name}.npy" for name in SPLITS))
    _wait()  # the folder is in its place for all
    seconds = sum(split.seconds for split in written)
    speed = round(sum(split.samples for split in splits.values()) / max(seconds, 1e-9), 1)
    return meta | {"seconds": round(seconds, 3), "images_per_second": speed, "digest": digest}


def _key(encoder: nn.Module, device: torch.device) -> str:
    """Digest of what decides the features' bits beside samples and code: weights, kind of device, processes."""
    state = encoder.state_dict()
    tensors = (x.detach().cpu().contiguous().flatten().view(torch.uint8).numpy() for x in state.values())
    return digests.of_values(
        [type(encoder).__qualname__, list(state), digests.of_arrays(*tensors), device.type, world()]
    )


def _link(file: Path, place: Path) -> None:
    """The same file at another place, as a copy where the file system has no hard links."""
    try:
        place.hardlink_to(file)
    except OSError:
        shutil.copyfile(file, place)
