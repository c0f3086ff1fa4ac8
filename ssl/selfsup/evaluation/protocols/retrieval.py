"""Image retrieval: are the gallery's most similar images of the query's class?

Queries are the test images, the gallery are the training and validation images, an image is relevant when it has the
query's class, and similarity is the cosine: the convention of Xu et al. 2019, "Self-supervised Spatiotemporal Learning
via Video Clip Order Prediction", CVPR, section 4.3. Recall@k is 1 when a relevant image is among the k nearest. Average
precision (AP) is over the whole gallery. Nothing is fitted or chosen.

Ties are counted as ties, so that the order of the gallery has no effect. AP is the mean over relevant images i of the
precision at their similarity s_i,

    AP = mean_i #{relevant j: s_j >= s_i} / #{j: s_j >= s_i},

and where ties straddle place k, Recall@k is the expectation over random orders. Similarities count as equal when they
agree to 2^-20, about 1e-6, as far as float32 products are alike on every processor.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field, PositiveInt

from selfsup.config import Strict
from selfsup.evaluation.neighbours import precisions, similarities
from selfsup.evaluation.result import Result, labelled, right
from selfsup.features.store import Splits

TITLE = "retrieval"
NEEDS = {"features", "labels"}

STEPS = np.float32(2**20)  # of similarity


class Params(Strict):
    k: Annotated[list[PositiveInt], Field(min_length=1)]  # a Recall@k for each


def run(features: Splits, labels: Splits, params: Params, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    """The metrics are `map` and `recall_<k>`; outcomes are per query: its AP, and its (expected) hit among k.

    A query whose class the gallery lacks counts as 0.
    """
    features, labels = labelled(features, labels)
    gallery = np.concatenate([labels.train, labels.validation])
    ks = sorted(set(params.k))
    members = {c: np.flatnonzero(gallery == c) for c in np.unique(labels.test)}
    precision, hits = np.zeros(len(labels.test)), np.zeros((len(ks), len(labels.test)))
    query = 0
    for block in similarities([features.train, features.validation], features.test):
        np.rint(np.multiply(block, STEPS, out=block), out=block)
        for similarity in block:
            own = np.sort(similarity[members[labels.test[query]]])
            every = np.sort(similarity)
            precision[query] = precisions(every, own).mean() if len(own) else 0.0
            hits[:, query] = [expected_hit(every, own, k) for k in ks]
            query += 1
    lost = sum(not len(members[c]) for c in labels.test.tolist())
    metrics = {"map": right(precision, labels.test, "mAP", answers=None)}
    metrics |= {f"recall_{k}": right(hit, labels.test, f"Recall@{k}", k) for k, hit in zip(ks, hits, strict=True)}
    notes = [f"{lost} queries have no image of their class in the gallery and count as 0"] if lost else []
    notes += [f"Recall@{k} exceeds the gallery of {len(gallery)} images" for k in ks if k > len(gallery)]
    return Result(metrics, notes=notes, features="l2-normalised")


def expected_hit(every: np.ndarray, own: np.ndarray, k: int) -> float:
    """Probability that a relevant image is among the k nearest.

    Similarities in rising order: `every` [N] of all gallery images, `own` [R] of the relevant ones.

    Of T images that tie at place k, of which R are relevant, m are taken: 1 - prod_{j < m} (T - R - j) / (T - j).
    """
    k = min(k, len(every))
    last = every[-k]
    above, at_least = (len(every) - int(np.searchsorted(every, last, side)) for side in ("right", "left"))
    own_above, own_at_least = (len(own) - int(np.searchsorted(own, last, side)) for side in ("right", "left"))
    if own_above:
        return 1.0
    tied, relevant, taken = at_least - above, own_at_least, np.arange(k - above)
    return float(1 - np.prod(np.maximum(tied - relevant - taken, 0) / (tied - taken)))
