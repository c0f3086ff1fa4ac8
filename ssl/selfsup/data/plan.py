"""Which samples of a source make each split: carved test, limit, carved validation, and classes too small for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from selfsup.blocks import KindData
from selfsup.data.names import Names
from selfsup.data.source import SPLITS, Samples, Source
from selfsup.data.splits import held_out, held_out_groups, kept, places, random_keys
from selfsup.errors import UserError


@dataclass
class Plan:
    """The three splits as parts of the source's own, and the classes whose samples have no label."""

    source: Source
    origin: dict[str, str]  # of each split the source's split that it is a part of
    numbers: dict[str, np.ndarray]  # and the numbers of its samples there, int64 [N]
    labels: dict[str, np.ndarray]  # of the source's splits, int64 [N]: classes of `classes`, -1: none
    classes: list[str]
    rare: dict[str, int] = field(default_factory=dict)  # class -> its samples, kept without label or dropped

    def samples(self, split: str) -> Samples:
        own, numbers = self.source.splits[self.origin[split]], self.numbers[split]
        names, refs = (
            values[numbers] if isinstance(values, Names | np.ndarray) else [values[number] for number in numbers]
            for values in (own.names, own.refs)
        )
        return Samples(names, self.split_labels(split), refs)

    def name(self, split: str, place: int) -> str:
        return self.source.splits[self.origin[split]].names[int(self.numbers[split][place])]

    def split_labels(self, split: str) -> np.ndarray:
        return self.labels[self.origin[split]][self.numbers[split]]


def plan(
    source: Source,
    data: KindData,
    seed: int,
    groups: Mapping[str, np.ndarray] | None,
    without: Mapping[str, np.ndarray],
    remedy: str,
) -> Plan:
    """The three splits. Test is the source's own or carved from train; then `data.limit`; then validation likewise.

    `groups` int64 [N] per split of the source are never cut by what is carved. `without` holds the numbers of samples
    to leave out, per split of the source. A class that has fewer samples (or groups) than there are splits to carve it
    into, or none in a split of the source, is rare: as `data.rare` says it keeps its samples, in train where they would
    be carved, but no label; or it is dropped; or this fails. Raises `UserError` then, when fewer than two classes are
    left, and when a split has no sample; `remedy` ends the message.
    """
    draft = _Draft(source, data, groups, without)
    count = len(source.splits["train"].names)
    if "test" not in source.splits:
        draft.set_rare(draft.too_few(splits=2 + ("validation" not in source.splits)))
        draft.carve("test", random_keys(seed, "test", count), data.test, 1 + ("validation" not in source.splits))
    if data.limit is not None:
        numbers = draft.numbers["train"]
        chosen = kept(source.splits["train"].labels[numbers], random_keys(seed, "limit", count)[numbers], data.limit)
        draft.numbers["train"] = numbers[chosen]
    draft.set_rare(draft.too_few(splits=1 + ("validation" not in source.splits)))
    if "validation" not in source.splits:
        draft.carve("validation", random_keys(seed, "validation", count), data.validation, 1)
    draft.set_rare(draft.missing())  # what groups made impossible
    return draft.finish(remedy)


