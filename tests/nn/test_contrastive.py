"""The losses that weigh negatives differently: against plain loops, and how they reduce to each other."""

import math

import numpy as np
import pytest
import torch

from selfsup.methods.dcl import decoupled
from selfsup.methods.debiased import debiased
from selfsup.methods.hard_negative import hard
from selfsup.methods.simclr import nt_xent
from selfsup.nn.contrastive import info_nce, over_anchors, ring, similarities
from selfsup.task import Progress
from tests.contract.runs import build, two_equal_one

N, TAU = 5, 0.3


@pytest.fixture
def views():
    a, b = torch.randn(2, N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return a, b


def slow(a, b, tau):
    """For every view: the positive's similarity and the list of the negatives', pair by pair."""
    z = [x / np.linalg.norm(x) for x in (*a.numpy(), *b.numpy())]
    n = len(a)
    for i in range(2 * n):
        partner = (i + n) % (2 * n)
        yield z[i] @ z[partner] / tau, [z[i] @ z[k] / tau for k in range(2 * n) if k not in (i, partner)]


def test_info_nce(views):
    expected = np.mean([-p + math.log(math.exp(p) + sum(map(math.exp, s))) for p, s in slow(*views, TAU)])
    assert info_nce(*similarities(*views, TAU)).item() == pytest.approx(expected, rel=1e-12)


def test_decoupled_and_its_weights(views):
    from selfsup.methods.dcl import von_mises_fisher

    rows = list(slow(*views, TAU))
    expected = np.mean([-p + math.log(sum(map(math.exp, s))) for p, s in rows])
    positive, negatives = similarities(*views, TAU)
    assert decoupled(positive, negatives).item() == pytest.approx(expected, rel=1e-12)
    sigma = 0.5
    raw = np.array([math.exp(p * TAU / sigma) for p, _ in rows])
    weights = 2 - raw / raw.mean()
    found = von_mises_fisher((positive * TAU).requires_grad_(), sigma)
    assert not found.requires_grad
    np.testing.assert_allclose(found.numpy(), weights, rtol=1e-12)
    assert found.mean().item() == pytest.approx(1, rel=1e-12)
    expected = np.mean([-w * p + math.log(sum(map(math.exp, s))) for w, (p, s) in zip(weights, rows, strict=True)])
    assert decoupled(positive, negatives, found).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("tau_plus", [0.0, 0.1, 0.6])
@pytest.mark.parametrize("beta", [0.0, 1.0, 2.5])
def test_debiased_and_hard(views, tau_plus, beta):
    total = []
    for p, s in slow(*views, TAU):
        n = len(s)
        weights = np.exp(beta * np.array(s))
        mean = np.sum(weights * np.exp(s)) / np.sum(weights)
        g = max((mean - tau_plus * math.exp(p)) / (1 - tau_plus), math.exp(-1 / TAU))
        total.append(-math.log(math.exp(p) / (math.exp(p) + n * g)))
    found = hard(*similarities(*views, TAU), TAU, tau_plus, beta).item()
    assert found == pytest.approx(np.mean(total), rel=1e-12)


def test_the_floor_of_the_debiased_negatives_acts():
    """One negative opposite to an anchor that equals its positive: the estimate is negative, the floor holds."""
    positive = torch.tensor([1 / TAU], dtype=torch.float64)
    negatives = torch.tensor([[-1 / TAU, -torch.inf]], dtype=torch.float64)
    expected = -math.log(math.exp(1 / TAU) / (math.exp(1 / TAU) + math.exp(-1 / TAU)))
    assert debiased(positive, negatives, TAU, 0.5).item() == pytest.approx(expected, rel=1e-9)


def test_reductions(views):
    """The identities that the module's docstring names."""
    positive, negatives = similarities(*views, TAU)
    plain = info_nce(positive, negatives)
    torch.testing.assert_close(debiased(positive, negatives, TAU, 0.0), plain, rtol=1e-12, atol=0)
    torch.testing.assert_close(info_nce(positive, ring(negatives, 1.0, 0.0)), plain, rtol=0, atol=0)
    share = (positive - torch.logaddexp(positive, negatives.logsumexp(1))).exp()
    torch.testing.assert_close(
        plain - decoupled(positive, negatives), (-torch.log(1 - share)).mean(), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize(("outer", "inner"), [(1.0, 0.0), (0.5, 0.25), (0.3, 0.5), (0.01, 0.9), (1.0, 0.99)])
def test_ring_keeps_the_middle(views, outer, inner):
    _, negatives = similarities(*views, TAU)
    kept = ring(negatives, outer, inner)
    for row, (_, s) in zip(kept, slow(*views, TAU), strict=True):
        most = max(1, math.floor(outer * len(s)))
        least = min(math.floor(inner * most), most - 1)
        expected = sorted(s, reverse=True)[least:most]
        np.testing.assert_allclose(sorted(row[row.isfinite()].tolist(), reverse=True), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("outer", "inner", "count", "kept"),
    [(0.1, 0.0, 126, 12), (0.7, 0.0, 10, 7), (0.29, 0.0, 100, 29), (0.5, 0.29, 200, 71), (0.1, 0.0, 5, 1)],
)
def test_shares_of_a_ring_are_rounded_down_to_whole_negatives(outer, inner, count, kept):
    """Of 0.29 * 100, which is a little less than 29 in floating point, 29; never none."""
    negatives = torch.randn(3, count, generator=torch.Generator().manual_seed(0))
    assert ring(negatives, outer, inner).isfinite().sum(1).tolist() == [kept] * 3


@pytest.mark.parametrize("tau", [0.002, 0.01])
def test_temperatures_far_down_do_not_overflow(tau):
    """e^(1 / tau) is beyond float32, and e^(2 / tau) at 0.002 beyond float64: positives near, far and opposite."""
    a = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    losses = {
        "info_nce": info_nce,
        "decoupled": decoupled,
        "debiased": lambda p, s: debiased(p, s, tau, 0.1),
        "hard": lambda p, s: hard(p, s, tau, 0.1, 1.0),
        "plain": lambda p, s: debiased(p, s, tau, 0.0),
    }
    for b in (a + 0.01 * a.flip(0), a.flip(0), -a):
        found = {}
        for dtype in (torch.float32, torch.float64):
            x, y = a.to(dtype).requires_grad_(), b.to(dtype)
            for name, loss in losses.items():
                value = loss(*similarities(x, y, tau))
                found[name, dtype] = value.detach().double(), torch.autograd.grad(value, x)[0].double()
        for name in losses:
            (low, slope), (high, steep) = found[name, torch.float32], found[name, torch.float64]
            assert low.isfinite(), name
            torch.testing.assert_close(low, high, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")
            assert (slope - steep).norm() <= 1e-2 * steep.norm() + 1e-4, name


def test_only_the_coupled_loss_pulls_a_positive_less_in_a_small_batch():
    """Yeh et al. 2022, equation 3: InfoNCE's pull is 1 - p, which shrinks with the batch; DCL's is 1 in any."""
    z = torch.randn(256, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    near = z + 0.5 * torch.randn(256, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    pull = {info_nce: [], decoupled: []}
    for batch in (2, 8, 32, 256):
        positive, negatives = similarities(z[:batch], near[:batch], 0.2)
        for loss, slopes in pull.items():
            leaf = positive.clone().requires_grad_()
            slopes.append(-torch.autograd.grad(loss(leaf, negatives), leaf)[0].sum().item())
    coupled = [1 - row for row in pull[info_nce]]
    assert coupled == sorted(coupled, reverse=True) and coupled[0] > 0.5 > 0.3 > coupled[-1]
    assert pull[decoupled] == pytest.approx([1.0] * 4, rel=1e-12)


def test_gradients_equal_finite_differences(views):
    a, b = (x.requires_grad_() for x in views)
    for loss in (
        lambda a, b: decoupled(*similarities(a, b, TAU)),
        lambda a, b: hard(*similarities(a, b, TAU), TAU, 0.1, 1.0),
    ):
        assert torch.autograd.gradcheck(loss, (a, b))


def test_the_simple_loss_is_the_limit_of_info_nce_at_high_temperature(views):
    """tau x InfoNCE's gradient tends to n / (n + 1) x the simple loss's, n negatives; tau x InfoNCE to the hinge."""
    from selfsup.methods.simple_contrastive import simple

    a, b = (x.requires_grad_() for x in views)
    tau, n = 1e5, 2 * N - 2
    (warm,) = torch.autograd.grad(tau * info_nce(*similarities(a, b, tau)), a)
    (plain,) = torch.autograd.grad(simple(*similarities(a, b, 1.0), 1.0), a)
    torch.testing.assert_close(warm, n / (n + 1) * plain, rtol=1e-3, atol=1e-8)
    cold = 1e-3
    hinge = np.mean([max(0.0, (max(s) - p) * TAU) for p, s in slow(a.detach(), b.detach(), TAU)])
    assert cold * info_nce(*similarities(a, b, cold)).item() == pytest.approx(hinge, abs=5e-3)


def test_the_simple_loss(views):
    from selfsup.methods.simple_contrastive import simple

    rows = list(slow(*views, 1.0))
    positive, negatives = similarities(*views, 1.0)
    expected = np.mean([-p + 0.7 / len(s) * sum(s) for p, s in rows])
    assert simple(positive, negatives, 0.7).item() == pytest.approx(expected, rel=1e-12)
    expected = np.mean([-p + sum(sorted(s)[-2:]) / 2 for p, s in rows])
    assert simple(positive, ring(negatives, 0.25, 0.0), 1.0).item() == pytest.approx(expected, rel=1e-12)


def corrected(p, s, knobs, beta=0.0):
    """-log of the positive's share, the negatives' mean weighted and corrected for those of the anchor's class."""
    weights = np.exp(beta * np.array(s))
    mean = np.sum(weights * np.exp(s)) / np.sum(weights)
    g = max((mean - knobs["tau_plus"] * math.exp(p)) / (1 - knobs["tau_plus"]), math.exp(-1 / knobs["temperature"]))
    return -math.log(math.exp(p) / (math.exp(p) + len(s) * g))


def middling(p, s, knobs):
    """InfoNCE over the ring that the run's end keeps."""
    most = max(1, math.floor(knobs["outer"] * len(s)))
    kept = sorted(s, reverse=True)[min(math.floor(knobs["inner"] * most), most - 1) : most]
    return -p + math.log(math.exp(p) + sum(map(math.exp, kept)))


def hardest(p, s, knobs):
    kept = sorted(s)[-math.floor(knobs["hard"] * len(s)) :]
    return -p + knobs["negative_weight"] * np.mean(kept)


SLOW = {  # method: its loss for one anchor, and knobs unlike the recipe's
    "simclr": (lambda p, s, _: -p + math.log(math.exp(p) + sum(map(math.exp, s))), {"temperature": 0.37}),
    "dcl": (lambda p, s, _: -p + math.log(sum(map(math.exp, s))), {"temperature": 0.37, "weighted": False}),
    "debiased": (corrected, {"temperature": 0.37, "tau_plus": 0.23}),
    "hard_negative": (
        lambda p, s, k: corrected(p, s, k, k["beta"]),
        {"temperature": 0.6, "tau_plus": 0.2, "beta": 2},
    ),
    "ring": (middling, {"temperature": 0.37, "outer": 0.6, "inner": 0.3}),
    "simple_contrastive": (hardest, {"hard": 0.4, "negative_weight": 0.7}),
}


def named(views):
    a, b = views
    return {"a": a, "b": b}


def built(hundred, method, knobs):
    return build(method, hundred, double=True, **{f"methods__{method}__{name}": x for name, x in knobs.items()})[0]


@pytest.mark.parametrize("method", SLOW)
def test_methods_hand_their_knobs_to_the_loss(hundred, views, method):
    of_anchor, knobs = SLOW[method]
    expected = np.mean([of_anchor(p, s, knobs) for p, s in slow(*views, knobs.get("temperature", 1.0))])
    found = built(hundred, method, knobs).loss(named(views), Progress(9, 10, 5)).loss.item()
    assert found == pytest.approx(expected, rel=1e-10)


def test_weighted_dcl_weighs_each_anchor_by_its_own_positive(hundred, views):
    knobs = {"temperature": 0.37, "weighted": True, "sigma": 0.8}
    rows = list(slow(*views, knobs["temperature"]))
    raw = np.array([math.exp(p * knobs["temperature"] / knobs["sigma"]) for p, _ in rows])
    weights = 2 - raw / raw.mean()
    expected = np.mean([-w * p + math.log(sum(map(math.exp, s))) for w, (p, s) in zip(weights, rows, strict=True)])
    found = built(hundred, "dcl", knobs).loss(named(views), Progress(9, 10, 5)).loss.item()
    assert found == pytest.approx(expected, rel=1e-10)


def test_hard_negatives_without_hardness_are_the_debiased_method(hundred, views):
    knobs = {"temperature": 0.37, "tau_plus": 0.23}
    found = [
        built(hundred, method, knobs | more).loss(named(views), Progress(9, 10, 5)).loss
        for method, more in (("debiased", {}), ("hard_negative", {"beta": 0.0}), ("hard_negative", {"beta": 0.5}))
    ]
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)
    assert found[2] > found[0] * 1.001


def test_the_ring_closes_in_during_the_run(hundred, views):
    """From all negatives, linearly, to `outer` after half of the run; the negatives that are kept grow more alike."""
    knobs = {"temperature": 0.37, "outer": 0.2, "inner": 0.0, "anneal": 0.5}
    task = built(hundred, "ring", knobs)
    alike = []
    for step, outer in ((0, 1.0), (10, 0.8), (20, 0.6), (40, 0.2), (60, 0.2), (79, 0.2)):
        output = task.loss(named(views), Progress(step, 80, 5))
        rows = list(slow(*views, knobs["temperature"]))
        expected = np.mean([middling(p, s, {"outer": outer + 1e-9, "inner": 0.0}) for p, s in rows])
        assert output.loss.item() == pytest.approx(expected, rel=1e-10), step
        alike.append(output.logs["negative_similarity"].item())
    assert alike[0] < alike[1] < alike[2] < alike[3] == alike[4] == alike[5]
    assert alike[0] == pytest.approx(np.mean([s for _, row in rows for s in row]) * knobs["temperature"], rel=1e-9)


def test_simclrs_own_lines_equal_the_form_in_blocks(views):
    """Loss and gradient: in float64 to rounding, and in float32 bit for bit where one block holds the batch."""
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 0)):
        found = []
        for loss in (nt_xent, lambda a, b, tau: over_anchors(info_nce, a, b, tau)):
            a, b = (x.to(dtype).requires_grad_() for x in views)
            value = loss(a, b, TAU)
            found.append([value, *torch.autograd.grad(value, (a, b))])
        torch.testing.assert_close(*found, rtol=tolerance, atol=0)


@pytest.mark.parametrize("block", [1, 3, 2 * N - 1, 2 * N])
@pytest.mark.parametrize("method", ["simclr", "dcl", "debiased", "hard_negative", "ring", "simple_contrastive"])
def test_anchors_in_turns_equal_all_at_once(hundred, monkeypatch, method, block):
    """Loss, gradients and logs of the methods themselves; DCL weighted, by what is mean 1 over all anchors."""
    task, _, _ = build(method, hundred, double=True, methods__dcl__weighted=True)
    views = torch.randn(2, N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = {}
    for size in (block, 1000):
        monkeypatch.setattr("selfsup.nn.contrastive.BLOCK", size)
        z = views.clone().requires_grad_()
        output = task.loss(named(z), Progress(3, 4, 1))
        found[size] = [output.loss, *torch.autograd.grad(output.loss, z), *output.logs.values()]
    for mine, whole in zip(found[block], found[1000], strict=True):
        torch.testing.assert_close(mine, whole, rtol=1e-12, atol=1e-14)
    rows = []
    monkeypatch.setattr("selfsup.nn.contrastive.BLOCK", block)
    over_anchors(lambda p, s: rows.append(s.shape) or info_nce(p, s), *views, TAU)
    assert max(shape[0] for shape in rows) == min(block, 2 * N)


def test_weights_of_dcl_are_of_the_global_batch(hundred, tmp_path):
    two_equal_one("dcl", hundred, tmp_path, weighted=True)
