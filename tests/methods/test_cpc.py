"""CPC's patches, causal context and loss."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.cpc import patches_of
from selfsup.task import Progress
from tests.contract.runs import build

START = Progress(0, 10, 5)
FOUR = {"methods__cpc__patch": 8, "data__image__image_size": 20, "methods__cpc__steps": 3}  # four rows of four patches


def built(shards, n=6, **overrides):
    task, split, _ = build("cpc", shards, double=True, **(FOUR | overrides))
    ids = torch.arange(n)
    return task.train(), task.views(split.gather(ids), Draw(0, 0, ids))


def test_patches_overlap_by_half():
    images = torch.rand(2, 3, 20, 20)
    patches = patches_of(images, 8)
    assert patches.shape == (2, 4, 4, 3, 8, 8)
    for row in range(4):
        for column in range(4):
            expected = images[:, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8]
            assert torch.equal(patches[:, row, column], expected)


def test_equals_the_paper(hundred):
    task, views = built(hundred)
    found = task(views, START)
    with torch.no_grad():
        z = task.embed(views, START)["z"]
        c = task.context(z.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    z, w = z.numpy(), [predictor.weight.detach().numpy() for predictor in task.predictors]
    by_step = []
    for k in (1, 2, 3):
        terms = []
        for n in range(6):
            for row in range(4 - k):
                for column in range(4):
                    scores = [z[m, row + k, column] @ w[k - 1] @ c[n, row, column] for m in range(6)]
                    terms.append(-np.log(np.exp(scores[n]) / np.exp(scores).sum()))
        by_step.append(np.mean(terms))
    assert found.loss.item() == pytest.approx(np.mean(by_step), rel=1e-9)
    assert found.logs["information"].item() == pytest.approx(math.log(6) - np.mean(by_step), rel=1e-9)


def test_the_context_sees_only_the_past(hundred):
    task, _ = built(hundred, methods__cpc__layers=3)
    torch.manual_seed(0)
    z = torch.randn(2, task.backbone.width, 4, 4, dtype=torch.float64)
    before = task.context(z)
    for row in range(4):
        changed = z.clone()
        changed[:, :, row] += torch.randn(2, task.backbone.width, 4, dtype=torch.float64)
        after = task.context(changed)
        assert torch.equal(before[:, :, :row], after[:, :, :row])
        for later in range(row, 4):  # three layers reach three rows down
            assert not torch.allclose(before[:, :, later], after[:, :, later])


def test_predictions_do_not_see_the_pixels_that_they_predict(hundred):
    """Four rows of patches of 8 px, one every 4 px."""
    task, views = built(hundred)
    task.eval()
    with torch.no_grad():
        before = task.embed(views, START)
        for row in range(3):
            changed = views.clone()
            changed[:, :, 4 * row + 8 :] = 1 - changed[:, :, 4 * row + 8 :]
            after = task.embed(changed, START)
            for k in ("z", "ahead 1", "ahead 2", "ahead 3"):
                assert torch.equal(after[k][:, : row + 1], before[k][:, : row + 1])
                assert not torch.isclose(after[k][:, row + 1 :], before[k][:, row + 1 :]).all(-1).any()


def test_alike_images_give_log_n_and_no_information(hundred):
    task, views = built(hundred)
    output = task(views[:1].expand(6, -1, -1, -1), START)
    assert output.loss.item() == pytest.approx(math.log(6), rel=1e-9)
    assert output.logs["information"].item() == pytest.approx(0, abs=1e-9)


def test_every_step_ahead_has_its_own_predictor(hundred):
    task, views = built(hundred)
    with torch.no_grad():
        before = {name: x.clone() for name, x in task.embed(views, START).items()}
        task.predictors[1].weight.mul_(2)
        after = task.embed(views, START)
    assert [name for name in before if not torch.equal(before[name], after[name])] == ["ahead 2"]
    assert [tuple(x.shape[1:3]) for x in after.values()] == [(4, 4), (3, 4), (2, 4), (1, 4)]


def test_half_precision_ends_at_the_scores(hundred):
    task, views = built(hundred)
    halves = {name: x.bfloat16() for name, x in task.embed(views, START).items()}
    expected = task.loss({name: x.double() for name, x in halves.items()}, START).loss
    assert task.loss(halves, START).loss.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"patch": 7}, r"methods\.cpc\.patch: 7 px must be even and at most data\.image\.image_size, 20"),
        ({"patch": 22}, r"methods\.cpc\.patch: 22 px must be even"),
        ({"steps": 4}, r"^methods\.cpc\.steps: 4 rows ahead in a grid of 4; lower it or methods\.cpc\.patch$"),
        ({"patch": 2, "steps": 1}, r"methods\.cpc\.patch: the backbone does not take images of 2 px"),
        ({"patch": 6, "steps": 1, "backbone": "vit"}, r"methods\.cpc\.patch: the backbone does not take"),
    ],
)
def test_bad_input_is_refused_in_one_line(hundred, overrides, message):
    settings = {f"methods__cpc__{name}": value for name, value in overrides.items()}
    with pytest.raises(UserError, match=message) as error:
        build("cpc", hundred, double=False, **(FOUR | settings))
    assert "\n" not in str(error.value)
