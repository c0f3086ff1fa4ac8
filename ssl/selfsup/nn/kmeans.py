"""Clusters of the features of a whole set, the same on every process."""

import torch
from torch import Tensor

from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import of_first_rank

ROWS = 8192  # compared with all centroids at a time


@torch.no_grad()
def whitened(x: Tensor, dims: int) -> Tensor:  # [N D] -> [N d], d <= dims
    """The `dims` principal components, each scaled to variance 1, rows then to length 1; float64 inside.

    Directions in which the features do not vary are left out.
    """
    centred = x.double() - x.double().mean(0)
    variance, directions = torch.linalg.eigh(centred.T @ centred / len(x))  # rising
    kept = min(dims, int((variance > 1e-10 * variance[-1]).sum()))
    scaled = centred @ directions[:, len(variance) - kept :] / variance[len(variance) - kept :].sqrt()
    return unit(scaled).to(x.dtype)


def nearest(x: Tensor, centroids: Tensor) -> Tensor:  # [N D], [K D] -> int64 [N]
    """The centroid with the largest inner product."""
    return torch.cat([(rows @ centroids.T).argmax(1) for rows in x.split(ROWS)])


def split_empty(labels: Tensor, clusters: int) -> Tensor:  # int64 [N] -> [N]
    """Give every empty cluster half of the largest one. Needs N >= `clusters`."""
    labels, counts = labels.clone(), labels.bincount(minlength=clusters)
    for empty in (counts == 0).nonzero().flatten().tolist():
        largest = int(counts.argmax())
        moved = (labels == largest).nonzero().flatten()[1::2]
        labels[moved] = empty
        counts[empty], counts[largest] = len(moved), counts[largest] - len(moved)
    return labels


@torch.no_grad()
def spherical_kmeans(x: Tensor, clusters: int, generator: torch.Generator, rounds: int = 10) -> tuple[Tensor, Tensor]:
    """Clusters by cosine (Dhillon & Modha 2001, Machine Learning 42), none of them empty.

    `x` [N D] has unit rows; the generator, a CPU's, draws the first centroids among them. Returns labels int64 [N] and
    the centroids [K D], the unit means of their members.
    """
    centroids = x[torch.randperm(len(x), generator=generator)[:clusters].to(x.device)]
    labels = nearest(x, centroids)
    for _ in range(rounds):
        labels = split_empty(labels, clusters)
        centroids = unit(torch.zeros_like(centroids).index_add_(0, labels, x))
        labels = nearest(x, centroids)
    labels = of_first_rank(split_empty(labels, clusters))
    return labels, of_first_rank(unit(torch.zeros_like(centroids).index_add_(0, labels, x)))
