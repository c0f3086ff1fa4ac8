"""Where methods differ: in which classes, and on which test images."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from selfsup.compare.comparison import Run
from selfsup.errors import UserError
from selfsup.evaluation.compare import class_means
from selfsup.report.pictures import caption, thumbnails

Show = Callable[[str, np.ndarray], list[tuple[str, str]] | str]
"""Of a data set, `Run.images`, the pictures (data URI) and captions of test images by their place among the labelled
ones, int64 [n]; or why there are none."""

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


def disagreements(runs: Sequence[Run], protocol: str, show: Show) -> Disagreements | None:
    """Test images that one method gets right for all seeds and another one wrong for all seeds.

    The runs compared are those of one data set, the one that most methods have: another seed may have other test
    images. None with fewer than two methods that predict classes.
    """
    sets: dict[str, dict[str, list[tuple[int, Answers]]]] = {}
    for run in runs:
        if (one := answers(run, protocol)) is not None:
            sets.setdefault(run.images, {}).setdefault(run.row, []).append((run.seed, one))
    most = max(sets, key=lambda name: (len(sets[name]), sum(map(len, sets[name].values()))), default="")
    given = sets.get(most, {})
    rows = list(given)
    if len(rows) < 2:
        return None
    first = next(run for run in runs if run.images == most)
    right = np.stack([np.all([one.hits for _, one in each], axis=0) for each in given.values()])  # [methods, N]
    wrong = np.stack([~np.any([one.hits for _, one in each], axis=0) for each in given.values()])
    apart = right.sum(axis=0) * wrong.sum(axis=0)
    chosen = np.argsort(-apart, kind="stable")[:IMAGES]
    chosen = chosen[apart[chosen] > 0]
    answered = {row: each[0][1] for row, each in given.items()}
    cards = [_card(answered, first.classes, i, right[:, i], wrong[:, i]) for i in chosen.tolist()]
    shown = show(most, chosen) if cards else []
    if not isinstance(shown, str):
        cards = [replace(card, picture=uri, caption=text) for card, (uri, text) in zip(cards, shown, strict=True)]
    return Disagreements(
        protocol=first.found[protocol].title,
        seeds=sorted({seed for each in given.values() for seed, _ in each}),
        images=right.shape[1],
        rows=rows,
        counts=(right.astype(np.int64) @ wrong.T.astype(np.int64)).tolist(),
        cards=cards,
        why_no_pictures=shown if isinstance(shown, str) else "",
    )


def _card(
    answered: Mapping[str, Answers], classes: Sequence[str], image: int, right: np.ndarray, wrong: np.ndarray
) -> Card:
    """Who is right about an image, and what the others take it for."""
    label = int(next(iter(answered.values())).label[image])
    said = {row: name_of(classes, int(one.predicted[image])) for row, one in answered.items()}
    return Card(
        None,
        f"{name_of(classes, label)}: test image {image}",
        [row for row, ok in zip(said, right, strict=True) if ok],
        [f"{row}: {word}" for (row, word), off in zip(said.items(), wrong, strict=True) if off],
    )


def shown_from(root: Path) -> Show:
    """Shows test images of a data set that DVC's cache of the project in `root` has."""

    def show(images: str, chosen: np.ndarray) -> list[tuple[str, str]] | str:
        from selfsup.compare.by_dvc import Cache
        from selfsup.data.loader import open_split
        from selfsup.params import load

        try:
            data = load(root / "params.yaml").data.model_copy(update={"verify": "size", "cache": "none"})
            cache = Cache(root)
            if not cache.has(images):
                return "DVC's cache does not have the images of these runs; run dvc fetch, then make the page again"
            with tempfile.TemporaryDirectory() as scratch:
                split = open_split(cache.place(images, Path(scratch, "shards")), "test", data)
                ids = np.flatnonzero(split.labels >= 0)[chosen]  # outcomes are of labelled images
                return list(zip(thumbnails(split, ids), [caption(split, i) for i in ids.tolist()], strict=True))
        except UserError as error:
            return str(error)

    return show
