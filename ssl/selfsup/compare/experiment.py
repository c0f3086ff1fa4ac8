"""One DVC experiment in the workspace, and what it found.

DVC keeps the outputs of every stage: an experiment that was run before is restored in seconds and trains nothing.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsup.errors import UserError
from selfsup.files import replaced

SOURCES = {
    "run": ("loss", "seconds", "images_per_second"),  # of pretraining
    "embeddings": ("spread", "rankme", "uniformity", "alignment"),  # at the end of pretraining
    "features": ("uniformity", "tolerance"),  # of the test images, less their mean
}
"""Readings beside those of protocols, `<source>.<name>`."""

PAIRS = 2_000  # features whose pairs are compared at most


@contextmanager
def experiment(root: Path, overrides: Sequence[str], title: str) -> Iterator[None]:
    """Run `dvc exp run evaluate -S ...`; inside, params.yaml and the results are those of the run.

    Overrides have the form of `-S`: `a.b=c` or `~a.b`. No report is made. Afterwards params.yaml is as it was: DVC
    leaves overrides in it, where the next experiment would find them. Raises `UserError`, which names `title`, when the
    run fails, when dvc is not on PATH, and when a killed experiment could not put params.yaml back.
    """
    params, before = root / "params.yaml", root / "params.before.yaml"
    if before.exists():
        raise UserError(
            f"{params.name} may hold the settings of an experiment that was killed; {before.name} is the file as it "
            f"was before: move it to {params.name}, or delete it"
        )
    if not shutil.which("dvc"):
        raise UserError("dvc is not on PATH: activate the environment first, `source .venv/bin/activate`")
    with replaced(before) as new:
        new.write_bytes(params.read_bytes())
    try:
        words = [word for override in overrides for word in ("-S", override)]
        if subprocess.run(["dvc", "exp", "run", "evaluate", *words], cwd=root).returncode:
            raise UserError(
                f"{title} failed; fix the error above, then run the same command again: finished runs are kept"
            )
        yield
    finally:
        before.replace(params)


@dataclass(frozen=True)
class Outcome:
    """What an experiment found: figures by source (a protocol, or one of `SOURCES`), row and name.

    The row of the method is `method`; protocols have rows of baselines too. Percentages and points are in %.
    """

    figures: Mapping[str, Mapping[str, Mapping[str, float]]]
    backbone: str = ""
    alarm: str | None = None  # of collapse

    def value(self, reading: str, row: str = "method") -> float | None:
        """The figure `<source>.<name>`; None where the experiment has none."""
        source, _, name = reading.partition(".")
        return self.figures.get(source, {}).get(row, {}).get(name)

    def rows(self, reading: str) -> list[str]:
        """The rows that have this figure."""
        source = reading.partition(".")[0]
        return [row for row in self.figures.get(source, {}) if self.value(reading, row) is not None]

    def flat(self) -> dict[str, float]:
        """All figures by reading, those of baselines as `<reading> of <row>`."""
        return {
            f"{source}.{name}" + (f" of {row}" if row != "method" else ""): value
            for source, rows in self.figures.items()
            for row, values in rows.items()
            for name, value in values.items()
        }


def outcome(root: Path, sources: Collection[str] = ()) -> Outcome:
    """What the last run of the pipeline in `root` found; the source `features`, which takes seconds, only if asked."""
    run = json.loads((root / "metrics/pretrain.json").read_text())
    times = json.loads((root / "metrics/times/pretrain.json").read_text())
    found = {path.stem: _scores(json.loads(path.read_text()), path.stem) for path in _evaluated(root)}
    for source, values in (("run", run | times), ("embeddings", run["last"])):
        found[source] = {"method": {name: values[name] for name in SOURCES[source] if values.get(name) is not None}}
    if "features" in sources:
        found["features"] = {"method": of_features(root)}
    return Outcome(found, run["backbone"], run["alarm"])


def _evaluated(root: Path) -> list[Path]:
    return sorted((root / "metrics/evaluate").glob("*.json"))


def _scores(written: Mapping, protocol: str) -> dict[str, dict[str, float]]:
    """A protocol's figures by row and metric; shares as percentages, unless the file notes another unit."""
    units = written.get("units", {})
    scale = {name: 1 if not unit.startswith("points") else 100 for name, unit in units.items()}
    return {
        row: {name: scale.get(name, 100) * value for name, value in values.items() if value is not None}
        for row, values in written[protocol].items()
        if isinstance(values, Mapping)
    }


def of_features(root: Path) -> dict[str, float]:
    """Uniformity and tolerance of the test features, less their mean: after a ReLU most of each is common to all."""
    from selfsup.data.loader import open_split
    from selfsup.features.measures import label_free
    from selfsup.features.store import find
    from selfsup.params import load

    params = load(root / "params.yaml")
    features = find(root / "features", [])[0][0].load("test")
    features = features - features.mean(0)
    data = params.data.model_copy(update={"verify": "size", "cache": "none"})  # only labels are read
    labels = open_split(root / "data/shards", "test", data).labels
    uniformity = label_free(features, params.seed)["uniformity"]
    return {"uniformity": uniformity, "tolerance": tolerance(features, labels, params.seed)}


def tolerance(features: np.ndarray, labels: np.ndarray, seed: int) -> float:
    """Mean cosine of two images of one class, -1 to 1, of a seeded sample of `features` [N D]; NaN without labels.

    Wang & Liu 2021, arXiv:2012.09740, section 4.2.
    """
    rows = np.sort(np.random.default_rng(seed).permutation(len(features))[:PAIRS])
    z = np.asarray(features[rows], np.float64)
    z /= np.maximum(np.linalg.norm(z, axis=1, keepdims=True), 1e-12)
    own = labels[rows]
    same = np.triu((own[:, None] == own) & (own >= 0)[:, None], k=1)
    return float((z @ z.T)[same].mean()) if same.any() else float("nan")
