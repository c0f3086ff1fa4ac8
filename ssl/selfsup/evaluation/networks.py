"""What protocols that look inside a network are given: the network of each row, and the images that it sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from selfsup.data.loader import Batch, Split, ordered_batches

if TYPE_CHECKING:
    from collections.abc import Sequence

BATCH = 256


class Images:
    """The samples of a split as plain views, made when they are asked for: memory does not grow with their number."""

    def __init__(self, split: Split, view: Callable[[Batch], Tensor], device: torch.device):
        """`view` maps a batch to images float32 [B 3 S S] in 0..1 on its device."""
        self.split, self.view, self.device = split, view, device

    def __len__(self) -> int:
        return self.split.samples

    def batches(self, size: int = BATCH, stop: int | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """Numbers int64 [B] and views [B 3 S S] of the samples 0 to `stop` - 1 (all), in this order."""
        for batch in ordered_batches(self.split, size, 0, stop):
            yield batch["id"], self._seen(batch)

    def take(self, ids: Sequence[int] | Any) -> Tensor:
        """The views of the samples with these numbers, [B 3 S S]."""
        return self._seen(self.split.gather(ids))

    def _seen(self, batch: Batch) -> Tensor:
        return self.view({name: x.to(self.device, non_blocking=True) for name, x in batch.items()})


class ImageSplits(NamedTuple):
    """The images of each split."""

    train: Images
    validation: Images
    test: Images


class Networks(NamedTuple):
    """What a stage hands to `evaluate` for protocols that look inside networks."""

    encoder: Callable[[str], nn.Module | None]  # of a row, in evaluation mode; None: the row has no network
    images: ImageSplits
    code: Callable[[str], str]  # digest of the code that makes a row's encoder and its views

    @property
    def kind(self) -> str:
        """The kind of data."""
        return self.images.train.split.kind
