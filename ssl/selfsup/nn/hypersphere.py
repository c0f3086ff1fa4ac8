"""How near the positives are, and how evenly all points lie on the hypersphere.

Wang & Isola 2020, "Understanding Contrastive Representation Learning through Alignment and Uniformity on the
Hypersphere", arXiv:2005.10242, section 4.1.
"""

import math

import torch
from torch import Tensor


def alignment(a: Tensor, b: Tensor, alpha: float = 2.0) -> Tensor:  # [N D] of length 1 -> []
    """E |a - b|^alpha over positive pairs."""
    return (a - b).square().sum(1).clamp(min=1e-24).pow(alpha / 2).mean()


def uniformity(z: Tensor, t: float = 2.0) -> Tensor:  # [N D] of length 1 -> []
    """log E exp(-t |z_i - z_j|^2) over pairs i != j, N >= 2.

    The sum stays in logarithms: e^(-4 t) leaves float32 at t of 26 and its gradient with it.
    """
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    potential = (-t * (2 - 2 * z @ z.T)).masked_fill(own, -torch.inf)
    return potential.flatten().logsumexp(0) - math.log(len(z) * (len(z) - 1))
