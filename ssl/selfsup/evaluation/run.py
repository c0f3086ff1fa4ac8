"""One protocol over every feature set: reads features and labels, writes metrics and paired outcomes."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from selfsup import digests
from selfsup.config import Strict
from selfsup.errors import UserError
from selfsup.evaluation import folder, protocols
from selfsup.evaluation.balance import balance, majority, uneven_line
from selfsup.evaluation.compare import paired
from selfsup.evaluation.kept import Kept
from selfsup.evaluation.protocols import Protocol
from selfsup.evaluation.result import BALANCED, INSIDE, Metric, Result, Unfit, flat
from selfsup.features.store import MAJORITY, FeatureSet, Splits, check_current, find
from selfsup.files import write_json
from selfsup.params import Params

if TYPE_CHECKING:
    from selfsup.evaluation.networks import Networks  # which imports torch


class Inputs(NamedTuple):
    """What every protocol reads from the working folder."""

    labels: Splits
    classes: list[str]
    sets: list[FeatureSet]
    missing: dict[str, str]  # baselines that are not there, with the reason
    features: dict[str, str]  # digests by row
    rare: int  # classes with too few images for every split
    images: np.ndarray | None = None  # digests of the test images' names, uint64 [test images]

    @property
    def weights(self) -> str:
        """Digest of the weights that the pretrained features come from."""
        return str(self.sets[0].meta.get("weights", "unknown"))

    def computed_from(self, params: Params) -> dict[str, dict[str, Any]]:
        """Digests of all that figures are a function of, by protocol, for every protocol that has a block."""
        labels = digests.of_arrays(*self.labels)
        return {
            name: {
                "labels": labels,
                "parameters": settings(block, params.seed, params.baselines),
                "features": self.features,
            }
            for name, (_, block) in protocols.blocks(params.evaluation).items()
        }


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
    return Inputs(
        labels,
        list(train.classes),
        sets,
        missing,
        features={one.row: one.digest() for one in sets},
        rare=len(train.rare),
        images=of_names(test.names),
    )


def of_names(names: Sequence[str]) -> np.ndarray:
    """A digest of each name, uint64 [N]: other names have others but for one chance in 2^64 per pair."""
    digested = (hashlib.blake2b(name.encode(errors="surrogateescape"), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digested), np.dtype("<u8"))


def evaluate(
    name: str, params: Params, inputs: Inputs | None = None, networks: Networks | None = None
) -> dict[str, Any]:
    """Judge every feature set by the protocol `name`, write what it found in the working folder; return the metrics.

    `metrics/evaluate/<name>.json` has `{name: {row: {metric: value}}}`, or `{name: {"skipped": reason}}` where the data
    lack what the protocol needs. Beside it are the method, the seed, what the figures were `computed_from` and, of
    metrics that are not percentages of which more is better, the `units`. `evaluations/<name>/` is as in `folder`.
    `networks` are for protocols that look inside the network, which the stage `examine` runs.
    """
    inputs = inputs or read_inputs(params)
    metrics_path, place = Path(f"metrics/evaluate/{name}.json"), Path(f"evaluations/{name}")
    protocol, block = protocols.chosen(name, params.evaluation)
    head = {"method": params.method, "seed": params.seed, "computed_from": inputs.computed_from(params)[name]}
    if protocol.inside and networks is None:
        raise UserError(f"{name}: looks inside the network; run `dvc repro {protocol.stage}`")
    try:
        if reason := unmet(protocol.needs, inputs.labels, networks.kind if networks else "image"):
            raise Unfit(reason)
        found = judge(protocol, block, inputs, params.seed, MAJORITY in params.baselines, networks)
    except Unfit as error:
        print(f"{name}: skipped, {error}")
        folder.skip(place, str(error))
        return write_json(metrics_path, head | {name: {"skipped": str(error)}})
    folder.write(place, found, inputs.classes)
    own = found.results["method"]
    units = {key: words for key, metric in own.metrics.items() if (words := unit_words(metric))}
    rows = {row: flat(result) for row, result in found.results.items()}
    head |= {"units": units} if units else {}
    return write_json(metrics_path, head | {name: {"features": own.features, **rows}})


def judge(
    protocol: Protocol, block: Strict, inputs: Inputs, seed: int, constant: bool, networks: Networks | None = None
) -> folder.Found:
    """Run the protocol on every feature set and print its figures; `constant`: add the majority row.

    Raises `Unfit` where the protocol cannot judge the method's own features.
    """
    name, labels = protocol.name, inputs.labels
    needs_labels = "labels" in protocol.needs
    facts = balance(labels, inputs.classes) if needs_labels else {}
    uneven = facts.get("uneven", False)
    if uneven:
        print(f"{name}: {uneven_line(facts)}; read the balanced accuracy, in which each class counts alike")
    results, missing = {}, dict(inputs.missing)
    kept = Kept(protocol, block, seed, networks)
    for one in inputs.sets:
        try:
            own, again = kept.result(one, inputs.features[one.row], labels)
        except Unfit as error:
            if one.row == "method":
                raise
            missing[one.row] = str(error)
            continue
        results[one.row] = _checked(name, own)
        print(f"{name}: {one.title}: {_line(own, uneven)}{' (kept from an earlier run)' * again}", flush=True)
    if protocol.relate:
        related = {row: _checked(name, result) for row, result in protocol.relate(results).items()}
        for row, result in related.items():
            added = {key: metric for key, metric in result.metrics.items() if key not in results[row].metrics}
            if added:
                print(f"{name}: {row}: {_line(Result(added), uneven)}")
        results = related
    if constant and needs_labels and (rival := majority(labels, results["method"])):
        results[MAJORITY] = rival
        print(f"{name}: {MAJORITY}: {_line(rival, uneven)}")
        for line in not_above(results["method"], rival, inputs.sets[0].title):
            print(f"{name}: {line}")
    lines = notes(results) + (without_label(labels, inputs.rare) if needs_labels else [])
    for line in [*lines, *(f"{row}: left out, {why}" for row, why in missing.items())]:
        print(f"{name}: {line}")
    counts = zip(Splits._fields, labels, strict=True)
    images = {split: int((values >= 0).sum()) if needs_labels else len(values) for split, values in counts}
    return folder.Found(
        title=protocol.title,
        titles={one.row: one.title for one in inputs.sets},
        missing=missing,
        images=images,
        balance=facts,
        notes=lines,
        own_tables=sorted({table for result in results.values() for table in result.tables}),
        results=results,
        label=labels.test[labels.test >= 0] if needs_labels else None,
        image=inputs.images[labels.test >= 0] if needs_labels and inputs.images is not None else inputs.images,
    )


def unmet(needs: frozenset[str], labels: Splits, kind: str) -> str | None:
    """Why a protocol with these needs cannot run on data of this `kind`, or None."""
    for need in sorted(needs - {"features", "labels"} - INSIDE):
        return f"needs {need}: the data set has none"
    if "images" in needs and kind != "image":
        return f"needs images: the data set is of the kind {kind}"
    return insufficient(labels) if "labels" in needs else None


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


def notes(results: Mapping[str, Result]) -> list[str]:
    """The notes of all rows, each once, with the rows that have it unless all feature sets do."""
    sets = [row for row in results if row != MAJORITY]
    lines = []
    for note in dict.fromkeys(line for row in sets for line in results[row].notes):
        rows = [row for row in sets if note in results[row].notes]
        lines.append(note if rows == sets else f"{note} ({', '.join(rows)})")
    return lines


def without_label(labels: Splits, rare: int) -> list[str]:
    """A line on the images that no protocol reads; `rare` is the number of classes too small for every split."""
    left = {split: int((values < 0).sum()) for split, values in zip(Splits._fields, labels, strict=True)}
    if not any(left.values()):
        return []
    why = f", among them all of {rare} class{'es' * (rare > 1)} with too few images" if rare else ""
    have = ", ".join(f"{split} {count}" for split, count in left.items() if count)
    return [f"{sum(left.values())} images without a label are left out{why} ({have})"]


def not_above(method: Result, rival: Result, name: str) -> list[str]:
    """A line where the method's accuracy does not exceed that of the majority row by more than the spread."""
    short = []
    for key, one in rival.metrics.items():
        own, higher = method.metrics[key].outcomes, one.higher_is_better
        if own is None or one.outcomes is None or not paired(own, one.outcomes, higher_is_better=higher).ahead:
            short.append(key)
    return [f"{name} does not beat {MAJORITY} in {', '.join(short)}"] if short else []


