"""Values and gradients of losses that lightly has too, over a grid of shapes and knobs: the largest differences.

    uv pip install -e ".[bench]"
    python benchmarks/losses.py                      # writes benchmarks/results/losses.md

Both get the same float64 embeddings. A difference is relative: of values to the larger of 1 and lightly's value, of
gradients with respect to all embeddings to the largest entry of lightly's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import common
import torch
from torch import Tensor

from selfsup.families.multicrop import cross_views
from selfsup.methods import align_uniform, barlow_twins, byol, dcl, ibot, moco, simclr, simsiam, vicreg
from selfsup.nn.contrastive import similarities, unit
from selfsup.nn.sinkhorn import sinkhorn

Pair = tuple[Callable[..., Tensor], Callable[..., Tensor]]  # ours and lightly's, of the embeddings
SHAPES = ((4, 8), (32, 64), (200, 16))
TAUS = (0.05, 0.1, 0.5, 1.0)


def weighted(a: Tensor, b: Tensor, tau: float, sigma: float) -> Tensor:
    positive, negatives = similarities(a, b, tau)
    return dcl.decoupled(positive, negatives, dcl.von_mises_fisher(positive * tau, sigma))


def vic(a: Tensor, b: Tensor) -> Tensor:
    invariance, variance, covariance = vicreg.vicreg(a, b)
    return 25 * invariance + 25 * variance + covariance


def aligned(a: Tensor, b: Tensor, t: float) -> Tensor:
    return align_uniform.align_uniform(a, b, alpha=2, t=t, weights=(1, 1))


def keys(width: int) -> Tensor:  # -> [40 width]
    """Of earlier batches."""
    return unit(torch.randn(40, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))


def swapped(views: list[Tensor], tau: float, eps: float, queues: list[Tensor]) -> Tensor:
    """`queues`: scores of earlier features, by global view; may be empty."""
    codes = [sinkhorn(torch.cat([view, *queues[i : i + 1]]), eps)[: len(view)] for i, view in enumerate(views[:2])]
    return cross_views(views, codes, tau)


def distilled(views: list[Tensor], tau: float, centre: Tensor) -> Tensor:
    targets = [((view.detach() - centre) / 0.04).softmax(1) for view in views[:2]]
    return cross_views(views, targets, tau)


def patches(student: Tensor, teacher: Tensor, hidden: Tensor) -> Tensor:
    return ibot.masked_patches(student, (teacher / 0.04).softmax(2), hidden, 0.1)


def their_patches(student: Tensor, teacher: Tensor, hidden: Tensor) -> Tensor:
    from lightly import loss as theirs

    loss = theirs.IBOTPatchLoss(student.shape[2], 0.04, 0.1).double()
    return loss(teacher[hidden], student[hidden], hidden[:, None])


def their_moco(q: Tensor, k: Tensor, tau: float) -> Tensor:
    from lightly import loss as theirs

    loss = theirs.NTXentLoss(tau, memory_bank_size=(40, q.shape[1]))
    loss.memory_bank.bank = keys(q.shape[1])
    return loss(q, k)


def their_swav(a: Tensor, b: Tensor, tau: float, queued: bool) -> Tensor:
    from lightly import loss as theirs

    every = views(a, b)
    return theirs.SwaVLoss(tau)(every[:2], every[2:], earlier(a) if queued else None)[0]


def their_dino(a: Tensor, b: Tensor, tau: float, centred: bool) -> Tensor:
    from lightly import loss as theirs

    loss = theirs.DINOLoss(a.shape[1], student_temp=tau).double()
    loss.center += centred * keys(a.shape[1])[0]
    return loss([view.detach() for view in views(a, b)[:2]], views(a, b), teacher_temp=0.04)


def cases() -> dict[str, list[Pair]]:
    """For each loss, ours and lightly's at every knob."""
    from lightly import loss as theirs
    from lightly.loss.hypersphere_loss import HypersphereLoss

    spread = theirs.KoLeoLoss()
    cosine = theirs.NegativeCosineSimilarity()
    knobs = list(itertools.product(TAUS, (0.5, 1.0)))
    return {
        "simclr": [(lambda a, b, t=t: simclr.nt_xent(a, b, t), theirs.NTXentLoss(t)) for t in TAUS],
        "dcl": [(lambda a, b, t=t: dcl.decoupled(*similarities(a, b, t)), theirs.DCLLoss(t)) for t in TAUS],
        "dcl, weighted": [
            (lambda a, b, t=t, s=s: weighted(a, b, t, s), theirs.DCLWLoss(temperature=t, sigma=s)) for t, s in knobs
        ],
        "byol, one direction": [(byol.regression, lambda a, b: 2 + 2 * cosine(a, b))],
        "simsiam, one direction": [(simsiam.distance, cosine)],
        "barlow_twins": [
            (
                lambda a, b, w=w: barlow_twins.barlow(barlow_twins.cross_correlation(a, b), w),
                theirs.BarlowTwinsLoss(lambda_param=w),
            )
            for w in (0.0051, 0.1)
        ],
        "vicreg": [(vic, theirs.VICRegLoss())],
        "align_uniform": [(lambda a, b, t=t: aligned(a, b, t), HypersphereLoss(t=t)) for t in (1.0, 2.0)],
        "moco": [
            (
                lambda q, k, t=t: moco.contrast(q, k, keys(q.shape[1]), t),
                lambda q, k, t=t: their_moco(q, k, t),
            )
            for t in TAUS
        ],
        "swav, two and two crops, queue of 0 and 40": [
            (
                lambda a, b, t=t, on=on: swapped(views(a, b), t, 0.05, earlier(a) if on else []),
                lambda a, b, t=t, on=on: their_swav(a, b, t, on),
            )
            for t, on in itertools.product(TAUS, (False, True))
        ],
        "dino, two and two crops, two centres": [
            (
                lambda a, b, t=t, on=on: distilled(views(a, b), t, on * keys(a.shape[1])[0]),
                lambda a, b, t=t, on=on: their_dino(a, b, t, on),
            )
            for t, on in itertools.product(TAUS, (False, True))
        ],
        "ibot, patches": [
            (
                lambda a, b: patches(folded(a), folded(b).detach(), hidden(a)),
                lambda a, b: their_patches(folded(a), folded(b).detach(), hidden(a)),
            )
        ],
        "ibot, koleo": [(lambda a, b: ibot.koleo(a) + ibot.koleo(b), lambda a, b: spread(a) + spread(b))],
    }


