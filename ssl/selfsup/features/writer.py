"""Features of all splits as files, written by all processes."""

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from selfsup import digests
from selfsup.data.loader import Split
from selfsup.features.encode import encoded
from selfsup.files import beside, replaced
from selfsup.nn.distributed import rank, world

SPLITS = ("train", "validation", "test")


def write_features(encoder: nn.Module, split: Split, device: torch.device, size: int, path: Path, title: str) -> int:
    """Write a split's pooled features as float32 [N D] to the `.npy` file `path`, in parts: memory is bounded.

    Returns D."""
    encoder.to(memory_format=torch.channels_last)  # faster for convolutions, without effect on all else
    file, width = None, 0
    bar = tqdm(total=split.samples, unit="img", unit_scale=True, desc=title, disable=rank() != 0)
    for first, pooled in encoded(encoder, split, device, size):
        if file is None:
            width = pooled.shape[1]
            file, start = _shared_file(path, split.samples, width)
        _put(file, start + 4 * width * first, pooled.float().cpu().numpy())
        bar.update(len(pooled) * world())
    bar.close()
    if file is None:
        file, _ = _shared_file(path, split.samples, width)
    file.close()
    if world() > 1:
        torch.distributed.barrier()
    return width


def _shared_file(path: Path, rows: int, width: int) -> tuple[BinaryIO, int]:
    """One `.npy` file to which every process writes its rows, and the offset of the rows. Rank 0 creates the file."""
    if rank() == 0:  # rank 0 only: `replaced` may still be clearing the folder
        path.parent.mkdir(parents=True, exist_ok=True)
        np.lib.format.open_memmap(path, "w+", np.float32, (rows, width)).flush()
    if world() > 1:
        torch.distributed.barrier()
    return path.open("r+b"), path.stat().st_size - 4 * rows * width


def _put(file: BinaryIO, place: int, rows: np.ndarray) -> None:
    """Write `rows` at `place`; unlike with a memory map, a full disk raises OSError instead of SIGBUS."""
    try:
        file.seek(place)
        file.write(np.ascontiguousarray(rows).data)
        file.flush()
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), file.name) from error


def write_feature_set(
    encoder: nn.Module, splits: Mapping[str, Split], device: torch.device, size: int, folder: Path, facts: dict[str, Any]
) -> dict[str, Any]:
    """Features of all splits and their `meta.json` in `folder`.

    Returns the contents of the meta file, timings and, on rank 0, the features' `digest`.
    """
    start = time.monotonic()
    with replaced(folder) if rank() == 0 else nullcontext(beside(folder)) as new:
        for name, split in splits.items():
            width = write_features(encoder, split, device, size, new / f"{name}.npy", f"features {folder.name} {name}")
        seconds = time.monotonic() - start
        images = sum(split.samples for split in splits.values())
        meta, digest = facts | {"width": width}, ""
        if rank() == 0:  # without timings: equal features are equal outs
            (new / "meta.json").write_text(json.dumps(meta, indent=2) + "\n")
            digest = digests.of_files(*(new / f"{name}.npy" for name in SPLITS))
    if world() > 1:
        torch.distributed.barrier()  # the folder is in its place for all
    speed = round(images / seconds, 1)
    return meta | {"seconds": round(seconds, 3), "images_per_second": speed, "digest": digest}
