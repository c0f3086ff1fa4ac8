"""From samples to features: the encoder in evaluation mode on the plain view of every sample, over all processes.

Methods that cluster their own features learn from these, so what trains depends on this file.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from selfsup import views
from selfsup.data.loader import Batch, Split, ordered_batches
from selfsup.nn.distributed import rank, sum_over_ranks, world

BATCH = 256


def share(samples: int) -> tuple[int, int]:
    """The rows [start, stop) that this process encodes."""
    count = world()
    return (samples * rank() + count - 1) // count, (samples * (rank() + 1) + count - 1) // count


def pooled(encoder: nn.Module, split: Split, batch: Batch, device: torch.device) -> Tensor:
    """The features of a batch of the split. [B D]"""
    on_device = {name: x.to(device, non_blocking=True) for name, x in batch.items()}
    return encoder(views.find(split.kind).plain(on_device, split.data))["pooled"]


@torch.no_grad()
def encoded(encoder: nn.Module, split: Split, device: torch.device, done: int = 0) -> Iterator[tuple[int, Tensor]]:
    """This process's share of the pooled features, batch by batch, as (first row, [B D]).

    The first `done` rows of the share are left out: a multiple of `BATCH`, so that batches are always the same.
    """
    training = encoder.training
    encoder.eval()
    start, stop = share(split.samples)
    start += done
    for batch in ordered_batches(split, BATCH, start, stop):
        yield start, pooled(encoder, split, batch, device)
        start += len(batch["id"])
    encoder.train(training)


def encode(encoder: nn.Module, split: Split, device: torch.device) -> Tensor:
    """Pooled features of the whole split in id order, on every process. [N D]"""
    out: Tensor | None = None
    for first, features in encoded(encoder, split, device):
        if out is None:
            out = features.new_zeros(split.samples, features.shape[1])
        out[first : first + len(features)] = features
    if out is None:
        raise ValueError(f"{split.samples} samples are too few for {world()} processes")
    return sum_over_ranks(out)


@torch.no_grad()
def embed(encoder: nn.Module, split: Split, device: torch.device, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and labels of at most `most` labelled samples, evenly spread, on this process. [n D], [n]"""
    ids = np.flatnonzero(split.labels >= 0)
    ids = ids[np.linspace(0, len(ids) - 1, min(most, len(ids))).astype(np.int64)]  # shards are sorted by class
    parts = np.array_split(ids, max(1, -(-len(ids) // BATCH)))
    features = [pooled(encoder, split, split.gather(part), device).float().cpu().numpy() for part in parts]
    return np.concatenate(features), split.labels[ids]
