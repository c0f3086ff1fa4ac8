"""Losses that hold each view against one positive and many negatives: one similarity matrix, different weightings.

s is the positive's cosine / tau, and s_k are those of the n negatives. Each view is the anchor once. All losses are
means of -s + log(e^s + n g) over the anchors. The methods differ in g, the weight of a negative beside the positive:

    InfoNCE (NT-Xent)   g = mean of e^s_k
    ring                the same over negatives of medium similarity only; over all negatives: InfoNCE
    debiased            g = (mean of e^s_k - tau_plus e^s) / (1 - tau_plus), at least e^(-1/tau); tau_plus 0: InfoNCE
    hard negatives      debiased with the mean weighted by e^(beta s_k); beta 0: debiased
    decoupled (DCL)     not of this form: e^s is dropped from InfoNCE's denominator, which is InfoNCE minus the mean of
                        -log(1 - p), p the softmax probability of the positive
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from selfsup.nn.precision import full_precision

BLOCK = 1024  # anchors whose similarities are held at a time


@full_precision
def unit(z: Tensor) -> Tensor:  # [... D] -> [... D]
    """Vectors of length 1, in float32 or better."""
    return F.normalize(z, dim=-1)


def large(a: Tensor) -> bool:
    """Whether a batch, of which `a` [N D] is one view, has more than `BLOCK` anchors."""
    return 2 * len(a) > BLOCK


@full_precision
def similarities(a: Tensor, b: Tensor, tau: float, anchors: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Cosines / tau of the 2N views as anchors: of their positives [2N], and of all views [2N 2N].

    `a` and `b` [N D] are the two views of the same images. In the matrix, the view itself and its positive are -inf;
    the 2N - 2 others are its negatives. With `anchors`, int64 [M], only their rows: [M] and [M 2N].
    """
    z = unit(torch.cat([a, b]))
    anchors = torch.arange(len(z), device=z.device) if anchors is None else anchors
    partners, rows = (anchors + len(a)) % len(z), torch.arange(len(anchors), device=z.device)
    s = (z[anchors] / tau) @ z.T
    s[rows, anchors] = s[rows, partners] = -torch.inf
    return (z[anchors] * z[partners]).sum(1) / tau, s


def over_anchors(loss: Callable[..., Tensor], a: Tensor, b: Tensor, tau: float, *own: Tensor) -> Tensor:
    """Evaluate `loss`, a mean over anchors, on all `similarities`; `own` are further tensors [2N], one row per anchor.

    Memory is that of `BLOCK` anchors: more anchors are computed block by block, and again in the backward pass.
    """
    if not large(a):
        return loss(*similarities(a, b, tau), *own)
    anchors = torch.arange(2 * len(a), device=a.device)

    def share(a: Tensor, b: Tensor, turn: Tensor) -> Tensor:
        return loss(*similarities(a, b, tau, turn), *(x[turn] for x in own)) * (len(turn) / len(anchors))

    turns = [
        checkpoint(share, a, b, turn, use_reentrant=False, preserve_rng_state=False) for turn in anchors.split(BLOCK)
    ]
    return torch.stack(turns).sum(0)


@full_precision
def queue_similarities(z: Tensor, queue: Tensor, tau: float) -> Tensor:  # [N D], unit vectors [K D] -> [N K]
    """Cosines / tau."""
    return unit(z) @ queue.T / tau


@full_precision
def info_nce(positive: Tensor, negatives: Tensor) -> Tensor:  # [M], [M K] -> []
    """Oord et al. 2018, arXiv:1807.03748: -log of the positive's share among all candidates.

    mean( -s + log(e^s + sum_k e^s_k) ), s the positive and s_k the negatives; those of -inf do not count.
    """
    return (torch.logaddexp(positive, negatives.logsumexp(1)) - positive).mean()


@full_precision
def corrected(positive: Tensor, negatives: Tensor, log_weights: Tensor, tau: float, tau_plus: float) -> Tensor:
    """InfoNCE whose negatives are a weighted mean, less the share of the anchor's own class. [M], [M K], [M K] -> []

    mean( -s + log(e^s + n g) ), g = max( (sum_k w_k e^s_k - tau_plus e^s) / (1 - tau_plus), e^(-1/tau) ), the weights w
    of the n negatives being the softmax of `log_weights`. `tau_plus` is the chance that a negative is of that class.
    """
    kept = negatives.isfinite()
    weights = torch.where(kept, log_weights, -torch.inf).log_softmax(1)
    mean = (weights + negatives).logsumexp(1)  # logarithms throughout: e^(1/tau) leaves float32 at small tau
    share = positive - mean + (math.log(tau_plus) if tau_plus else -math.inf)  # of the mean, that is taken off
    below = share < 0
    g = mean + torch.log(-torch.where(below, share, -1.0).expm1()) - math.log1p(-tau_plus)
    g = torch.where(below, g, -torch.inf).clamp(min=-1 / tau)
    return (torch.logaddexp(positive, kept.sum(1).to(g).log() + g) - positive).mean()


def ring(negatives: Tensor, outer: float, inner: float) -> Tensor:  # [M K] -> [M K]
    """Of each row's negatives the nearest `outer` share, less the nearest `inner` share of those; the others -inf.

    Both shares are rounded down to whole negatives. At least one is kept.
    """
    count = negatives.isfinite().sum(1, keepdim=True).double()
    most = (outer * count + 1e-9).floor().clamp(min=1)  # the product 0.29 * 100 is less than 29
    least = torch.minimum((inner * most + 1e-9).floor(), most - 1)
    rank = negatives.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # 0: the nearest
    return negatives.masked_fill((rank < least) | (rank >= most), -torch.inf)
