"""Feature sets on disk: which there are, which are missing and why, and their arrays.

`features/pretrained/` and `features/baselines/` hold one folder a representation, with `{train,validation,test}.npy`
float32 [N D] in the order of the shards and `meta.json`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from selfsup import digests
from selfsup.errors import UserError, missing

MAJORITY = "majority"
ROWS = ("method", "supervised", "random", "pixels", MAJORITY)
"""The rows of every table, in their order. The pretrained one is `method` whatever its name, so that
experiments with different methods compare column by column. The majority row is the only one without features."""

WEIGHTS = Path("models/pretrained/task.safetensors")
_BLOCK = 1 << 24  # numbers read at once when looking for NaN


class Splits(NamedTuple):
    """One array for each split: features [N D], or labels [N]."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


@dataclass(frozen=True)
class FeatureSet:
    """One representation of the three splits."""

    row: str  # one of ROWS
    title: str  # shown to readers: the method's name, or the baseline's
    folder: Path
    meta: dict[str, Any]

    def load(self, split: str, samples: int | None = None) -> np.ndarray:
        """Features of a split, float32 [N D], memory-mapped. Raises `UserError` unless they are N x D and finite.

        `samples` is the number of rows that the shards ask for.
        """
        path = self.folder / f"{split}.npy"
        try:
            features = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise missing(path) from None
        except ValueError as error:
            raise UserError(f"{path}: not a readable array ({error}); delete it and run dvc repro") from None
        if features.ndim != 2 or features.dtype != np.float32:
            raise UserError(f"{path}: needs float32 [N D], got {features.dtype} {list(features.shape)}; run dvc repro")
        if samples is not None and len(features) != samples:
            raise UserError(f"{path}: {len(features)} rows for {samples} samples of the {split} split; run dvc repro")
        rows = max(1, _BLOCK // max(1, features.shape[1]))
        for start in range(0, len(features), rows):
            if not np.isfinite(features[start : start + rows]).all():
                raise UserError(f"{path}: holds NaN or infinite numbers; see the alarm in metrics/pretrain.json")
        return features

    def digest(self) -> str:
        """Digest of the features of all splits. Raises `OSError`."""
        return digests.of_files(*(self.folder / f"{split}.npy" for split in Splits._fields))

    def splits(self, samples: Splits | None = None) -> Splits:
        """All three splits; `samples` holds arrays with as many entries as each split has samples."""
        counts: Sequence[int | None] = [None] * 3 if samples is None else [len(split) for split in samples]
        return Splits(*(self.load(name, count) for name, count in zip(Splits._fields, counts, strict=True)))


def find(folder: Path | str, baselines: Sequence[str]) -> tuple[list[FeatureSet], dict[str, str]]:
    """The feature sets in `folder` that `baselines` asks for, and the missing baselines with the reason of each.

    `random` and `supervised` of another architecture than the pretrained set's are missing too. Raises `UserError`
    without a pretrained set.
    """
    folder = Path(folder)
    place = folder / "pretrained" / "meta.json"
    meta = _meta(place.parent)
    if meta is None:
        raise missing(place)
    if "method" not in meta or "backbone" not in meta:
        raise UserError(f"{place}: no method and backbone in it; run `dvc repro --force --single-item extract`")
    found = [FeatureSet("method", str(meta["method"]), folder / "pretrained", meta)]
    absent = {}
    for row in [row for row in ROWS if row in baselines and row != MAJORITY]:
        place = folder / "baselines" / row
        own = _meta(place)
        if own is None:
            absent[row] = f"{place} is not there"
        elif "skipped" in own:
            absent[row] = str(own["skipped"])
        elif own.get("backbone", meta["backbone"]) != meta["backbone"]:
            absent[row] = f"{place} has the backbone {own['backbone']}, not {meta['backbone']}; run dvc repro baseline"
        else:
            found.append(FeatureSet(row, row, place, own))
    return found, absent


def check_current(own: FeatureSet, method: str, weights: Path = WEIGHTS) -> None:
    """Raise `UserError` unless the pretrained set is of `method` and, where these are there, of the present weights."""
    if own.title != method:
        raise UserError(f"{own.folder}: of {own.title}, but params.yaml has method {method}; run dvc repro extract")
    if weights.exists() and own.meta.get("weights") != digests.of_files(weights):
        raise UserError(f"{own.folder}: not extracted from {weights}; run dvc repro extract")


def _meta(folder: Path) -> dict[str, Any] | None:
    """`meta.json` of a folder, None if there is none."""
    path = folder / "meta.json"
    if not path.exists():
        return None
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not valid JSON ({error}); delete it and run dvc repro") from None
    if not isinstance(meta, dict):
        raise UserError(f"{path}: needs an object with the set's facts; delete it and run dvc repro")
    return meta
