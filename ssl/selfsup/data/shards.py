"""Write a source as WebDataset shards with an index, in parallel, the same bytes on every run."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from selfsup.data.index import SCHEMA, Index, Shard, Statistics, write_index
from selfsup.data.names import Names
from selfsup.data.sources import SPLITS, Samples, Source, open_source
from selfsup.data.splits import held_out, kept, random_keys
from selfsup.data.writer import Job, run
from selfsup.errors import UserError
from selfsup.files import replaced
from selfsup.params import Data


def write(data: Data, seed: int, folder: Path | str, processes: int | None = None) -> Index:
    """Write the shards of `data` into `folder`, replacing what is there, and return their index.

    Everything is written beside the folder first and takes its place at the end, so that an error, a full disk or a
    kill leaves what was there before. The bytes do not depend on the number of processes (None: one a core).
    Raises `UserError`.
    """
    with replaced(Path(folder)) as partial:
        partial.mkdir()
        source = open_source(data, partial / "scratch")
        splits = plan(source, data, seed)
        index = _write_splits(source, splits, data, seed, partial, processes or _cores())
        shutil.rmtree(partial / "scratch", ignore_errors=True)
    return index


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def plan(source: Source, data: Data, seed: int) -> dict[str, Samples]:
    """The three splits. Test is the source's own or carved from train; then `data.limit`; then validation likewise.

    Raises `UserError` when a class cannot be in every split.
    """
    splits = dict(source.splits)
    everything = splits["train"]
    labels, count = everything.labels, len(everything.names)
    numbers = np.arange(count)
    if "test" not in splits:
        held = held_out(labels, random_keys(seed, "test", count), data.test)
        splits["test"] = _take(everything, numbers[held])
        numbers = numbers[~held]
    if data.limit is not None:
        numbers = numbers[kept(labels[numbers], random_keys(seed, "limit", count)[numbers], data.limit)]
    if "validation" not in splits:
        held = held_out(labels[numbers], random_keys(seed, "validation", count)[numbers], data.validation)
        splits["validation"] = _take(everything, numbers[held])
        numbers = numbers[~held]
    splits["train"] = _take(everything, numbers)
    ordered = {split: splits[split] for split in SPLITS}
    found = {split: samples.labels for split, samples in ordered.items()}
    _check_classes(found, source.classes, "add images" if data.limit is None else "raise data.limit")
    return ordered


def _take(samples: Samples, numbers: np.ndarray) -> Samples:
    names, refs = (
        values[numbers] if isinstance(values, Names) else [values[number] for number in numbers]
        for values in (samples.names, samples.refs)
    )
    return Samples(names, samples.labels[numbers], refs)


def _check_classes(labels: Mapping[str, Sequence[int] | np.ndarray], classes: list[str], remedy: str) -> None:
    """Every split needs an image, and one of each class."""
    counts = {
        split: np.bincount(np.array(found, int) + 1, minlength=len(classes) + 1) for split, found in labels.items()
    }
    for split, count in counts.items():
        if count.sum() == 0:
            have = ", ".join(f"{name} {other.sum()}" for name, other in counts.items())
            raise UserError(f"data: too few images, none is left for {split} ({have}); {remedy}")
        if len(missing := np.flatnonzero(count[1:] == 0)):
            name, more = classes[missing[0]], f" (and {len(missing) - 1} more classes)" if len(missing) > 1 else ""
            have = ", ".join(f"{other} {found[missing[0] + 1]}" for other, found in counts.items())
            raise UserError(
                f"data: class {name!r}{more} has no image for {split} ({have}), and each class needs one in every "
                f"split: {remedy}, remove the class or set data.labels: none"
            )


def _write_splits(
    source: Source, splits: dict[str, Samples], data: Data, seed: int, folder: Path, processes: int
) -> Index:
    jobs = []
    for split, samples in splits.items():
        (folder / split).mkdir()
        for number, first in enumerate(range(0, len(samples.names), data.samples_per_shard)):
            cut = slice(first, first + data.samples_per_shard)
            part = Samples(samples.names[cut], samples.labels[cut], samples.refs[cut])
            jobs.append(Job(folder, split, number, first, part, data))
    results = run(jobs, source.read, processes)

    labels: dict[str, list[int]] = {split: [] for split in splits}
    shards: dict[str, list[Shard]] = {split: [] for split in splits}
    mean, square = np.zeros(3), np.zeros(3)
    for job, result in zip(jobs, results, strict=True):
        labels[job.split] += result.labels
        if result.shard:
            shards[job.split].append(result.shard)
        if job.split == "train":
            mean, square = mean + result.mean, square + result.square
    skipped = [entry for result in results for entry in result.skipped]
    _check_classes(labels, source.classes, f"mend the {len(skipped)} unreadable files" if skipped else "add images")
    mean, square = mean / len(labels["train"]), square / len(labels["train"])
    std = np.sqrt(np.maximum(square - mean**2, 0))
    index = Index(
        schema_version=SCHEMA,
        source=data.source,
        seed=seed,
        store_size=data.store_size or data.image_size,
        classes=source.classes,
        statistics=Statistics(mean=mean.tolist(), std=std.tolist()),
        splits=shards,
        skipped_count=len(skipped),
        skipped=skipped,
        notes=[],
    )
    return write_index(index, folder)
