"""Decoded samples of a split: kept in memory, kept in a file that all processes and runs share, or not kept."""

import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from tqdm import tqdm

from selfsup.data.format import Arrays, Signal

_log = logging.getLogger(__name__)
Decode = Callable[[int], Arrays]  # of the sample of a number
Fetch = Callable[[Tensor], dict[str, Tensor]]  # numbers int64 [B] -> the signals by name, [B ...]
Store = dict[str, np.ndarray]  # the signals of several samples by name, [N ...]

_DISK_LIMIT = 20 * 10**9  # bytes of decoded samples that `auto` puts on the disk
_THREADS = min(16, os.cpu_count() or 1)
_TINY = 3000  # bytes of a file of which Python's share, one thread at a time, is most: more threads would slow it down
_PART = 256  # samples decoded at a time


def open_samples(
    cache: Literal["auto", "memory", "disk", "none"],
    folder: Path,
    samples: int,
    signals: Mapping[str, Signal],
    decode: Decode,
    mean_bytes: float,
    noun: str,
) -> Fetch:
    """How numbers become the `signals` of samples, with `data.cache` as `cache`. `noun` is what samples are called.

    Files of `mean_bytes` on average are decoded in as many threads as that is worth.

    A cache on the disk is in `folder`. The first process writes it while the others wait. `auto` is
    disk when that is there already, or takes less than 20 GB and less than half of the free space, and can be written;
    else none. Raises `OSError` with the folder's name for `disk`.
    """
    work = _Work(samples, signals, decode, 1 if mean_bytes < _TINY else _THREADS, noun)
    if cache == "auto":
        cache = "disk" if _complete(folder, work) or _fits(folder, work) else "none"
        if cache == "disk":
            try:
                _on_disk(folder, work)
            except OSError as error:
                _log.info("note: %s: %s; %s are decoded at each use", folder, error.strerror, noun)
                cache = "none"
    _log.debug("data.cache: %s for %d %s in %s", cache, samples, noun, folder)
    if cache == "none":
        pool = ThreadPoolExecutor(work.threads)
        return lambda numbers: _tensors(_decode_many(work, pool, numbers.numpy()))
    if cache == "disk":
        everything = _tensors(_on_disk(folder, work))
    else:
        store = work.empty(samples)
        for start, part in _decode_all(work, folder.name):
            for name, values in part.items():
                store[name][start : start + len(values)] = values
        everything = _tensors(store)
    return lambda numbers: {name: values[numbers] for name, values in everything.items()}


@dataclass(frozen=True)
class _Work:
    """What is to be decoded, and how."""

    samples: int
    signals: Mapping[str, Signal]
    decode: Decode
    threads: int
    noun: str

    def empty(self, samples: int) -> Store:
        return {name: np.empty((samples, *signal.shape), signal.dtype) for name, signal in self.signals.items()}

    def bytes(self) -> dict[str, int]:
        """The size of each signal's file."""
        return {
            name: self.samples * int(np.prod(signal.shape)) * np.dtype(signal.dtype).itemsize
            for name, signal in self.signals.items()
        }


def _tensors(store: Store) -> dict[str, Tensor]:
    return {name: torch.from_numpy(values) for name, values in store.items()}


def _complete(folder: Path, work: _Work) -> bool:
    files = {folder / name: size for name, size in work.bytes().items()}
    return all(file.is_file() and file.stat().st_size == size for file, size in files.items())


def _fits(folder: Path, work: _Work) -> bool:
    existing = next(parent for parent in folder.absolute().parents if parent.exists())
    return sum(work.bytes().values()) < min(_DISK_LIMIT, shutil.disk_usage(existing).free / 2)


def _on_disk(folder: Path, work: _Work) -> Store:
    if not _complete(folder, work):  # a whole one is read without writing anything
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                if not _complete(folder, work):
                    _decode_to(folder, work)
        except OSError as error:
            reason = f"{error.strerror or error} (data.cache: none does without it)"
            raise OSError(error.errno, reason, str(folder)) from error
    # copy-on-write, as torch needs writable memory; all processes of the machine share the pages
    return {
        name: np.memmap(folder / name, signal.dtype, "c", shape=(work.samples, *signal.shape))
        for name, signal in work.signals.items()
    }


def _decode_to(folder: Path, work: _Work) -> None:
    """Write beside the folder and rename, so that what lies in the folder is whole. One file per signal."""
    unfinished = folder.with_suffix(".partial")
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.mkdir()
    try:
        with ExitStack() as opened:
            files = {name: opened.enter_context((unfinished / name).open("wb")) for name in work.signals}
            for _, part in _decode_all(work, folder.name):
                for name, values in part.items():
                    files[name].write(values.data)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _decode_all(work: _Work, name: str) -> Iterator[tuple[int, Store]]:
    """The signals of all samples, part by part, each with the number of its first sample."""
    with (
        ThreadPoolExecutor(work.threads) as pool,
        tqdm(total=work.samples, desc=f"decode {name}", unit=f" {work.noun}") as bar,
    ):
        for start in range(0, work.samples, _PART):
            numbers = np.arange(start, min(start + _PART, work.samples))
            yield start, _decode_many(work, pool, numbers)
            bar.update(len(numbers))


def _decode_many(work: _Work, pool: ThreadPoolExecutor, numbers: np.ndarray) -> Store:
    store = work.empty(len(numbers))

    def fill(places: np.ndarray) -> None:
        for place in places.tolist():
            sample = work.decode(int(numbers[place]))
            for name, signal in work.signals.items():
                values = sample[name]
                if (values.shape, values.dtype) != signal:  # numpy would spread or cut it in silence
                    raise ValueError(f"{name}: decoded to {values.shape} {values.dtype}, but declared as {signal}")
                store[name][place] = values

    for _ in pool.map(fill, np.array_split(np.arange(len(numbers)), min(len(numbers), 4 * _THREADS))):
        pass
    return store
