"""Decoded images of a split: kept in memory, kept in a file that all processes and runs share, or not kept."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

_log = logging.getLogger(__name__)
Decode = Callable[[int], tuple[np.ndarray, tuple[int, int]]]  # number -> uint8 [3 S S], (height, width)
Fetch = Callable[[Tensor], tuple[Tensor, Tensor]]  # numbers int64 [B] -> uint8 [B 3 S S], int64 [B 2]

_DISK_LIMIT = 20 * 10**9  # bytes of decoded images that `auto` puts on the disk
_THREADS = min(16, os.cpu_count() or 1)
_TINY = 3000  # bytes of a file of which Python's share, one thread at a time, is most: more threads would slow it down
_PART = 256  # images decoded at a time


def open_images(
    cache: Literal["auto", "memory", "disk", "none"],
    folder: Path,
    samples: int,
    size: int,
    decode: Decode,
    mean_bytes: float,
) -> Fetch:
    """How numbers become squares of `size` pixels and their boxes, with `data.cache` as `cache`.

    Files of `mean_bytes` on average are decoded in as many threads as that is worth.

    A cache on the disk is in `folder`. The first process writes it while the others wait. `auto` is
    disk when that is there already, or takes less than 20 GB and less than half of the free space, and can be written;
    else none. Raises `OSError` with the folder's name for `disk`.
    """
    shape, threads = (samples, 3, size, size), 1 if mean_bytes < _TINY else _THREADS
    if cache == "auto":
        cache = "disk" if _complete(folder, shape) or _fits(folder, shape) else "none"
        if cache == "disk":
            try:
                _on_disk(folder, shape, decode, threads)
            except OSError as error:
                _log.info("note: %s: %s; images are decoded at each use", folder, error.strerror)
                cache = "none"
    _log.debug("data.cache: %s for %d images in %s", cache, samples, folder)
    if cache == "none":
        pool = ThreadPoolExecutor(threads)
        return lambda numbers: _tensors(*_decode_many(decode, pool, numbers.numpy(), size))
    if cache == "disk":
        all_images, all_boxes = _tensors(*_on_disk(folder, shape, decode, threads))
    else:
        images, boxes = np.empty(shape, np.uint8), np.empty((samples, 2), np.int64)
        for start, part, box in _decode_all(decode, samples, size, folder.name, threads):
            images[start : start + len(part)], boxes[start : start + len(part)] = part, box
        all_images, all_boxes = _tensors(images, boxes)
    return lambda numbers: (all_images[numbers], all_boxes[numbers])


def _tensors(images: np.ndarray, boxes: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images), torch.from_numpy(boxes)


def _complete(folder: Path, shape: tuple[int, ...]) -> bool:
    images, boxes = folder / "images.uint8", folder / "boxes.npy"
    return boxes.is_file() and images.is_file() and images.stat().st_size == int(np.prod(shape))


def _fits(folder: Path, shape: tuple[int, ...]) -> bool:
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    return int(np.prod(shape)) < min(_DISK_LIMIT, shutil.disk_usage(existing).free / 2)


def _on_disk(folder: Path, shape: tuple[int, ...], decode: Decode, threads: int) -> tuple[np.ndarray, np.ndarray]:
    if not _complete(folder, shape):  # a whole one is read without writing anything
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not _complete(folder, shape):
                    _decode_to(folder, shape, decode, threads)
        except OSError as error:
            reason = f"{error.strerror or error} (data.cache: none does without it)"
            raise OSError(error.errno, reason, str(folder)) from error
    # copy-on-write, as torch needs writable memory; all processes of the machine share the pages
    images = np.memmap(folder / "images.uint8", np.uint8, "c", shape=shape)
    return images, np.load(folder / "boxes.npy")


def _decode_to(folder: Path, shape: tuple[int, ...], decode: Decode, threads: int) -> None:
    """Write beside the folder and rename, so that what lies in the folder is whole."""
    unfinished = folder.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir()
    try:
        boxes = np.empty((shape[0], 2), np.int64)
        with (unfinished / "images.uint8").open("wb") as file:
            for start, images, box in _decode_all(decode, shape[0], shape[-1], folder.name, threads):
                file.write(images.data)
                boxes[start : start + len(box)] = box
        np.save(unfinished / "boxes.npy", boxes)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _decode_all(
    decode: Decode, samples: int, size: int, name: str, threads: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:  # first number, uint8 [n 3 S S], int64 [n 2]
    with (
        ThreadPoolExecutor(threads) as pool,
        tqdm(total=samples, desc=f"decode {name}", unit=" images") as bar,
    ):
        for start in range(0, samples, _PART):
            numbers = np.arange(start, min(start + _PART, samples))
            yield start, *_decode_many(decode, pool, numbers, size)
            bar.update(len(numbers))


def _decode_many(
    decode: Decode, pool: ThreadPoolExecutor, numbers: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
    images = np.empty((len(numbers), 3, size, size), np.uint8)
    boxes = np.empty((len(numbers), 2), np.int64)

    def fill(places: np.ndarray) -> None:
        for place in places.tolist():
            images[place], boxes[place] = decode(int(numbers[place]))

    for _ in pool.map(fill, np.array_split(np.arange(len(numbers)), min(len(numbers), 4 * _THREADS))):
        pass
    return images, boxes