def unit_words(metric: Metric) -> str:
    """`seconds, lower is better`; nothing for percentages of which more is better."""
    if metric.unit == "percent" and metric.higher_is_better:
        return ""
    return ", ".join(word for word in (metric.unit, metric.direction) if word)


def tracked(name: str, written: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """What the tracker gets of the metrics that `evaluate` returned: all of them, and those of the method."""
    rows = {row: values for row, values in written[name].items() if isinstance(values, dict)}
    every = {f"{row}.{key}": value for row in rows for key, value in rows[row].items() if value is not None}
    own = {key.removeprefix("method."): value for key, value in every.items() if key.startswith("method.")}
    return {f"{name}.{key}": one for key, one in every.items()}, {f"{name}.{key}": one for key, one in own.items()}


def _checked(name: str, result: Result) -> Result:
    """The result. Raises `ValueError` where a value is not a finite float, or not the mean of its outcomes."""
    for key, metric in result.metrics.items():
        if not isinstance(metric.value, float | int) or not np.isfinite(metric.value):
            raise ValueError(f"{name}: {key}: needs a finite float, got {metric.value!r}")
        if metric.outcomes is not None and not np.isclose(metric.outcomes.mean(dtype=np.float64), metric.value):
            raise ValueError(f"{name}: {key} is {metric.value}, but the mean of its outcomes {metric.outcomes.mean()}")
    return result


def _line(result: Result, uneven: bool) -> str:
    """The metrics for the console; class-balanced ones where they tell more."""
    values = {key: value for key, value in flat(result).items() if value is not None}
    if not values and result.pictures:
        return f"{len(result.pictures)} pictures"
    return "  ".join(f"{key} {value:.4g}" for key, value in values.items() if uneven or BALANCED not in key)
