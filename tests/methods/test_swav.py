"""SwAV's swapped prediction, its codes, queue and prototypes, and multi-crop through both kinds of backbone."""

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.families.multicrop import cross_views, pooled
from selfsup.task import Progress
from tests.contract.runs import build
from tests.helpers import values

CROPS = values()["methods"]["swav"]["crops"]


def built(shards, double=True, n=12, **overrides):
    task, split, _ = build("swav", shards, double=double, **overrides)
    batch = split.gather(torch.arange(n))
    return task.train(), task.views(batch, Draw(0, 0, batch["id"]))


def reference(task, views, queue):
    """The loss by loops, from the embeddings of a step."""
    with torch.no_grad():
        found = task.embed(views, Progress(0, 10, 5))
    (a, b), scores = found["z"].unbind(1), found["scores"].unbind(1)
    a, b, *scores = (x.numpy() for x in (a, b, *scores))
    prototypes = task.prototypes.detach().numpy()
    codes = []
    for i, z in enumerate((a, b)):
        everything = np.concatenate([z, task.queues[i].keys.numpy()]) if queue else z
        q = np.exp(everything @ prototypes.T / task.params.eps)
        for _ in range(3):
            q /= q.sum(axis=0, keepdims=True)
            q /= q.sum(axis=1, keepdims=True)
        codes.append(q[: len(z)])
    terms = []
    for i, q in enumerate(codes):
        for v, s in enumerate(scores):
            if v == i:
                continue
            for n in range(len(s)):
                e = np.exp(s[n] / task.params.temperature)
                terms.append(-sum(q[n, k] * np.log(e[k] / e.sum()) for k in range(len(e))))
    return np.mean(terms)


@pytest.mark.parametrize("start", [0, 1])
def test_equals_the_paper_with_the_queue_from_its_epoch_on(hundred, start):
    task, views = built(hundred, methods__swav__queue_epoch=start)
    for epoch in (0, 1):
        expected = reference(task, views, queue=epoch >= start)
        assert task(views, Progress(5 * epoch, 10, 5)).loss.item() == pytest.approx(expected, rel=1e-9)
    assert abs(reference(task, views, True) - reference(task, views, False)) > 1e-3


def test_codes_that_are_right_and_sure_cost_nothing_and_a_code_is_never_held_against_its_own_view():
    q = torch.eye(3, dtype=torch.float64)
    assert cross_views([100 * q, 100 * q, 100 * q], [q, q], 1.0).item() == pytest.approx(0, abs=1e-12)
    wrong = 100 * q.roll(1, 0)
    assert cross_views([wrong, 100 * q], [wrong / 100, q], 1.0).item() == pytest.approx(100, rel=1e-9)
    assert cross_views([100 * q, wrong], [wrong / 100, q], 1.0).item() == pytest.approx(0, abs=1e-9)


def test_codes_carry_no_gradient(hundred):
    """The gradient is that of a loss whose codes are constants."""
    task, views = built(hundred)
    found = task.embed(views, Progress(0, 10, 5))
    (a, b), scores = found["z"].unbind(1), found["scores"].unbind(1)
    from selfsup.nn.sinkhorn import sinkhorn

    with torch.no_grad():
        codes = [
            sinkhorn(torch.cat([z, task.queues[i].keys]) @ task.prototypes.T, task.params.eps)[: len(z)]
            for i, z in enumerate((a, b))
        ]
    weight = task.prototypes
    (expected,) = torch.autograd.grad(cross_views(scores, codes, task.params.temperature), weight)
    (found,) = torch.autograd.grad(task(views, Progress(0, 10, 5)).loss, weight)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_prototypes_are_frozen_first_and_of_length_1_after_each_step(hundred):
    task, views = built(hundred, methods__swav__frozen_epochs=1)
    for step, frozen in ((0, True), (4, True), (5, False)):
        progress = Progress(step, 10, 5)
        task(views, progress).loss.backward()
        task.before_step(progress)
        assert (task.prototypes.grad is None) == frozen
        assert task.projector[0].weight.grad is not None
    with torch.no_grad():
        task.prototypes.mul_(torch.rand(len(task.prototypes), 1) + 1)
    direction = task.prototypes.detach() / task.prototypes.detach().norm(dim=1, keepdim=True)
    task.after_step(task(views, Progress(0, 10, 5)).carried(), Progress(1, 10, 5))
    torch.testing.assert_close(task.prototypes.detach(), direction, rtol=1e-12, atol=1e-12)


