"""Optimisers over a method's groups; schedules are data on the optimiser's parameter groups."""

from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from selfsup.params import LARS, SGD, AdamW
from selfsup.task import Group, Progress, Schedule


def build_optimizer(groups: Sequence[Group], params: SGD | LARS | AdamW, schedule: Schedule) -> Optimizer:
    """An optimiser over `groups`. A group without schedules follows `schedule` and the decay of `params`.

    LARS adapts the rates of decayed parameters (You et al. 2017, arXiv:1708.03888, equation 6) and updates the others
    as SGD does. The learning rate multiplies the velocity, as in torch's SGD. In the paper's algorithm 1 it multiplies
    the gradient that is added to the velocity.
    """
    data = [
        {"params": group.params, "lr_schedule": group.lr or schedule, "decay_schedule": group.decay}
        for group in groups
        if group.params
    ]
    if isinstance(params, SGD):
        return torch.optim.SGD(data, lr=params.lr, momentum=params.momentum, weight_decay=params.weight_decay)
    if isinstance(params, AdamW):
        betas = (params.betas[0], params.betas[1])
        return torch.optim.AdamW(data, lr=params.lr, betas=betas, weight_decay=params.weight_decay)
    from timm.optim.lars import Lars  # late: two seconds to import

    return Lars(
        data,
        lr=params.lr,
        momentum=params.momentum,
        weight_decay=params.weight_decay,
        trust_coeff=params.trust_coefficient,
    )


def apply_schedules(optimizer: Optimizer, params: SGD | LARS | AdamW, progress: Progress) -> float:
    """Set every group's learning rate and decay for this step; return the first group's learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["lr_schedule"](progress)
        group["weight_decay"] = (group["decay_schedule"] or (lambda _: params.weight_decay))(progress)
    return optimizer.param_groups[0]["lr"]
