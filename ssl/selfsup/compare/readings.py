"""Figures of an experiment that no protocol has, `<source>.<name>`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from selfsup.params import Params

SOURCES = {
    "run": ("loss", "seconds", "images_per_second"),  # of pretraining
    "embeddings": ("spread", "rankme", "uniformity", "alignment"),  # at the end of pretraining
    "features": ("uniformity", "tolerance"),  # of the test images, less their mean
}
PAIRS = 2_000  # features whose pairs are compared at most


def of_features(root: Path, params: Params) -> dict[str, float]:
    """Uniformity and tolerance of the test features, less their mean: after a ReLU most of each is common to all."""
    from selfsup.data.loader import open_split
    from selfsup.features.measures import label_free
    from selfsup.features.store import find

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