class _Draft:
    """The splits as far as they are made; labels and classes are the source's until `finish`."""

    def __init__(
        self,
        source: Source,
        data: KindData,
        groups: Mapping[str, np.ndarray] | None,
        without: Mapping[str, np.ndarray],
    ):
        self.source, self.data, self.groups = source, data, groups
        self.origin = {split: split for split in source.splits}
        self.numbers = {
            split: np.setdiff1d(np.arange(len(samples.names)), without.get(split, ()))
            for split, samples in source.splits.items()
        }
        self.labels = {split: samples.labels.copy() for split, samples in source.splits.items()}
        self.rare: set[int] = set()
        self.samples = np.zeros(len(source.classes), np.int64)  # of each class, where it is rare

    def carve(self, split: str, keys: np.ndarray, share: float, spare: int) -> None:
        """Take `share` of train for `split`, leaving at least `spare` groups of each class."""
        numbers = self.numbers["train"]
        labels = self.labels["train"][numbers]
        if self.groups is None:
            held = held_out(labels, keys[numbers], share)
        else:
            group = self.groups["train"][numbers]
            if (found := len(np.unique(group))) <= spare:
                what = f"add {self.data.noun} of other groups" if self.data.limit is None else "raise data.limit"
                raise UserError(
                    f"data.group: {found} groups are too few for {spare + 1} splits; {what} or set data.group: null"
                )
            held = held_out_groups(labels, keys[numbers], share, group, spare)
        self.origin[split], self.numbers[split], self.numbers["train"] = "train", numbers[held], numbers[~held]

    def counts(self, split: str) -> np.ndarray:
        """Labelled samples of each class, int64 [classes]."""
        labels = self.labels[self.origin[split]][self.numbers[split]]
        return np.bincount(labels[labels >= 0], minlength=len(self.source.classes))

    def missing(self) -> np.ndarray:
        """Classes that have no sample in one of the splits so far, bool [classes]."""
        return np.any([self.counts(split) == 0 for split in self.numbers], axis=0)

    def too_few(self, splits: int) -> np.ndarray:
        """Classes with fewer samples in train than `splits`, or with none in another split, bool [classes]."""
        numbers = self.numbers["train"]
        groups = None if self.groups is None else self.groups["train"][numbers]
        can = places(self.labels["train"][numbers], groups, len(self.source.classes))
        return (can < splits) | self.missing()

    def set_rare(self, classes: np.ndarray) -> None:
        """Take the label from these classes, or drop them, unless fewer than two would be left or `rare` is fail."""
        new = set(np.flatnonzero(classes).tolist()) - self.rare
        left = len(self.source.classes) - len(self.rare | new)
        if not new or self.data.rare == "fail" or left < min(2, len(self.source.classes)):
            return  # `finish` names a class that a split lacks
        self.rare |= new
        for split, labels in self.labels.items():
            own = np.isin(labels, list(new))
            labels[own] = -1
            if self.data.rare == "drop":
                for part in [part for part, origin in self.origin.items() if origin == split]:
                    numbers = self.numbers[part]
                    self.count_rare(self.source.splits[split].labels[numbers[own[numbers]]], new)
                    self.numbers[part] = numbers[~own[numbers]]

    def count_rare(self, labels: np.ndarray, rare: set[int]) -> None:
        found = np.bincount(labels[labels >= 0], minlength=len(self.source.classes))
        self.samples[list(rare)] += found[list(rare)]

    def finish(self, remedy: str) -> Plan:
        if self.data.rare == "keep":
            for split, numbers in self.numbers.items():
                self.count_rare(self.source.splits[self.origin[split]].labels[numbers], self.rare)
        left = [label for label in range(len(self.source.classes)) if label not in self.rare]
        number = np.full(len(self.source.classes) + 1, -1)  # the last for -1
        number[left] = np.arange(len(left))
        found = Plan(
            self.source,
            {split: self.origin[split] for split in SPLITS},
            {split: self.numbers[split] for split in SPLITS},
            {split: number[labels] for split, labels in self.labels.items()},
            [self.source.classes[label] for label in left],
            {self.source.classes[label]: int(self.samples[label]) for label in sorted(self.rare)},
        )
        check_classes({split: found.split_labels(split) for split in SPLITS}, found.classes, self.data.noun, remedy)
        return found


def lacking(labels: Sequence[int] | np.ndarray, classes: int) -> bool:
    """Whether a split of these labels has no sample, or none of a class."""
    counts = np.bincount(np.array(labels, int) + 1, minlength=classes + 1)
    return counts.sum() == 0 or bool((counts[1:] == 0).any())


def check_classes(labels: Mapping[str, Sequence[int] | np.ndarray], classes: list[str], noun: str, remedy: str) -> None:
    """Every split needs a sample, and one of each class. Raises `UserError`."""
    counts = {
        split: np.bincount(np.array(found, int) + 1, minlength=len(classes) + 1) for split, found in labels.items()
    }
    for split, count in counts.items():
        if count.sum() == 0:
            have = ", ".join(f"{name} {other.sum()}" for name, other in counts.items())
            raise UserError(f"data: too few {noun}, none is left for {split} ({have}); {remedy}")
        if len(missing := np.flatnonzero(count[1:] == 0)):
            name, more = classes[missing[0]], f" (and {len(missing) - 1} more classes)" if len(missing) > 1 else ""
            have = ", ".join(f"{other} {found[missing[0] + 1]}" for other, found in counts.items())
            raise UserError(
                f"data: class {name!r}{more} has no {noun} for {split} ({have}), and each class needs one in every "
                f"split: {remedy}, remove the class or set data.labels: none"
            )
