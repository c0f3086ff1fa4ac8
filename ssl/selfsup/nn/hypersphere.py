"""How near positives are, and how evenly all points lie on the unit hypersphere: losses that also serve as measures.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv:2005.10242, section 4.1.
"""

import math

import torch
from torch import Tensor


def alignment(a: Tensor, b: Tensor, alpha: float = 2.0) -> Tensor:  # [N D] of length 1 -> []
    """Mean of |a_i - b_i|^alpha over the positive pairs, 0 (equal) to 2^alpha (opposite)."""
    return (a - b).square().sum(1).clamp(min=1e-24).pow(alpha / 2).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:  # [N D] of length 1 -> []
    """log mean exp(-t |z_i - z_j|^2) over the pairs i != j: 0 when all points are one, the lower the more even.

    Two opposite points have -4 t; NaN for one point. The sum stays in logarithms: from t = 26 on e^(-4 t) is 0 in
    float32, and its gradient with it.
    """
    own, pairs = torch.eye(len(z), dtype=torch.bool, device=z.device), len(z) * (len(z) - 1)
    potential = (-t * (2 - 2 * z @ z.T)).masked_fill(own, -torch.inf)
    return potential.flatten().logsumexp(0) - (math.log(pairs) if pairs else math.nan)
