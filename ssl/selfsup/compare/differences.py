"""Where methods differ: in which classes, and on which test images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from selfsup.compare.comparison import Run
from selfsup.evaluation.compare import class_means
from selfsup.report.pictures import caption, thumbnails

if TYPE_CHECKING:
    from selfsup.data.loader import Split

CLASSES = 24  # columns of the heat map, at most
IMAGES = 12  # of the sheet
NAMED = 6  # methods that a card of the sheet lists


@dataclass(frozen=True)
class Classes:
    """Accuracy per class and row, both in their order on the page."""

    protocol: str  # its title
    names: Sequence[str]
    rows: Mapping[str, Sequence[tuple[float, float]]]  # in %: accuracy, and its difference from the class's median
    left_out: int  # classes that are not shown


def by_class(runs: Sequence[Run], protocol: str) -> Classes | None:
    """Accuracy within each class, mean over seeds; None where the protocol predicts no classes.

    Of more than `CLASSES` classes those are shown in which the rows differ most.
    """
    means: dict[str, list[np.ndarray]] = {}
    present: np.ndarray | None = None
    classes: Sequence[str] = ()
    title = ""
    for run in runs:
        given = answers(run, protocol)
        if given is None:
            continue
        seen = np.unique(given.label)
        if present is not None and not np.array_equal(seen, present):
            return None
        present, title = seen, run.found[protocol].title
        classes = classes or run.classes
        means.setdefault(run.row, []).append(100 * class_means(given.hits, given.label))
    if present is None or len(means) < 2 or len(present) < 2:
        return None
    table = np.array([np.mean(own, axis=0) for own in means.values()])  # [rows, classes]
    shown = np.arange(len(present))
    if len(shown) > CLASSES:
        shown = np.sort(np.argsort(-table.std(axis=0), kind="stable")[:CLASSES])
    table = table[:, shown]
    apart = table - np.median(table, axis=0)
    names = [name_of(classes, int(present[i])) for i in shown]
    rows = {
        row: list(zip(*pair, strict=True)) for row, *pair in zip(means, table.tolist(), apart.tolist(), strict=True)
    }
    return Classes(title, names, rows, len(present) - len(shown))


class Answers(NamedTuple):
    """The classes that a run's method predicts for the test images of a protocol, and their own, int64 [N]."""

    predicted: np.ndarray
    label: np.ndarray

    @property
    def hits(self) -> np.ndarray:
        return self.predicted == self.label


def answers(run: Run, protocol: str) -> Answers | None:
    """None where the protocol was not run, or predicts no classes."""
    found = run.found.get(protocol)
    predicted = found.results["method"].predicted if found is not None and "method" in found.results else None
    return None if found is None or found.label is None or predicted is None else Answers(predicted, found.label)


def name_of(classes: Sequence[str], number: int) -> str:
    return classes[number] if number < len(classes) else f"class {number}"


@dataclass(frozen=True)
class Card:
    """A test image on which methods disagree."""

    picture: str | None  # data URI
    caption: str  # class and file name
    right: Sequence[str]  # methods with the right class for every seed
    wrong: Sequence[str]  # methods with a wrong class for every seed, with that of the first seed


@dataclass(frozen=True)
class Disagreements:
    """How often one method is right where another one is wrong, and images of it."""

    protocol: str
    seeds: Sequence[int]
    images: int
    rows: Sequence[str]
    counts: Sequence[Sequence[int]]  # [right][wrong]: test images
    cards: Sequence[Card]
    why_no_pictures: str


def disagreements(runs: Sequence[Run], protocol: str, split: Split | str) -> Disagreements | None:
    """Test images that one method gets right for all seeds and another one wrong for all seeds.

    `split` is the test split of data/shards, or why it cannot be read. The runs compared have the same data set, that
    of `split` where runs have it, else the one that most runs have: another seed may have other test images. None with
    fewer than two methods that predict classes.
    """
    predicting = [(run, one) for run in runs if (one := answers(run, protocol)) is not None]
    own, why = _of_one_set([run for run, _ in predicting], split)
    given: dict[str, list[Answers]] = {}
    for run, one in predicting:
        if run.images == own[0].images:
            given.setdefault(run.row, []).append(one)
    rows = list(given)
    if len(rows) < 2:
        return None
    right = np.stack([np.all([one.hits for one in each], axis=0) for each in given.values()])  # [methods, N]
    wrong = np.stack([~np.any([one.hits for one in each], axis=0) for each in given.values()])
    apart = right.sum(axis=0) * wrong.sum(axis=0)
    chosen = np.argsort(-apart, kind="stable")[:IMAGES]
    chosen = chosen[apart[chosen] > 0]
    cards = [_card(given, own[0].classes, i, right[:, i], wrong[:, i]) for i in chosen.tolist()]
    if not why and not isinstance(split, str):
        ids = np.flatnonzero(split.labels >= 0)[chosen]  # outcomes are of labelled images
        pictures = zip(cards, thumbnails(split, ids), ids.tolist(), strict=True)
        cards = [replace(card, picture=uri, caption=caption(split, i)) for card, uri, i in pictures]
    return Disagreements(
        protocol=own[0].found[protocol].title,
        seeds=sorted({run.seed for run in own}),
        images=right.shape[1],
        rows=rows,
        counts=(right.astype(np.int64) @ wrong.T.astype(np.int64)).tolist(),
        cards=cards,
        why_no_pictures=why,
    )


def _of_one_set(runs: Sequence[Run], split: Split | str) -> tuple[list[Run], str]:
    """The runs of one data set, and why its images cannot be shown, or an empty text."""
    sets: dict[str, list[Run]] = {}
    for run in runs:
        sets.setdefault(run.images, []).append(run)
    if not sets:
        return [], ""
    if not isinstance(split, str) and split.checksum in sets:
        return sets[split.checksum], ""
    most = max(sets.values(), key=lambda own: len({run.row for run in own}))
    why = split if isinstance(split, str) else f"{split.folder} holds other images than these runs"
    return (
        most,
        f"{why}. To see the images: dvc exp apply {most[0].experiment}, dvc repro shard, and make the page again",
    )


def _card(
    given: Mapping[str, Sequence[Answers]], classes: Sequence[str], image: int, right: np.ndarray, wrong: np.ndarray
) -> Card:
    """Who is right about an image, and what the others take it for (by the first seed)."""
    first = {row: each[0] for row, each in given.items()}
    label = int(next(iter(first.values())).label[image])
    return Card(
        None,
        f"{name_of(classes, label)}: test image {image}",
        [row for row, ok in zip(first, right, strict=True) if ok],
        [
            f"{row}: {name_of(classes, int(one.predicted[image]))}"
            for (row, one), off in zip(first.items(), wrong, strict=True)
            if off
        ],
    )
