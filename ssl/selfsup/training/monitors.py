"""Monitors that need no labels, and the alarm they raise when a representation collapses."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from selfsup.features.measures import rankme, spread, uniformity
from selfsup.nn.contrastive import unit
from selfsup.nn.hypersphere import alignment

ROWS = 512  # enough for a reading, cheap beside a step


@torch.no_grad()
def read(embeddings: Sequence[Tensor]) -> dict[str, Tensor]:
    """The monitors of one step, each []: of the first view's embeddings [N D], and of the first two views as pairs."""
    if not embeddings or len(embeddings[0]) < 2:
        return {}
    a = embeddings[0][:ROWS].float()
    x = unit(a)
    out = {"spread": spread(a), "rankme": rankme(a), "uniformity": uniformity(x)}
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
    """A sentence that names the likely causes when the last three readings show a collapse, else None."""
    last = [row for row in rows if "spread" in row][-3:]
    if len(last) < 3:
        return None
    spread_now = max(row["spread"] for row in last)
    rank_now = max(row["rankme"] for row in last)
    if max(row.get("below_uniform", 1.0) for row in last) < 0.01:
        return (
            "collapsed: the loss stays at the logarithm of the number of prototypes, as for targets that are equal for "
            "all prototypes. Likely causes: a teacher temperature too high, a learning rate far off, too few steps"
        )
    if spread_now < 0.1 and "alignment" in last[-1]:  # features of a method without pairs may share a large mean
        return (
            f"collapsed: the spread of the embeddings is {spread_now:.3f} (1: isotropic, 0: all samples look alike to "
            "the network). Likely causes: no stop-gradient or predictor, a learning rate or momentum far off, views "
            "so strong that nothing is left to agree on"
        )
    if rank_now < 2:
        return (
            f"dimensional collapse: the embeddings' effective rank is {rank_now:.1f}. Likely causes: a learning rate "
            "too high, no batch norm in the projector, a temperature too high"
        )
    return None
