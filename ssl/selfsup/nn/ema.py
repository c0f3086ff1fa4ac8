"""The momentum encoder: a slowly moving copy of a network that gets no gradient."""

import copy
import math
from collections.abc import Sequence

import torch
from torch import nn


def target_of(module: nn.Module) -> nn.Module:
    """A copy of `module` that gets no gradient, the start of a momentum encoder."""
    return copy.deepcopy(module).requires_grad_(False)


@torch.no_grad()
def ema_update(target: nn.Module, online: nn.Module, m: float) -> None:
    """xi <- m xi + (1 - m) theta for every parameter; batch norm's statistics stay the target's own."""
    for xi, theta in zip(target.parameters(), online.parameters(), strict=True):
        xi.lerp_(theta, 1 - m)


def cosine_momentum(momentum: Sequence[float], fraction: float) -> float:
    """m goes from `base` to `end` over the run: end - (end - base) (cos(pi k / K) + 1) / 2 (BYOL, sec. 3.3)."""
    base, end = momentum
    return end - (end - base) * (math.cos(math.pi * fraction) + 1) / 2
