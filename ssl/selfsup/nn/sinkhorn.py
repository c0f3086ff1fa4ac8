"""Soft assignments of samples to prototypes that use every prototype about equally."""

import torch
from torch import Tensor


@torch.no_grad()
def sinkhorn(scores: Tensor, eps: float, rounds: int = 3) -> Tensor:  # [N K] -> [N K]
    """Codes of the whole batch's scores: rows sum to 1, columns tend to N / K as `rounds` grow.

    Caron et al. 2020, arXiv:2006.09882, section 3.1 (Cuturi 2013, arXiv:1306.0895): exp(scores / eps) with columns and
    rows scaled in turn, here as logarithms, so that no score overflows. In float32 or better.
    """
    with torch.autocast(scores.device.type, enabled=False):
        log = (scores if scores.dtype == torch.float64 else scores.float()) / eps
        for _ in range(rounds):
            log = log.log_softmax(0).log_softmax(1)
        return log.exp()
