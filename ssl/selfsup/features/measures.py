"""Measures of features that need no label: how many directions they fill, and how evenly.

They take float32 or float64 on any device and synchronise nothing, so that the training loop can read them too.
`uniformity` is also a loss and is defined in nn/hypersphere.py.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.nn.hypersphere import uniformity

SAMPLE = 10_000  # features that RankMe and the spread are read from, at most
PAIRS = 2_000  # features whose pairs uniformity is read from, at most
DIGITS = 6  # after the point: as many as two linear algebra libraries agree on


def rankme(z: Tensor) -> Tensor:  # [N D] -> []
    """Effective rank, 1 to min(N, D): 1 when all rows lie on one line, D when all directions weigh the same.

    exp(-sum_k p_k log p_k) with p_k = s_k / sum_j s_j + eps and s the singular values of `z`; 0 when all are 0. eps is
    1e-7 in float32, and nothing that counts in float64. Garrido et al. 2023, "RankMe", arXiv:2210.02885, equation 1.
    """
    s = torch.linalg.svdvals(z)
    total, tiny = s.sum(), torch.finfo(z.dtype).tiny
    p = s / total.clamp(min=tiny) + (1e-7 if z.dtype == torch.float32 else tiny)
    return torch.where(total == 0, 0.0, (-(p * p.log()).sum()).exp())


def spread(z: Tensor) -> Tensor:  # [N D] -> []
    """Spread of the directions of `z`: 0 when all rows point the same way, 1 when they point everywhere.

    sqrt(D) mean_d std_n(z_nd / |z_n|), std with N - 1 in its denominator. Chen & He 2021, "Exploring
    Simple Siamese Representation Learning", arXiv:2011.10566, section 4.1.
    """
    return F.normalize(z, dim=1).std(0, correction=min(1, len(z) - 1)).mean() * math.sqrt(z.shape[1])


def label_free(features: np.ndarray, seed: int) -> dict[str, float]:
    """RankMe, uniformity and spread of `features` [N D] beside their width D, in float64, on a seeded sample."""
    order = np.random.default_rng(seed).permutation(len(features))
    sample, pairs = (
        torch.from_numpy(np.asarray(features[np.sort(order[:most])], np.float64)) for most in (SAMPLE, PAIRS)
    )
    found = {"rankme": rankme(sample), "uniformity": uniformity(F.normalize(pairs, dim=1)), "spread": spread(sample)}
    width = float(features.shape[1])
    return {name: round(value.item(), DIGITS) + 0.0 for name, value in found.items()} | {"width": width}
