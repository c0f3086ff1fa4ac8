"""Views of sequences: `tokens` int64 [B L], in which 0 is no number."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from selfsup.draw import Draw


def plain(batch: Mapping[str, Tensor], data: Any) -> Tensor:  # noqa: ARG001 - the decoder has cut the sequences
    """The tokens as they are."""
    return batch["tokens"].long()


def view(batch: Mapping[str, Tensor], draw: Draw, recipe: Any, data: Any) -> Tensor:  # noqa: ARG001
    """A part of each sequence that covers at least half of it, at its own place; all else is 0."""
    tokens = plain(batch, data)
    length = tokens.shape[1]
    size = length // 2 + draw.integers("size", length - length // 2 + 1, 1)
    start = (draw.uniform("start", 1) * (length - size + 1)).long()
    place = torch.arange(length, device=tokens.device)
    inside = (place >= start.to(tokens.device)) & (place < (start + size).to(tokens.device))
    return tokens * inside


def pictures(views: Any, data: Any) -> list[Tensor]:  # noqa: ARG001
    return []


def suspicious(batch: Mapping[str, Tensor]) -> str:
    """Sequences of one number."""
    tokens = batch["tokens"]
    same = int((tokens == tokens[:, :1]).all(1).sum())
    return f"{same} sequences of the step are of one number" if same > len(tokens) / 2 else ""
