"""Soft assignments of samples to prototypes that use every prototype about equally."""

import torch
from torch import Tensor

from selfsup.nn.precision import full_precision


@torch.no_grad()
@full_precision
def sinkhorn(scores: Tensor, eps: float, rounds: int = 3) -> Tensor:  # [N K] -> [N K]
    """Codes of the whole batch's scores: rows sum to 1, columns tend to N / K as `rounds` grow.

    Caron et al. 2020, arXiv:2006.09882, section 3.1 (Cuturi 2013, arXiv:1306.0895): exp(scores / eps) with columns and
    rows scaled in turn, here as logarithms, so that no score overflows.
    """
    log = scores / eps
    for _ in range(rounds):
        log = log.log_softmax(0).log_softmax(1)
    return log.exp()
