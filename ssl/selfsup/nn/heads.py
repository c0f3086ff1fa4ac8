"""Projector and predictor heads."""

from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

from selfsup.errors import KnobError
from selfsup.nn.contrastive import unit
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams

NORMS: dict[str, Callable[[int], nn.Module]] = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm}
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"relu": lambda: nn.ReLU(inplace=True), "gelu": nn.GELU}


def mlp(
    width: int,
    params: HeadParams,
    norm_output: bool = False,
    norm: Literal["batch", "layer", "none"] = "batch",
    activation: Literal["relu", "gelu"] = "relu",
) -> nn.Sequential:
    """`params.layers` linear layers, `norm` and `activation` between them: [N width] -> [N out]; 0 layers: identity.

    A linear layer before a batch norm has no bias, which the norm would remove. `norm_output` adds a batch norm on the
    output, without activation, scale and shift.
    """
    widths = [width, *[params.hidden] * (params.layers - 1), params.out] if params.layers else [width]
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(widths), start=1):
        if i == params.layers:
            layers += [nn.Linear(a, b, bias=not norm_output)]
            layers += [nn.BatchNorm1d(b, affine=False)] if norm_output else []
        else:
            layers += [nn.Linear(a, b, bias=norm != "batch")]
            layers += [] if norm == "none" else [NORMS[norm](b)]
            layers += [ACTIVATIONS[activation]()]
    return nn.Sequential(*layers)


def start_small(head: nn.Module) -> None:
    """Draw the linear layers' weights from a normal distribution of deviation 0.02, cut off at 2; biases are 0."""
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def predictor(width: int, params: HeadParams, norm_output: bool = False) -> nn.Sequential:
    """An `mlp` from projections [N width] to predictions of them, [N width]. Raises `KnobError`."""
    if params.layers and params.out != width:
        raise KnobError("predictor.out", f"{params.out} is not the width of what is predicted; set {width}")
    return mlp(width, params, norm_output)


class CosineLayer(nn.Module):
    """Cosines with `out` directions, a linear layer whose weights are normed to 1. [N width] -> [N out]"""

    def __init__(self, width: int, out: int):
        super().__init__()
        self.weight = nn.Parameter(unit(torch.randn(out, width)))

    @full_precision
    def forward(self, x: Tensor) -> Tensor:
        return unit(x) @ unit(self.weight).T
