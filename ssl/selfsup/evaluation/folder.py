"""The folder `evaluations/<protocol>/`: what a protocol found, written once and read back as the same `Result`s.

`details.json` has every field but arrays and tables, or `{"skipped": reason}`. `outcomes.npz` has `<row>/<metric>`, the
outcomes, `<row>/predicted`, `image`, digests of the names of the test images, and `label`, their labels, where the
protocol needs labels. Tables are CSV files: `confusion.csv` and `per_class.csv` from predicted classes, `draws.csv`
where there are draws, and the protocol's own. Pictures are `<row>.<name>.png`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ConfigDict, TypeAdapter, ValidationError

from selfsup.errors import UserError
from selfsup.evaluation.compare import accuracy
from selfsup.evaluation.result import Result
from selfsup.files import replaced, write_json

NO_ARRAYS: dict[str, Any] = {"label": None, "image": None}  # the arrays of `Found`, which are in outcomes.npz


@dataclass(frozen=True)
class Found:
    """What a protocol found, for all rows."""

    __pydantic_config__ = ConfigDict(arbitrary_types_allowed=True)

    title: str  # the protocol's
    titles: dict[str, str]  # of the rows
    missing: dict[str, str]  # rows that are not there, with the reason
    images: dict[str, int]  # images that took part, by split
    balance: dict[str, Any]  # the facts of the class counts; {} where the protocol needs no labels
    notes: list[str]  # what was left out or changed
    own_tables: list[str]  # names of the protocol's own tables
    results: dict[str, Result]  # by row
    label: np.ndarray | None = None  # int64 [test images]
    image: np.ndarray | None = None  # digests of their names, uint64: equal for the same image in another run


def skip(folder: Path, reason: str) -> None:
    """Write that the protocol was not run."""
    with replaced(folder) as new:
        new.mkdir()
        write_json(new / "details.json", {"skipped": reason})


def write(folder: Path, found: Found, classes: Sequence[str]) -> None:
    """Write all files of the folder; `classes` are the names of the labels."""
    arrays = {key: value for key in NO_ARRAYS if (value := getattr(found, key)) is not None}
    for row, result in found.results.items():
        arrays |= {f"{row}/{key}": one.outcomes for key, one in result.metrics.items() if one.outcomes is not None}
        if result.predicted is not None:
            arrays[f"{row}/predicted"] = result.predicted
    facts = asdict(replace(found, results={row: _bare(result) for row, result in found.results.items()}, **NO_ARRAYS))
    with replaced(folder) as new:
        new.mkdir()
        np.savez_compressed(new / "outcomes.npz", **arrays)
        write_json(new / "details.json", {key: value for key, value in facts.items() if key not in NO_ARRAYS})
        for name, (header, rows) in tables(found, classes).items():
            with (new / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *rows])
        for row, result in found.results.items():
            for name, picture in result.pictures.items():
                _save(picture.pixels, new / f"{row}.{name}.png")


def read(folder: Path) -> Found:
    """What `write` wrote, without the tables. Raises `UserError` for details that another version wrote."""
    path = folder / "details.json"
    try:
        found = TypeAdapter(Found).validate_json(path.read_bytes())
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, fault["loc"]))
        raise UserError(f"{path}: not as this version writes it ({where}: {fault['msg']}); run dvc repro") from None
    with np.load(folder / "outcomes.npz", allow_pickle=False) as arrays:
        results = {row: _filled(folder, row, result, arrays) for row, result in found.results.items()}
        return replace(found, results=results, **{key: arrays.get(key) for key in NO_ARRAYS})


def _bare(result: Result) -> Result:
    """Without what other files have."""
    metrics = {key: replace(metric, outcomes=None) for key, metric in result.metrics.items()}
    pictures = {name: replace(one, pixels=None) for name, one in result.pictures.items()}
    return replace(result, metrics=metrics, tables={}, predicted=None, pictures=pictures)


def _filled(folder: Path, row: str, result: Result, arrays: Mapping[str, np.ndarray]) -> Result:
    """The opposite of `_bare`."""
    metrics = {key: replace(one, outcomes=arrays.get(f"{row}/{key}")) for key, one in result.metrics.items()}
    pictures = {
        name: replace(one, pixels=_pixels(folder / f"{row}.{name}.png")) for name, one in result.pictures.items()
    }
    return replace(result, metrics=metrics, predicted=arrays.get(f"{row}/predicted"), pictures=pictures)


def _save(pixels: np.ndarray | None, path: Path) -> None:
    from PIL import Image

    Image.fromarray(np.asarray(pixels, np.uint8)).save(path, optimize=True)


def _pixels(path: Path) -> np.ndarray:
    """Raises `UserError` for a file that is no picture."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a picture; delete its folder and run dvc repro") from None


def tables(found: Found, classes: Sequence[str]) -> dict[str, tuple[list[str], list[Sequence[Any]]]]:
    """Header and rows of every CSV file, by its name."""
    made: dict[str, tuple[list[str], list[Sequence[Any]]]] = {}
    for row, result in found.results.items():
        for name, table in result.tables.items():
            made.setdefault(name, (["row", *table.header], []))[1].extend([row, *each] for each in table.rows)
    predictions = {row: result.predicted for row, result in found.results.items() if result.predicted is not None}
    if predictions and found.label is not None:
        pairs = zip(found.label, predictions["method"], strict=True)
        made["confusion"] = ["actual", "predicted"], [(classes[actual], classes[one]) for actual, one in pairs]
        made["per_class"] = (
            ["row", "class", "images", "accuracy"],
            [line for row, one in predictions.items() for line in _per_class(row, one, found.label, classes)],
        )
    if any(one.outcomes is not None and one.outcomes.ndim > 1 for one in found.results["method"].metrics.values()):
        header = ["row", "setting", "labels", "draw", "accuracy", "balanced"]
        made["draws"] = header, list(_draws(found))
    return made


def _per_class(row: str, predicted: np.ndarray, label: np.ndarray, classes: Sequence[str]) -> Iterator[Sequence[Any]]:
    for c in np.unique(label):
        own = label == c
        yield row, classes[c], int(own.sum()), float((predicted[own] == c).mean())


def _draws(found: Found) -> Iterator[Sequence[Any]]:
    for row, result in found.results.items():
        for key, metric in result.metrics.items():
            labels = metric.curve.labels if metric.curve else ""
            for draw, one in enumerate(np.atleast_2d(metric.outcomes) if metric.outcomes is not None else []):
                balanced = float(accuracy(one, found.label)) if metric.balanced else ""
                yield row, key, labels, draw, float(accuracy(one)), balanced
