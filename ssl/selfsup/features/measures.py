"""What can be said of features without any label: how many directions they fill and how evenly."""

from __future__ import annotations

import numpy as np

SAMPLE = 10_000  # features that RankMe reads at most
PAIRS = 2_000  # features whose pairs uniformity reads at most


def label_free(features: np.ndarray, seed: int) -> dict[str, float]:
    """RankMe, uniformity and deviation of `features` [N D], on a seeded sample; N >= 2."""
    order = np.random.default_rng(seed).permutation(len(features))[:SAMPLE]
    sample = np.asarray(features[np.sort(order)], np.float64)
    pairs = np.asarray(features[np.sort(order[:PAIRS])], np.float64)
    return {
        "rankme": rankme(sample),
        "width": float(features.shape[1]),
        "uniformity": uniformity(pairs),
        "std": deviation(sample),
        "isotropic_std": float(features.shape[1] ** -0.5),
    }


def rankme(features: np.ndarray) -> float:
    """Effective rank of `features` [N D]: 1 when all lie on a line, min(N, D) when all directions weigh the same.

    exp of the entropy of the normalised singular values; Garrido et al. 2023, "RankMe", arXiv:2210.02885, eq. 1.
    """
    features = np.asarray(features, np.float64)
    features = features / max(np.abs(features).max(initial=0), np.finfo(np.float64).tiny)
    gram = features.T @ features if len(features) >= features.shape[1] else features @ features.T
    sigma = np.sqrt(np.maximum(np.linalg.eigvalsh(gram), 0))
    if not sigma.any():
        return 0.0
    p = sigma / sigma.sum()
    p = p[p > 0]
    return float(np.exp(-(p * np.log(p)).sum()))


def uniformity(features: np.ndarray) -> float:
    """log mean exp(-2 |x - y|^2) over the pairs of l2-normalised `features` [N D]: 0 collapsed, towards -4 even.

    Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
    Hypersphere", arXiv:2005.10242, section 4.1, t = 2.
    """
    z = _normalised(features)
    squared = np.maximum(2 - 2 * (z @ z.T)[np.triu_indices(len(z), k=1)], 0)
    return float(np.log(np.exp(-2 * squared).mean()))


def deviation(features: np.ndarray) -> float:
    """Mean over dimensions of the standard deviation of l2-normalised `features` [N D]: 0 collapsed, 1/sqrt(D) even.

    Chen & He 2021, "Exploring Simple Siamese Representation Learning", arXiv:2011.10566, section 4.1.
    """
    return float(_normalised(features).std(axis=0).mean())


def _normalised(features: np.ndarray) -> np.ndarray:
    """Rows of length 1, float64; a row of zeros stays zero."""
    features = np.asarray(features, np.float64)
    norm = np.linalg.norm(features, axis=1, keepdims=True)
    return features / np.where(norm > 0, norm, 1)
