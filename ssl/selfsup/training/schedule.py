"""The learning rate as a function of the step."""

import math

from selfsup.params import LARS, SGD, AdamW, Pretrain
from selfsup.task import Progress, Schedule


def warmup_cosine(peak: float, warmup_steps: float) -> Schedule:
    """Linear from 0 at step 0 to `peak` at `warmup_steps`, then half a cosine to 0 after the last step.

    Step k of K takes peak * (1 + cos(pi (k - W) / (K - W))) / 2 (Loshchilov & Hutter 2017, arXiv:1608.03983). During
    warm-up it takes peak * (k + 1) / (W + 1), so that no step has a rate of 0.
    """

    def lr(progress: Progress) -> float:
        if progress.step < warmup_steps:
            return peak * (progress.step + 1) / (warmup_steps + 1)
        fraction = (progress.step - warmup_steps) / max(progress.steps - warmup_steps, 1)
        return peak * (1 + math.cos(math.pi * min(fraction, 1.0))) / 2

    return lr


def planned_steps(samples: int, pretrain: Pretrain) -> int:
    """Optimiser steps of the whole run; the last, incomplete batch of an epoch is dropped."""
    return pretrain.epochs * (samples // pretrain.batch_size)


def peak_lr(optimizer: SGD | LARS | AdamW, pretrain: Pretrain) -> float:
    """The learning rate at the end of the warm-up: `lr` is per 256 images."""
    return optimizer.lr * pretrain.batch_size / 256
