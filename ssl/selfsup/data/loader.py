"""Samples by number, and batches of them: the id of a sample is its place in its split."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from selfsup.blocks import Data, KindData
from selfsup.data import formats
from selfsup.data.decoded import Fetch, open_samples
from selfsup.data.format import Arrays, Unreadable
from selfsup.data.index import REMEDY, Index, load_table, verify
from selfsup.draw import epoch_order
from selfsup.errors import UserError

Batch = dict[str, Tensor]


def open_split(folder: Path | str, name: str, data: Data | KindData) -> "Split":
    """The split `name` (train, validation or test) of a folder of shards, verified according to `data.verify`.

    Raises `UserError` that names the shard that is damaged, and where `data` has no block for the shards' kind.
    """
    index = verify(folder, data.verify, [name])
    return Split(Path(folder), index, name, data.of(index.kind))


def open_splits(
    data: Data | KindData, folder: Path | str = "data/shards", verified: bool = False
) -> dict[str, "Split"]:
    """All splits by name, verified according to `data.verify`, or by size alone when another process just did."""
    if verified:
        data = data.model_copy(update={"verify": "size"})
    return {name: open_split(folder, name, data) for name in ("train", "validation", "test")}


class Split:
    """The samples of one split, numbered in the order of the shards. They are decoded when first asked for."""

    def __init__(self, folder: Path, index: Index, name: str, data: Any):
        self.folder, self.name = folder, name
        self.kind, self.data = index.kind, data  # the block of that kind with the shared keys
        self.shards = index.splits[name]
        self.cache = data.cache
        tables = [load_table(folder / shard.table.file) for shard in self.shards]
        self.labels: np.ndarray = np.concatenate([table["label"] for table in tables])  # int64 [N], -1: none
        self._offset = np.concatenate([table["offset"] for table in tables])
        self._bytes = np.concatenate([table["size"] for table in tables])
        self._shard = np.repeat(np.arange(len(tables)), [len(table["label"]) for table in tables])
        self.samples = len(self.labels)
        self.classes, self.rare = index.classes, index.rare
        self.format, self.facts = formats.find(index.kind), index.facts  # the latter are the format's `Facts`
        self.decoder = self.format.decoder(data, self.facts)
        if taken := {"id", "label"} & set(self.decoder.signals):
            raise UserError(f"data/formats/{self.kind}.py: no signal may be named {' or '.join(taken)}; rename it")
        self.checksum = index.checksum  # of the whole data set

    def __len__(self) -> int:
        return self.samples

    @cached_property
    def names(self) -> list[str]:
        """The source's file names."""
        tables = (load_table(self.folder / shard.table.file, "name") for shard in self.shards)
        names = [str(name) for table in tables for name in table["name"].tolist()]
        if len(names) != self.samples:
            raise UserError(f"{self.folder}: {len(names)} names for {self.samples} samples of {self.name}; {REMEDY}")
        return names

    def read(self, number: int) -> bytes:
        """The stored file of a sample."""
        with (self.folder / self.shards[self._shard[number]].file).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), int(self._bytes[number]), int(self._offset[number]))

    def gather(self, ids: Tensor | np.ndarray | Sequence[int]) -> Batch:
        """A batch on the CPU, in the order of `ids`, int64 [B].

        Returns `id` int64 [B], `label` int64 [B] (-1: none) and the kind's signals, such as `image` uint8 [B 3 S S] and
        `box` int64 [B 2] (height and width of the image in the square, at its top-left corner).
        """
        numbers = torch.as_tensor(ids, dtype=torch.int64)
        return {"id": numbers, **self._fetch(numbers), "label": self._labels[numbers]}

    @cached_property
    def _labels(self) -> Tensor:
        return torch.from_numpy(self.labels)

    @cached_property
    def _fetch(self) -> Fetch:
        mean_bytes = float(self._bytes.mean())
        signals, noun = self.decoder.signals, self.data.noun
        return open_samples(self.cache, self._cache_folder(), self.samples, signals, self._decode, mean_bytes, noun)

    def _cache_folder(self) -> Path:
        """Decoded samples depend on the shards' bytes and the decoder, and are shared by what has the same."""
        key = [self.kind, str(self.format.VERSION), repr(self.decoder), *(shard.sha256 for shard in self.shards)]
        digest = hashlib.sha256(" ".join(key).encode()).hexdigest()[:24]
        return Path(os.environ.get("DVC_ROOT") or ".", ".cache", "decoded", digest, self.name)

    def _decode(self, number: int) -> Arrays:
        try:
            return self.decoder(self.read(number))
        except Unreadable as error:  # readable when it was sharded
            shard = self.folder / self.shards[self._shard[number]].file
            raise UserError(f"{shard}: sample {number} of {self.name}: {error}; set data.verify: full") from None


def train_batches(
    split: Split,
    *,
    seed: int,
    batch_size: int,
    start_step: int,
    steps: int,
    chunks: int = 1,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Batch]:
    """This process's rows of the batches of steps `start_step` to `steps` - 1, one being read ahead.

    The batch of a step, `batch_size` samples over all `world` processes, is a function of (seed, step) alone: a slice
    of the epoch's order. It has `chunks` equal parts, of each of which a process has its share. The samples left over
    at the end of an epoch are dropped. Raises `UserError`.
    """
    if split.samples < batch_size:
        have = f"{split.samples} training {split.data.noun}"
        raise UserError(f"pretrain.batch_size: {batch_size} is more than the {have}; lower it")
    if batch_size // chunks % world:
        name = "batch_size" if chunks == 1 else "chunk_size"
        raise UserError(
            f"pretrain.{name}: {batch_size // chunks} is not a multiple of the {world} processes; change either"
        )
    ids = train_ids(split.samples, seed, batch_size, range(start_step, steps))
    return _ahead(split, (batch.view(chunks, world, -1)[:, rank].flatten() for batch in ids))


def train_ids(samples: int, seed: int, batch_size: int, steps: range) -> Iterator[Tensor]:
    """The samples of each step's batch over all processes, int64 [batch_size]."""
    steps_per_epoch, known = samples // batch_size, -1
    for step in steps:
        epoch, place = divmod(step, steps_per_epoch)
        if epoch != known:
            order, known = epoch_order(seed, epoch, samples), epoch
        yield order[place * batch_size : (place + 1) * batch_size]


def ordered_batches(split: Split, batch_size: int, start: int = 0, stop: int | None = None) -> Iterator[Batch]:
    """Batches of the samples `start` to `stop` - 1 by id, one being read ahead; the last one may be short."""
    end = split.samples if stop is None else stop
    return _ahead(split, (torch.arange(i, min(i + batch_size, end)) for i in range(start, end, batch_size)))


def _ahead(split: Split, batches: Iterator[Tensor]) -> Iterator[Batch]:
    """Gather each batch in a background thread while the previous batch is used."""
    # Run torch single-threaded here: a second OpenMP pool would slow every training step.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        first = next(batches, None)
        coming = None if first is None else pool.submit(split.gather, first)
        while coming is not None:
            batch = coming.result()
            ids = next(batches, None)
            coming = None if ids is None else pool.submit(split.gather, ids)
            yield batch