def test_the_queues_have_the_last_features_of_each_view_in_order_and_drop_none(hundred):
    task, split, _ = build("swav", hundred, double=True)  # 40 places, batches of 12
    task.train()
    kept: list[list[Tensor]] = [[], []]
    for step in range(4):
        batch = split.gather(torch.arange(12 * step, 12 * step + 12))
        views, progress = task.views(batch, Draw(0, 0, batch["id"])), Progress(step, 10, 5)
        for keys, z in zip(kept, task.embed(views, progress)["z"].unbind(1), strict=True):
            keys.append(z.detach())
        carry = task(views, progress).carried()
        assert not carry["z"].requires_grad
        task.after_step(carry, Progress(step + 1, 10, 5))
        for keys, queue in zip(kept, task.queues, strict=True):
            last = torch.cat(keys)[-40:]
            torch.testing.assert_close(queue.keys[-len(last) :], last, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backbone", ["conv", "vit"])
def test_one_call_of_the_backbone_for_all_views_of_a_size(hundred, backbone):
    task, crops = built(hundred, methods__swav__backbone=backbone)
    sizes = []
    task.backbone.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].shape)))
    task.eval()
    together = pooled(task.backbone, crops)
    assert sizes == [(24, 3, 16, 16), (48, 3, 8, 8)]
    for view, features in zip(crops, together, strict=True):
        torch.testing.assert_close(task.backbone(view)["pooled"], features, rtol=1e-6, atol=1e-9)


def test_a_vision_transformers_output_at_full_size_is_the_same_once_it_takes_other_sizes(hundred):
    first, _ = built(hundred, methods__swav__backbone="vit", methods__swav__crops=CROPS | {"count": 0})
    second, (a, *_) = built(hundred, methods__swav__backbone="vit")
    assert torch.equal(first.eval().backbone(a)["pooled"], second.eval().backbone(a)["pooled"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"crops": CROPS | {"size": 17}},
            r"methods\.swav\.crops\.size: 17 px is more than data\.image\.image_size, 16",
        ),
        ({"crops": CROPS | {"scale": [0.1, 0.9]}, "views": 0.8}, r"methods\.swav\.crops\.scale: .*larger than the"),
        ({"crops": CROPS | {"size": 7}, "backbone": "vit"}, r"methods\.swav\.crops\.size: the backbone does not take"),
        ({"crops": CROPS | {"size": 4}}, r"methods\.swav\.crops\.size: the backbone does not take images of 4 px"),
        ({"queue": 1000}, r"methods\.swav\.queue: 1000 keys are more than the \d+ training samples"),
        ({"queue": 0, "prototypes": 33}, r"methods\.swav\.prototypes: 33 cannot be used equally by 32 images"),
        (
            {"queue": 40, "prototypes": 73},
            r"methods\.swav\.prototypes: 73 .* in use; lower it, .* or methods\.swav\.queue$",
        ),
    ],
)
def test_bad_input_is_refused_in_one_line(hundred, overrides, message):
    high = overrides.pop("views", 1.0)
    settings = {f"methods__swav__{name}": value for name, value in overrides.items()}
    with pytest.raises(UserError, match=message) as error:
        build("swav", hundred, double=False, views__crop_scale=[0.2, high], **settings)
    assert "\n" not in str(error.value)
