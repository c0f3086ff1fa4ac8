"""One protocol over every feature set: reads features and labels, writes metrics and paired outcomes."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.evaluation.balance import MAJORITY, balance, majority, uneven_line
from selfsup.evaluation.compare import accuracy, paired
from selfsup.evaluation.features import find
from selfsup.evaluation.result import Result, Splits
from selfsup.files import replaced
from selfsup.params import Evaluation, Params

PROTOCOLS = sorted(set(Evaluation.model_fields) - {"protocols"})


def evaluate(protocol: str, params: Params) -> dict[str, Any]:
    """Judge every feature set by `protocol`, write what it found in the working folder, and return the metrics.

    `metrics/evaluate/<protocol>.json` has `{protocol: {row: {metric: value}}}`, or `{protocol: {"skipped": reason}}`
    when the labels do not suffice. `evaluations/<protocol>/` has `outcomes.npz` (`<row>/<metric>`: right or not by test
    image, or by draw and test image, whose mean is the metric; `<row>/predicted`; `label`), `details.json` (choices and
    the readings behind them, the balance of the classes) and CSV tables.
    """
    from selfsup.data.loader import open_split

    module = importlib.import_module(f"selfsup.evaluation.{protocol}")
    data = params.data.model_copy(update={"verify": "size"})  # only labels are read; pretraining checked the images
    train, validation, test = (open_split("data/shards", split, data) for split in Splits._fields)
    labels = Splits(train.labels, validation.labels, test.labels)
    metrics_path, folder = Path(f"metrics/evaluate/{protocol}.json"), Path(f"evaluations/{protocol}")

    reason = insufficient(labels)
    if reason:
        print(f"{protocol}: skipped, {reason}")
        with replaced(folder) as new:
            new.mkdir()
            _write_json(new / "details.json", {"skipped": reason})
        return _write_json(metrics_path, {protocol: {"skipped": reason}})
    facts = balance(labels, train.classes)
    if facts["uneven"]:
        print(f"{protocol}: {uneven_line(facts)}; read the balanced accuracy, in which each class counts alike")
    sets, missing = find("features", params.baselines)
    results = {}
    for one in sets:
        results[one.row] = module.run(one.splits(labels), labels, getattr(params.evaluation, protocol), params.seed)
        print(f"{protocol}: {one.title}: {_line(results[one.row].metrics, facts['uneven'])}", flush=True)
    if MAJORITY in params.baselines:
        results[MAJORITY] = majority(labels, results["method"])
        print(f"{protocol}: {MAJORITY}: {_line(results[MAJORITY].metrics, facts['uneven'])}")
        for line in not_above(results["method"], results[MAJORITY], sets[0].title):
            print(f"{protocol}: {line}")
    for line in results["method"].details.get("notes", []):
        print(f"{protocol}: {line}")
    for row, why in missing.items():
        print(f"{protocol}: {row}: left out, {why}")
    with replaced(folder) as new:
        new.mkdir()
        write_outcomes(new, {one.row: one.title for one in sets}, missing, results, labels, train.classes)
    rows = {row: result.metrics for row, result in results.items()}
    return _write_json(metrics_path, {protocol: {"features": module.FEATURES, **rows}})


def insufficient(labels: Splits) -> str | None:
    """Why protocols that need labels cannot run, or None."""
    counts = {split: int((values >= 0).sum()) for split, values in zip(Splits._fields, labels, strict=True)}
    if not any(counts.values()):
        return "needs labels: the data set has none"
    for split, count in counts.items():
        if not count:
            return f"needs labels: the {split} split has none"
    if len(np.unique(labels.train[labels.train >= 0])) < 2:
        return "needs labels of at least two classes in the train split"
    return None


def write_outcomes(
    folder: Path,
    titles: dict[str, str],
    missing: dict[str, str],
    results: dict[str, Result],
    labels: Splits,
    classes: Sequence[str],
) -> None:
    """Write `outcomes.npz`, `details.json` and, from predictions, `confusion.csv` and `per_class.csv`."""
    true = labels.test[labels.test >= 0]
    arrays: dict[str, Any] = {"label": true}
    for row, result in results.items():
        arrays |= {f"{row}/{metric}": values for metric, values in result.outcomes.items()}
        if result.predicted is not None:
            arrays[f"{row}/predicted"] = result.predicted
    np.savez_compressed(folder / "outcomes.npz", **arrays)
    counts = {split: int((values >= 0).sum()) for split, values in zip(Splits._fields, labels, strict=True)}
    details = {"titles": titles, "missing": missing, "images": counts, "balance": balance(labels, classes)}
    _write_json(folder / "details.json", details | {row: result.details for row, result in results.items()})
    predictions = {row: result.predicted for row, result in results.items() if result.predicted is not None}
    if predictions:
        names = [(classes[actual], classes[found]) for actual, found in zip(true, predictions["method"], strict=True)]
        _write_csv(folder / "confusion.csv", ["actual", "predicted"], names)
        shares = [
            (row, classes[c], int((true == c).sum()), float((predicted[true == c] == c).mean()))
            for row, predicted in predictions.items()
            for c in np.unique(true)
        ]
        _write_csv(folder / "per_class.csv", ["row", "class", "images", "accuracy"], shares)
    else:
        draws = [
            (row, setting, result.details["labels"][setting], draw, float(accuracy(one)), float(accuracy(one, true)))
            for row, result in results.items()
            for setting, right in result.outcomes.items()
            for draw, one in enumerate(np.atleast_2d(right))
        ]
        _write_csv(folder / "draws.csv", ["row", "setting", "labels", "draw", "accuracy", "balanced"], draws)


def not_above(method: Result, rival: Result, name: str) -> list[str]:
    """A line where the method's accuracy does not exceed that of the majority row by more than the spread."""
    short = [key for key in method.outcomes if not paired(method.outcomes[key], rival.outcomes[key]).ahead]
    return [f"{name} does not beat {MAJORITY} in {', '.join(short)}"] if short else []


def _line(metrics: dict[str, float], uneven: bool) -> str:
    """The metrics for the console; class-balanced ones where they tell more."""
    return "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if uneven or "balanced" not in name)


def _write_json(path: Path, value: dict[str, Any]) -> dict[str, Any]:
    """Write and return `value`."""
    with replaced(path) as new:
        new.write_text(json.dumps(_plain(value), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return value


def _plain(value: Any) -> Any:
    """JSON knows no infinity, which is the standard error of a single image: null."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _write_csv(path: Path, header: list[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
