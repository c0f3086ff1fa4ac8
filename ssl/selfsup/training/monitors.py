"""Monitors that need no labels, and the alarm they raise when a representation collapses."""

import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.nn.contrastive import unit
from selfsup.nn.hypersphere import alignment, uniformity

ROWS = 512  # enough for a reading, cheap beside a step


def rank_me(z: Tensor) -> Tensor:  # [N D] -> []
    """Effective rank: exp of the entropy of the normalised singular values (Garrido et al. 2023, arXiv:2210.02885)."""
    p = torch.linalg.svdvals(z)
    p = p / p.sum().clamp(min=1e-12) + 1e-7
    return (-(p * p.log()).sum()).exp()


def spread(z: Tensor) -> Tensor:  # [N D] -> []
    """Mean deviation over dimensions of l2-normalised rows, times sqrt(D): 1 isotropic, 0 collapsed."""
    return F.normalize(z, dim=1).std(0).mean() * math.sqrt(z.shape[1])


@torch.no_grad()
def read(embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
    """All monitors of one step's embeddings, [N D] a view: of the first view alone, and of the first pair."""
    if not embeddings or len(embeddings[0]) < 2:
        return {}
    a = embeddings[0][:ROWS].float()
    x = unit(a)
    out = {"spread": spread(a), "rank_me": rank_me(a), "uniformity": uniformity(x)}
    if len(embeddings) > 1:
        y = unit(embeddings[1][:ROWS].float())
        s = x @ y.T  # [n n]
        positive = s.diagonal()
        hardest = s.masked_fill(torch.eye(len(s), dtype=torch.bool, device=s.device), -1).max(1).values
        out |= {
            "alignment": alignment(x, y),
            "positive_similarity": positive.mean(),
            "hardest_negative_similarity": hardest.mean(),
        }
    return out


def alarm(rows: Sequence[Mapping[str, float]]) -> str | None:
    """A plain sentence when the last readings say that the representation collapsed, else None."""
    last = [row for row in rows if "spread" in row][-3:]
    if len(last) < 3:
        return None
    spread_now = max(row["spread"] for row in last)
    rank_now = max(row["rank_me"] for row in last)
    if max(row.get("below_uniform", 1.0) for row in last) < 0.01:
        return (
            "collapsed: the loss stands at the logarithm of the number of prototypes, that of targets that are "
            "the same for all of them. Likely causes: a teacher temperature too high, a learning rate far "
            "off, too few steps"
        )
    if spread_now < 0.1 and "alignment" in last[-1]:  # features of a method without pairs may share a large mean
        return (
            f"collapsed: the normalised embeddings' deviation is {spread_now:.3f} of an isotropic one's (all images "
            "look alike to the network). Likely causes: no stop-gradient or predictor, a learning rate or momentum "
            "far off, views so strong that nothing is left to agree on"
        )
    if rank_now < 2:
        return (
            f"dimensional collapse: the embeddings' effective rank is {rank_now:.1f}. Likely causes: a learning rate "
            "too high, no batch norm in the projector, a temperature too high"
        )
    return None
