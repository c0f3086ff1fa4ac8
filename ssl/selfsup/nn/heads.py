"""Projector and predictor heads."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn.contrastive import unit
from selfsup.params import HeadParams


def mlp(width: int, params: HeadParams, norm_output: bool = False) -> nn.Sequential:
    """`params.layers` linear layers with batch norm and ReLU between them: [N width] -> [N out]; 0 layers: identity.

    A linear layer before a batch norm has no bias, which the norm would take away. `norm_output`: a batch norm, without
    ReLU, on the output too.
    """
    widths = [width, *[params.hidden] * (params.layers - 1), params.out] if params.layers else [width]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths), start=1):
        last = i == params.layers
        layers += [nn.Linear(a, b, bias=last and not norm_output)]
        if not last:
            layers += [nn.BatchNorm1d(b), nn.ReLU(inplace=True)]
        elif norm_output:
            layers += [nn.BatchNorm1d(b)]
    return nn.Sequential(*layers)


def predictor(width: int, params: HeadParams, method: str, norm_output: bool = False) -> nn.Sequential:
    """An `mlp` from projections [N width] to predictions of them, [N width]. Raises `UserError`."""
    if params.layers and params.out != width:
        raise UserError(
            f"methods.{method}.predictor.out: {params.out} is not the width of what is predicted; set {width}"
        )
    return mlp(width, params, norm_output)


class CosineLayer(nn.Module):
    """Cosines with `out` directions, a linear layer whose weights are normed to 1. [N width] -> [N out]

    In float32 or better whatever the autocast.
    """

    def __init__(self, width: int, out: int):
        super().__init__()
        self.weight = nn.Parameter(unit(torch.randn(out, width)))

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return unit(x) @ unit(self.weight).T
