"""Feature transformation: its loss with plain loops, the closed form of the score, the drawn numbers, MoCo as limit."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.feature_transform import beta, extrapolate, interpolate
from selfsup.nn.contrastive import info_nce, queue_similarities, unit
from selfsup.task import Progress
from tests.contract.runs import build, moved, trained
from tests.helpers import processes

START = Progress(0, 10, 5)


def start(hundred, **knobs):
    overrides = {f"methods__feature_transform__{name}": value for name, value in knobs.items()}
    task, split, _ = build("feature_transform", hundred, double=True, **overrides)
    batch = split.gather(torch.arange(12))
    task.train()
    return task, task.views(batch, Draw(0, 0, batch["id"]))


def test_equals_the_paper(hundred):
    task, views = start(hundred)
    moved(task.target)
    with torch.no_grad():
        q = task.projector(task.backbone(views[0])["pooled"]).numpy()
        k = task.target[1](task.target[0](views[1])["pooled"]).numpy()
    lam = views[2].numpy()
    mixed, total, scores = task.negatives(0).numpy(), [], []
    for x, y, (w,) in zip(q, k, lam, strict=True):
        x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
        score = (w * x + (1 - w) * y) @ (w * y + (1 - w) * x)
        candidates = [math.exp(score / 0.2), *(math.exp(x @ old / 0.2) for old in mixed)]
        total.append(-math.log(candidates[0] / sum(candidates)))
        scores.append(score)
    output = task(views, START)
    assert output.loss.item() == pytest.approx(np.mean(total), rel=1e-9)
    assert output.logs["positive_score"].item() == pytest.approx(np.mean(scores), rel=1e-9)


def test_the_positive_score_drops_as_the_closed_form_says():
    q, k = (unit(z) for z in torch.randn(2, 50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    lam = torch.linspace(1, 2, 50, dtype=torch.float64)[:, None]
    a, b = extrapolate(q, k, lam)
    s, w = (q * k).sum(1), lam[:, 0]
    found = (a * b).sum(1)
    torch.testing.assert_close(found, 2 * w * (1 - w) + (w**2 + (1 - w) ** 2) * s, rtol=1e-10, atol=1e-12)
    assert (found <= s + 1e-12).all() and found[0] == s[0]


def test_the_positive_score_starts_below_that_of_moco_and_ends_above(shards, tmp_path):
    run, scores = {"pretrain__epochs": 4, "pretrain__batch_size": 64, "pretrain__log_every": 1}, {}
    knobs = {"queue": 200, "momentum": [0.9, 0.9], "negative": None}
    knobs["optimizer"] = {"name": "sgd", "lr": 0.3, "momentum": 0.9, "weight_decay": 1e-4}
    for alpha in (2.0, None):
        chosen = {f"methods__feature_transform__{name}": x for name, x in (knobs | {"positive": alpha}).items()}
        result = processes(1, trained, "feature_transform", shards, tmp_path / str(alpha), run | chosen)
        rows = [row["positive_score"] for row in result.rows]
        scores[alpha] = rows[0], np.mean(rows[-20:])
    print(f"first and last score, positives pushed apart: {scores[2.0]}, as in MoCo: {scores[None]}")
    assert scores[2.0][0] < scores[None][0] - 0.5
    assert scores[2.0][1] > scores[None][1] and scores[2.0][1] > scores[2.0][0] + 0.5


def test_negatives_are_mixed_inside_the_queue_anew_each_step(hundred):
    task, _ = start(hundred)
    keys = task.queue.keys
    first = task.negatives(3)
    assert torch.equal(first, task.negatives(3)) and not torch.equal(first, task.negatives(4))
    draw = Draw(task.seed, 3, torch.arange(len(keys)))
    other, lam = draw.place().argsort(), beta(draw.uniform("negative", 1), task.params.negative)
    assert other.unique().numel() == len(keys)
    for row, key, j, (w,) in zip(first, keys, other.tolist(), lam.tolist(), strict=True):
        torch.testing.assert_close(row, w * key + (1 - w) * keys[j], rtol=1e-9, atol=1e-12)
    assert torch.equal(interpolate(keys, other, torch.ones(len(keys), 1)), keys)


@pytest.mark.parametrize("a", [1.0, 1.6, 2.0, 5.0])
def test_numbers_are_of_the_beta_distribution(a):
    from scipy import stats

    u = torch.linspace(0, 1, 301)
    np.testing.assert_allclose(beta(u, a).numpy(), stats.beta(a, a).ppf(u.double().numpy()), atol=2e-4)


def test_positives_are_drawn_between_1_and_2_by_an_alpha_of_their_own(hundred):
    found = {alpha: start(hundred, positive=alpha)[1][2] for alpha in (2.0, 50.0)}
    for lam in found.values():
        assert lam.shape == (12, 1) and lam.unique().numel() == 12
        assert lam.min() > 1 and lam.max() < 2
    assert (found[50.0] - 1.5).abs().max() < 0.2 < (found[2.0] - 1.5).abs().max()  # a standard deviation of .05, of .22


def test_without_both_transformations_it_is_moco(hundred):
    task, views = start(hundred, positive=None, negative=None)
    z, tau = task.embed(views, START), task.params.temperature
    positive = torch.cosine_similarity(z["q"], z["k"]) / tau
    expected = info_nce(positive, queue_similarities(z["q"], task.queue.keys, tau))
    assert task(views, START).loss.item() == pytest.approx(expected.item(), rel=1e-12)


def test_the_key_gets_no_gradient_and_the_queue_the_plain_key(hundred):
    task, views = start(hundred)
    leaves = {name: z.detach().requires_grad_() for name, z in task.embed(views, START).items()}
    output = task.loss(leaves, START)
    output.loss.backward()
    assert {name for name, z in leaves.items() if z.grad is not None} == {"q"}
    before = task.queue.keys.clone()
    task.after_step(output.carried(), START)
    assert torch.equal(task.queue.keys[:-12], before[12:])
    torch.testing.assert_close(task.queue.keys[-12:], unit(leaves["k"].detach()), rtol=1e-9, atol=1e-12)


def test_a_queue_longer_than_the_data_set_is_refused(hundred):
    with pytest.raises(UserError, match=r"methods.feature_transform.queue: 4096 keys"):
        start(hundred, queue=4096)
