"""One protocol over every feature set: reads features and labels, writes metrics and paired outcomes."""

from __future__ import annotations

import csv
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfsup import digests
from selfsup.config import Strict
from selfsup.evaluation.balance import balance, majority, uneven_line
from selfsup.evaluation.compare import accuracy, paired
from selfsup.evaluation.result import Result
from selfsup.features.store import MAJORITY, FeatureSet, Splits, check_current, find
from selfsup.files import replaced, write_json
from selfsup.params import Evaluation, Params

PROTOCOLS = sorted(set(Evaluation.model_fields) - {"protocols"})


class Inputs(NamedTuple):
    """What every protocol reads from the working folder."""

    labels: Splits
    classes: list[str]
    sets: list[FeatureSet]
    missing: dict[str, str]  # baselines that are not there, with the reason
    features: dict[str, str]  # digests by row
    rare: int  # classes with too few images for every split

    @property
    def weights(self) -> str:
        """Digest of the weights that the pretrained features come from."""
        return str(self.sets[0].meta.get("weights", "unknown"))

    def computed_from(self, protocol: str, params: Params) -> dict[str, Any]:
        """Digests of all that a protocol's figures are a function of."""
        parameters = settings(getattr(params.evaluation, protocol), params.seed, params.baselines)
        return {"labels": digests.of_arrays(*self.labels), "parameters": parameters, "features": self.features}


def settings(block: Strict, seed: int, baselines: Sequence[str]) -> str:
    """Digest of the parameters that decide a protocol's figures; `block` is its own in `params.yaml`."""
    return digests.of_values([block.model_dump(), seed, sorted(baselines)])


def read_inputs(params: Params) -> Inputs:
    """Labels and feature sets of the working folder. Raises `UserError` for features of another method or weights."""
    from selfsup.data.loader import open_split

    sets, missing = find("features", params.baselines)
    check_current(sets[0], params.method)
    data = params.data.model_copy(update={"verify": "size", "cache": "none"})  # only labels are read here
    train, validation, test = (open_split("data/shards", split, data) for split in Splits._fields)
    labels = Splits(train.labels, validation.labels, test.labels)
    return Inputs(labels, list(train.classes), sets, missing, {one.row: one.digest() for one in sets}, len(train.rare))


def evaluate(protocol: str, params: Params, inputs: Inputs | None = None) -> dict[str, Any]:
    """Judge every feature set by `protocol`, write what it found in the working folder, and return the metrics.

    `metrics/evaluate/<protocol>.json` has `{protocol: {row: {metric: value}}}`, or `{protocol: {"skipped": reason}}`
    when the labels do not suffice, and beside it the method, the seed and what the figures were `computed_from`.
    `evaluations/<protocol>/` has `outcomes.npz` (`<row>/<metric>`: right or not by test image, or by draw and test
    image, whose mean is the metric; `<row>/predicted`; `label`), `details.json` (choices and the readings behind them,
    the balance of the classes) and CSV tables.
    """
    module = importlib.import_module(f"selfsup.evaluation.protocols.{protocol}")
    labels, classes, sets, missing, _, rare = inputs = inputs or read_inputs(params)
    metrics_path, folder = Path(f"metrics/evaluate/{protocol}.json"), Path(f"evaluations/{protocol}")

    head = {"method": params.method, "seed": params.seed, "computed_from": inputs.computed_from(protocol, params)}
    reason = insufficient(labels)
    if reason:
        print(f"{protocol}: skipped, {reason}")
        with replaced(folder) as new:
            new.mkdir()
            write_json(new / "details.json", {"skipped": reason})
        return write_json(metrics_path, head | {protocol: {"skipped": reason}})
    facts = balance(labels, classes)
    if facts["uneven"]:
        print(f"{protocol}: {uneven_line(facts)}; read the balanced accuracy, in which each class counts alike")
    results = {}
    for one in sets:
        results[one.row] = module.run(one.splits(labels), labels, getattr(params.evaluation, protocol), params.seed)
        print(f"{protocol}: {one.title}: {_line(results[one.row].metrics, facts['uneven'])}", flush=True)
    if MAJORITY in params.baselines:
        results[MAJORITY] = majority(labels, results["method"])
        print(f"{protocol}: {MAJORITY}: {_line(results[MAJORITY].metrics, facts['uneven'])}")
        for line in not_above(results["method"], results[MAJORITY], sets[0].title):
            print(f"{protocol}: {line}")
    results["method"].details.setdefault("notes", []).extend(without_label(labels, rare))
    for line in results["method"].details["notes"]:
        print(f"{protocol}: {line}")
    for row, why in missing.items():
        print(f"{protocol}: {row}: left out, {why}")
    with replaced(folder) as new:
        new.mkdir()
        write_outcomes(new, {one.row: one.title for one in sets}, missing, results, labels, classes)
    rows = {row: result.metrics for row, result in results.items()}
    return write_json(metrics_path, head | {protocol: {"features": module.FEATURES, **rows}})


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


def without_label(labels: Splits, rare: int) -> list[str]:
    """A line on the images that no protocol reads; `rare` is the number of classes too small for every split."""
    left = {split: int((values < 0).sum()) for split, values in zip(Splits._fields, labels, strict=True)}
    if not any(left.values()):
        return []
    why = f", among them all of {rare} class{'es' * (rare > 1)} with too few images" if rare else ""
    have = ", ".join(f"{split} {count}" for split, count in left.items() if count)
    return [f"{sum(left.values())} images without a label are left out{why} ({have})"]


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
    write_json(folder / "details.json", details | {row: result.details for row, result in results.items()})
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


def _write_csv(path: Path, header: list[str], rows: Sequence[Sequence[Any]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
