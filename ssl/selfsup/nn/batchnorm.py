"""Batch norm over the global batch. torch's own `SyncBatchNorm` refuses CPUs."""

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsup.nn.distributed import sum_over_ranks, world
from selfsup.nn.precision import full_precision


@full_precision
def _normalise(norm: _BatchNorm, x: Tensor) -> Tensor:
    """Batch norm with the mean and biased variance of all ranks' rows. [n C ...] -> [n C ...]"""
    dims = [0, *range(2, x.ndim)]
    shape = [1, -1] + [1] * (x.ndim - 2)
    count = x.numel() // x.shape[1] * world()
    mean = sum_over_ranks(x.sum(dims)) / count
    centred = x - mean.view(shape)
    variance = sum_over_ranks(centred.square().sum(dims)) / count
    if norm.track_running_stats and norm.running_mean is not None and norm.running_var is not None:
        steps: Tensor = norm.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        rate = 1 / float(steps) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(mean.detach().to(norm.running_mean.dtype), rate)
        norm.running_var.lerp_((variance.detach() * count / max(count - 1, 1)).to(norm.running_var.dtype), rate)
    out = centred * (variance.view(shape) + norm.eps).rsqrt()
    if norm.affine:
        out = out * norm.weight.view(shape) + norm.bias.view(shape)
    return out


@cache
def _global(kind: Any) -> type[_BatchNorm]:
    """The class `kind` with global statistics; timm's variants with drop and activation keep them."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return kind.forward(self, x)
        x = _normalise(self, x).to(x.dtype)
        return self.act(self.drop(x)) if hasattr(self, "act") and hasattr(self, "drop") else x

    return type(f"Global{kind.__name__}", (kind,), {"forward": forward})


def globalise(module: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm below `module` take its statistics over the global batch; parameters and names stay."""
    if device.type == "cuda" and world() > 1:
        from timm.layers import convert_sync_batchnorm  # late: a second to import

        return convert_sync_batchnorm(module)
    for child in module.modules():
        if isinstance(child, _BatchNorm) and not type(child).__name__.startswith("Global"):
            kind: Any = type(child)
            child.__class__ = _global(kind)
    return module
