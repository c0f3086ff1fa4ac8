"""From images to features: the encoder in evaluation mode on the centre view of every image, over all processes.

Methods that cluster their own features learn from these, so what trains depends on this file.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from selfsup.data.loader import Split, ordered_batches
from selfsup.nn.distributed import rank, sum_over_ranks, world
from selfsup.views.image.recipe import centre_view

BATCH = 256


def share(samples: int) -> tuple[int, int]:
    """The rows [start, stop) that this process encodes."""
    count = world()
    return (samples * rank() + count - 1) // count, (samples * (rank() + 1) + count - 1) // count


@torch.no_grad()
def encoded(encoder: nn.Module, split: Split, device: torch.device, size: int) -> Iterator[tuple[int, Tensor]]:
    """This process's share of the pooled features, batch by batch, as (first row, [B D])."""
    training = encoder.training
    encoder.eval()
    start, stop = share(split.samples)
    for batch in ordered_batches(split, BATCH, start, stop):
        on_device = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
        yield start, encoder(centre_view(on_device, size))["pooled"]
        start += len(batch["id"])
    encoder.train(training)


def encode(encoder: nn.Module, split: Split, device: torch.device, size: int) -> Tensor:
    """Pooled features of the whole split in id order, on every process. [N D]"""
    out: Tensor | None = None
    for first, pooled in encoded(encoder, split, device, size):
        if out is None:
            out = pooled.new_zeros(split.samples, pooled.shape[1])
        out[first : first + len(pooled)] = pooled
    if out is None:
        raise ValueError(f"{split.samples} samples are too few for {world()} processes")
    return sum_over_ranks(out)


@torch.no_grad()
def embed(
    encoder: nn.Module, split: Split, device: torch.device, size: int, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and labels of at most `most` labelled images, evenly spread, on this process. [n D], [n]"""
    ids = np.flatnonzero(split.labels >= 0)
    ids = ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(np.int64)]  # shards are sorted by class
    features = []
    for part in np.array_split(ids, max(1, -(-len(ids) // BATCH))):
        on_device = {name: x.to(device, non_blocking=True) for name, x in split.gather(part).items()}
        features.append(encoder(centre_view(on_device, size))["pooled"].float().cpu().numpy())
    return np.concatenate(features), split.labels[ids]
