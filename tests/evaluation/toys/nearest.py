"""A protocol without labels, percentages or accuracies: how far the nearest training image is."""

import numpy as np
from pydantic import PositiveInt

from selfsup.config import Strict
from selfsup.evaluation.neighbours import search
from selfsup.evaluation.result import Choice, Metric, Result, Table, Uncertainty
from selfsup.features.store import Splits

TITLE = "nearest image"
NEEDS = {"features"}


class Params(Strict):
    k: PositiveInt


def run(features: Splits, params: Params, seed: int) -> Result:
    similarity, _ = search([features.train], features.test, params.k)
    distance = 1 - similarity.mean(axis=1).astype(np.float64)  # [test images]
    error = float(distance.std(ddof=1) / np.sqrt(len(distance)))
    return Result(
        metrics={
            "distance": Metric(
                float(distance.mean()),
                "cosine distance",
                unit="none",
                higher_is_better=False,
                uncertainty=Uncertainty(error, "images"),
                outcomes=distance,
            ),
            "time": Metric(1.5, "search time", unit="seconds", higher_is_better=False),
        },
        choices={"k": Choice(params.k, "neighbours", {params.k: 0.0})},
        notes=[f"drawn with seed {seed}"],
        tables={"extremes": Table(["which", "distance"], [["farthest", float(distance.max())]])},
        features="l2-normalised",
    )
