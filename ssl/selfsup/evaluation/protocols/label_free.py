"""Measures that need no label: how many directions the test features fill, and how evenly.

RankMe (Garrido et al. 2023) and uniformity (Wang & Isola 2020) are those of the report page's "Without any label", from
`features/measures.py`. alpha-ReQ is `decay`. Whether any of them orders methods or checkpoints as accuracy does is a
question that `compare/without_labels.py` answers from finished runs; nothing here is ranked.

LiDAR and alignment need several views of each image and are those of the protocol `invariance`: features on disk hold
one view per image.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from selfsup.config import Strict
from selfsup.evaluation.result import Metric, Result, Table
from selfsup.features.store import Splits

TITLE = "without labels"
NEEDS = {"features"}

TINY = 1e-10  # of the largest eigenvalue: below it a component is rounding
DIGITS = 6  # after the point: as many as two linear algebra libraries agree on
LEFT_OUT = "LiDAR and alignment need views: the protocol invariance has them"


class Params(Strict):
    images: Annotated[int, Field(ge=2)]  # test images, at most, of which RankMe, alpha-ReQ and spread are read
    pairs: Annotated[int, Field(ge=2)]  # test images, at most, whose pairs give uniformity


def run(features: Splits, params: Params, seed: int) -> Result:
    """The metrics are `rankme` (1 to the width), `decay_gap`, `uniformity` (0 or less) and `spread` (0 to 1).

    `decay_gap` is |alpha - 1|, alpha-ReQ's distance from its ideal. The table `spectrum` has alpha, the number of
    components that it is fitted to and the width. A measure that a row's features do not have is left out.
    """
    import torch
    import torch.nn.functional as F

    from selfsup.features.measures import rankme, spread, uniformity

    test = features.test
    if len(test) < 2:
        return Result({}, notes=[LEFT_OUT, "all measures are left out: they need at least two test images"])
    order = np.random.default_rng(seed).permutation(len(test))
    sample, pairs = (
        torch.from_numpy(np.asarray(test[np.sort(order[:most])], np.float64)) for most in (params.images, params.pairs)
    )
    alpha, components = decay(sample.numpy())
    found = {
        "rankme": Metric(_value(rankme(sample).item()), "RankMe", unit="none"),
        "decay_gap": Metric(abs(alpha - 1), "alpha-ReQ, distance of alpha from 1", unit="none", higher_is_better=False),
        "uniformity": Metric(_value(uniformity(F.normalize(pairs, dim=1)).item()), "uniformity", "none", False),
        "spread": Metric(_value(spread(sample).item()), "spread", unit="none"),
    }
    table = Table(["alpha", "components", "width"], [[alpha, components, test.shape[1]]])
    kept = {key: metric for key, metric in found.items() if math.isfinite(metric.value)}
    notes = [] if "decay_gap" in kept else ["alpha-ReQ is left out: it needs features that vary in two directions"]
    return Result(kept, notes=[LEFT_OUT, *notes], tables={"spectrum": table})


def _value(measure: float) -> float:
    return round(measure, DIGITS) + 0.0  # no -0.0


def decay(features: np.ndarray) -> tuple[float, int]:
    """The exponent alpha of lambda_i ~ i^-alpha, and the number of components; NaN with fewer than two.

    lambda_1 >= lambda_2 .. are the eigenvalues of the covariance of `features` [N D]; alpha is the slope of the least
    squares line of -log lambda_i over log i. Agrawal et al. 2022, "alpha-ReQ: Assessing Representation Quality in
    Self-Supervised Learning by measuring eigenspectrum decay", NeurIPS, section 3: 1 is the best, below 1 noise
    dominates, above 1 few directions do. Here all components that vary are fitted.
    """
    x = np.asarray(features, np.float64)
    eigenvalues = np.linalg.svd(x - x.mean(axis=0), compute_uv=False) ** 2 / len(x)
    eigenvalues = eigenvalues[eigenvalues > TINY * eigenvalues[0]] if eigenvalues[0] > 0 else eigenvalues[:0]
    if len(eigenvalues) < 2:
        return math.nan, len(eigenvalues)
    slope = np.polyfit(np.log(np.arange(1, len(eigenvalues) + 1)), np.log(eigenvalues), 1)[0]
    return round(float(-slope), DIGITS), len(eigenvalues)