def views(a: Tensor, b: Tensor) -> list[Tensor]:
    """Scores of two global and two local views, in -1..1 as cosines are."""
    return [a.tanh(), b.tanh(), (a + b).tanh(), (a - b).tanh()]


def earlier(a: Tensor) -> list[Tensor]:
    """Scores of a queue, for both global views."""
    return [keys(a.shape[1]), -keys(a.shape[1]).flip(0)]


def folded(x: Tensor) -> Tensor:  # [N D] -> [N/4 4 D]: images of four patches
    return x.unflatten(0, (-1, 4))


def hidden(x: Tensor) -> Tensor:  # -> bool [N/4 4], the first image with none
    return (torch.arange(len(x)) % 3 < 2).view(-1, 4) & (torch.arange(len(x) // 4) > 0)[:, None]


def differences(pair: Pair, shape: tuple[int, int]) -> tuple[float, float]:
    """Of the values and of the gradients."""
    found = []
    for loss in pair:
        torch.manual_seed(0)
        a = torch.randn(shape, dtype=torch.float64, requires_grad=True)
        b = (a.detach() + 0.5 * torch.randn(shape, dtype=torch.float64)).requires_grad_()
        value = loss(a, b)
        gradients = torch.autograd.grad(value, (a, b), allow_unused=True)
        found.append((value.item(), torch.cat([torch.zeros_like(a) if g is None else g for g in gradients])))
    (ours, grad), (other, other_grad) = found
    largest = other_grad.abs().max().clamp(min=1e-300)
    return abs(ours - other) / max(1.0, abs(other)), ((grad - other_grad).abs().max() / largest).item()


def main() -> None:
    args = common.arguments(__doc__, "losses.md").parse_args()
    rows = []
    for name, pairs in cases().items():
        both = [differences(pair, shape) for pair in pairs for shape in SHAPES]
        values, gradients = zip(*both, strict=True)
        rows.append([name, len(both), f"{max(values):.1e}", f"{max(gradients):.1e}"])
    text = f"Embeddings of shape {', '.join(f'{n} x {d}' for n, d in SHAPES)}, float64; every knob at every shape."
    where = common.conditions("torch", "lightly")
    head = ["loss", "cases", "largest difference of values", "largest difference of gradients"]
    rest = (
        "What is left for DINO and iBOT comes from lightly's temperature, a float32 tensor, and for KoLeo from where "
        "its 1e-8 stands."
    )
    common.write(args.out, "Losses against lightly's", text, where, common.table(head, rows), rest)


if __name__ == "__main__":
    main()
