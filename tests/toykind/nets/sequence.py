"""Networks for sequences: an embedding of each number and place, and a layer over neighbours."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from selfsup.blocks.sequence import SequenceData
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nets.export import write, write_program
from selfsup.nets.fresh import refuse_weights
from selfsup.params import BackboneParams


class Backbone(nn.Module):
    """Tokens int64 [B L], 0 for none -> {"pooled": [B width], "tokens": [B L width]}."""

    def __init__(self, vocabulary: int, length: int, width: int = 16):
        super().__init__()
        self.width = width
        self.numbers = nn.Embedding(vocabulary + 1, width)  # one more than there are: a number that is hidden
        self.places = nn.Parameter(torch.zeros(length, width))
        self.norm = nn.BatchNorm1d(width)
        self.mix = nn.Linear(3 * width, width)

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        x = self.norm((self.numbers(tokens) + self.places).transpose(1, 2)).transpose(1, 2)
        beside = F.pad(x, (0, 0, 1, 1))
        x = x + F.relu(self.mix(torch.cat([beside[:, :-2], x, beside[:, 2:]], 2)))
        return {"pooled": x.mean(1), "tokens": x}


class Raw(nn.Module):
    """The tokens themselves. [B L] -> {"pooled": [B L]}"""

    def forward(self, tokens: Tensor) -> dict[str, Tensor]:
        return {"pooled": tokens.float()}


def build_backbone(params: BackboneParams, data: SequenceData, facts: Any) -> Backbone:
    refuse_weights(params)
    if params.name != "numbers":
        raise UserError(f"backbones: {params.name} is no network for sequences; use numbers")
    return Backbone(facts.vocabulary, data.length, **params.options)


def check_backbone(params: BackboneParams, data: SequenceData) -> None:
    if params.name != "numbers":
        raise UserError(f"backbones: {params.name} is no network for sequences; use numbers")
    Backbone(3, data.length, **params.options)


def export_backbone(encoder: nn.Module, params: BackboneParams, data: SequenceData, folder: Path) -> dict[str, Any]:
    encoder = encoder.eval().cpu()
    config = {"architecture": params.name, "loads_with": "torch.export"}
    write(folder, config, encoder)
    write_program(folder, encoder, torch.zeros(2, data.length, dtype=torch.int64))
    return config
