"""Write a source as WebDataset shards with an index, in parallel, the same bytes on every run."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsup.blocks import KindData, models
from selfsup.data import copies
from selfsup.data.format import Intake
from selfsup.data.groups import group_numbers
from selfsup.data.index import SCHEMA, Copies, Index, Skipped, write_index
from selfsup.data.notes import copied, grouped, rare
from selfsup.data.plan import Plan, check_classes, lacking, plan
from selfsup.data.source import SPLITS, Samples
from selfsup.data.sources import open_source
from selfsup.data.writer import Job, Written, run
from selfsup.files import replaced
from selfsup.logs import one_line


def write(data: KindData, seed: int, folder: Path | str, processes: int | None = None) -> Index:
    """Write the shards of `data` into `folder`, replacing what is there, and return their index.

    Everything is written beside the folder first and takes its place at the end, so that an error, a full disk or a
    kill leaves what was there before. The bytes do not depend on the number of processes (None: one per core).
    Copies that are dropped, and classes that unreadable files make rare, are known only when all files were read: the
    splits are then made again without these files, and written again, until nothing is left to leave out: with
    `data.limit`, samples that were not read before take the places. Raises `UserError`.
    """
    processes = processes or _cores()
    with replaced(Path(folder)) as partial:
        partial.mkdir()
        source = open_source(data, partial / "scratch")
        groups = group_numbers(source.splits, data)
        made = judged = _write_splits(plan(source, data, seed, groups, {}, _remedy(data, [])), data, partial, processes)
        skipped, later = made.skipped(), 0
        without: dict[str, np.ndarray] = {}
        while more := _to_leave_out(made, data):
            for split in SPLITS:
                shutil.rmtree(partial / split)
            without = {split: np.append(without.get(split, numbers[:0]), numbers) for split, numbers in more.items()}
            again = plan(source, data, seed, groups, without, _remedy(data, skipped))
            made = _write_splits(again, data, partial, processes)
            skipped += made.skipped()
            if data.duplicates == "drop":
                later += copies.count(made.copies(), dropped=True).surplus
            else:
                judged = made
        check_classes(made.labels(), made.plan.classes, data.noun, _remedy(data, skipped))
        found = judged.copies()
        counts = copies.count(found, dropped=data.duplicates == "drop")
        counts = counts.model_copy(update={"surplus": counts.surplus + later, "dropped": counts.dropped + later})
        notes = [*copied(found, counts, judged.plan, data), *rare(made.plan, data), *grouped(groups, made.plan)]
        index = write_index(_index(made, data, seed, skipped, counts, notes), partial)
        shutil.rmtree(partial / "scratch", ignore_errors=True)
    return index


def said(index: Index) -> list[str]:
    """What was written, as lines for the console."""
    counts = ", ".join(f"{split} {index.samples(split)}" for split in index.splits)
    classes = f"{len(index.classes)} {'class' if len(index.classes) == 1 else 'classes'}"
    left_out = ", ".join(f"{count:,} {what}" for what, count in index.left_out.items())
    noun = models()[index.kind].noun
    first = f"{counts} {noun}; {classes}; {index.skipped_count} skipped" + (
        f"; left out: {left_out}" if left_out else ""
    )
    return [first, *(f"note: {one_line(note)}" for note in index.notes)]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _remedy(data: KindData, skipped: list[Skipped]) -> str:
    """What helps where a split lacks samples of a class."""
    if skipped:
        what = f"fix the {len(skipped)} unreadable files"
    elif data.limit is not None:
        what = "raise data.limit"
    else:
        what = f"add {data.noun}" if data.group is None else f"add {data.noun} of other groups (data.group)"
    return f"{what}, set data.rare: keep" if data.rare == "fail" else what


@dataclass
class _Made:
    """A plan and what came of its jobs, in their order."""

    plan: Plan
    jobs: list[Job]
    results: list[Written]
    intake: Intake  # what all shards hold

    def of(self, split: str) -> list[tuple[Job, Written]]:
        pairs = zip(self.jobs, self.results, strict=True)
        return [(job, result) for job, result in pairs if job.split == split]

    def labels(self) -> dict[str, list[int]]:
        """Of the samples in the shards."""
        return {split: [label for _, result in self.of(split) for label in result.labels] for split in SPLITS}

    def skipped(self) -> list[Skipped]:
        return [entry for result in self.results for entry in result.skipped]

    def places(self, split: str) -> np.ndarray:
        """The places in the plan's split of the samples in the shards, int64 [N]."""
        return np.concatenate([job.first + result.places for job, result in self.of(split)])

    def copies(self) -> copies.Found:
        """The equal samples among those in the shards."""
        samples = {}
        for split in SPLITS:
            places, digests = self.places(split), [result.digests for _, result in self.of(split)]
            samples[split] = copies.Part(
                digests=np.concatenate(digests),
                labels=self.plan.split_labels(split)[places],
                origin=self.plan.origin[split],
                numbers=self.plan.numbers[split][places],
                places=places,
            )
        return copies.find(samples)


def _to_leave_out(made: _Made, data: KindData) -> dict[str, np.ndarray]:
    """Numbers of samples, per split of the source, without which the splits must be made again; {}: all is well."""
    extra = copies.surplus(made.copies()) if data.duplicates == "drop" else {}
    again = any(map(len, extra.values()))
    if data.rare != "fail":
        again |= any(lacking(labels, len(made.plan.classes)) for labels in made.labels().values())
    if not again:
        return {}
    out = {split: [numbers] for split, numbers in extra.items()}
    for split in SPLITS:
        unreadable = np.delete(made.plan.numbers[split], made.places(split))
        out.setdefault(made.plan.origin[split], []).append(unreadable)
    return {split: np.concatenate(parts) for split, parts in out.items()}


def _write_splits(splits: Plan, data: KindData, folder: Path, processes: int) -> _Made:
    jobs = []
    for split in SPLITS:
        (folder / split).mkdir()
        samples = splits.samples(split)
        for number, first in enumerate(range(0, len(samples.names), data.samples_per_shard)):
            cut = slice(first, first + data.samples_per_shard)
            part = Samples(samples.names[cut], samples.labels[cut], samples.refs[cut])
            jobs.append(Job(folder, split, number, first, part, data))
    return _Made(splits, jobs, *run(jobs, splits.source.read, processes))


def _index(made: _Made, data: KindData, seed: int, skipped: list[Skipped], counts: Copies, notes: list[str]) -> Index:
    source = made.plan.source
    facts, of_files = made.intake.facts()
    return Index(
        schema_version=SCHEMA,
        kind=data.kind,
        source=data.source,
        seed=seed,
        classes=made.plan.classes,
        facts=facts,
        splits={split: [result.shard for _, result in made.of(split) if result.shard] for split in SPLITS},
        skipped_count=len(skipped),
        skipped=skipped,
        copies=counts,
        rare=made.plan.rare,
        left_out=source.left_out,
        notes=[*source.notes, *of_files, *notes],
    )
