"""Whole sentences for `index.json` on how the splits came about: classes without label, copies, groups."""

from collections.abc import Mapping

import numpy as np

from selfsup.blocks import KindData
from selfsup.data import copies, formats
from selfsup.data.index import Copies
from selfsup.data.plan import Plan
from selfsup.data.source import SPLITS
from selfsup.errors import UserError


def rare(plan: Plan, data: KindData) -> list[str]:
    """On classes that cannot be in every split."""
    if not plan.rare:
        return []
    noun, classes, samples = data.noun, len(plan.rare) + len(plan.classes), sum(plan.rare.values())
    name = max(plan.rare, key=lambda each: plan.rare[each])
    what = noun if data.group is None else "groups"
    helps = f"add {what}" if data.limit is None else "raise data.limit"
    have = "has" if len(plan.rare) == 1 else "have"
    first = (
        f"{len(plan.rare)} of {classes} classes {have} too few {what} for train, validation and test "
        f"(the largest is {name!r} with {plan.rare[name]} {noun})"
    )
    if data.rare == "drop":
        return [f"{first}: their {samples} {noun} are left out, as data.rare says"]
    where = ", ".join(
        f"{split} {count}" for split in SPLITS if (count := int((plan.split_labels(split) < 0).sum())) and plan.classes
    )
    return [
        f"{first}: their {samples} {noun} have no label ({where or 'none in a split'}), so that protocols which "
        f"need labels and the supervised baseline leave them out; {helps}, or set data.rare: drop"
    ]


def copied(found: copies.Found, counts: Copies, plan: Plan, data: KindData) -> list[str]:
    """On equal samples. Raises `UserError` where `data.duplicates` is `fail` and two splits have one."""
    noun, equal = data.noun, formats.find(data.kind).equality(data)
    notes = []
    for pair, samples in counts.across.items():
        one, other = pair.split("/")
        places = copies.example(found, one, other)
        names = [plan.name(split, place) for split, place in zip((one, other), places, strict=True)]
        if data.duplicates == "fail":
            raise UserError(
                f"data.duplicates: {names[0]} ({one}) and {names[1]} ({other}) are {equal} "
                f"({noun} of {other} that are also in {one}: {samples}); remove the copies or set data.duplicates: drop"
            )
        if data.duplicates == "warn":
            notes.append(
                f"{noun} of {other} that are also in {one}: {samples} of {len(plan.numbers[other])}, {equal} "
                f"(such as {names[0]} and {names[1]}): accuracy on {other} is too high; set data.duplicates: drop"
            )
    if data.duplicates == "drop" and counts.surplus:
        notes.append(f"copies of {noun} ({equal}) are left out, as data.duplicates says: {counts.surplus}")
    if counts.relabelled:
        names = [plan.name(split, place) for split, place in copies.relabelled_example(found)]
        notes.append(
            f"{counts.relabelled} {noun} equal another one with another label (such as {names[0]} and {names[1]}); "
            "correct their labels or remove them"
        )
    return notes


def grouped(groups: Mapping[str, np.ndarray] | None, plan: Plan) -> list[str]:
    """On how many groups each split has."""
    if groups is None:
        return []
    counts = {split: len(np.unique(groups[plan.origin[split]][plan.numbers[split]])) for split in SPLITS}
    have = ", ".join(f"{split} {count}" for split, count in counts.items())
    return [f"no group of data.group is in two splits: {have}"]
