"""Projector and predictor heads."""

from itertools import pairwise

from torch import nn

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
