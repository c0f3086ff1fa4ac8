"""iBOT's masked patches, DINOv2's centring and KoLeo."""

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.families.multicrop import cross_views
from selfsup.methods.ibot import koleo, masked_patches
from selfsup.nn.sinkhorn import sinkhorn
from selfsup.task import Progress
from tests.contract.runs import TOLERANCE, build, in_chunks, largest_difference, moved, two_equal_one
from tests.helpers import processes

START = Progress(0, 10, 5)


def built(shards, n=10, **overrides):
    task, split, _ = build("ibot", shards, double=True, **{f"methods__ibot__{k}": v for k, v in overrides.items()})
    ids = torch.arange(n)
    return task.train(), task.views(split.gather(ids), Draw(0, 0, ids))


def test_masked_patches_equal_a_loop_and_see_hidden_ones_only():
    torch.manual_seed(0)
    student, target = torch.randn(3, 4, 5, dtype=torch.float64), torch.randn(3, 4, 5, dtype=torch.float64).softmax(2)
    hidden = torch.tensor([[True, False, True, True], [False] * 4, [False, True, False, False]])
    total = 0.0
    for n in range(3):
        losses = []
        for i in range(4):
            if hidden[n, i]:
                e = np.exp(student[n, i].numpy() / 0.1)
                losses.append(-(target[n, i].numpy() * np.log(e / e.sum())).sum())
        total += np.mean(losses) if losses else 0
    assert masked_patches(student, target, hidden, 0.1).item() == pytest.approx(total / 3, rel=1e-9)
    other = torch.where(hidden[:, :, None], student, student + torch.randn_like(student))
    assert torch.equal(masked_patches(student, target, hidden, 0.1), masked_patches(other, target, hidden, 0.1))


def test_the_student_does_not_see_hidden_patches_and_the_teacher_does(hundred):
    task, views = built(hundred, masked=1.0)
    *crops, mask_a, mask_b = views
    assert mask_a.sum(1).tolist() == [16 - int(0.7 * 16)] * 10
    assert not torch.equal(mask_a, mask_b)
    task.eval()
    noise = torch.rand_like(crops[0])
    pixels = mask_a.view(-1, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    for where, (teacher_same, student_same) in ((pixels, (False, True)), (~pixels, (False, False))):
        other = [torch.where(where, noise, crops[0]), *crops[1:]]
        with torch.no_grad():
            before, after = (task.embed((*c, mask_a, mask_b), START) for c in (crops, other))
        same = {
            name: [torch.allclose(x[:, view], after[name][:, view]) for view in range(x.shape[1])]
            for name, x in before.items()
        }
        assert same["patch_teacher"] == [teacher_same, True]  # the other view is as it was
        assert same["patches"] == [student_same, True]
        assert same["student"] == [student_same] + [True] * 5
    token = task.embed(views, START)["patches"][:, 0].sum()
    (gradient,) = torch.autograd.grad(token, task.mask_token)
    assert gradient.abs().sum() > 0
    assert not task.backbone.net.patch_embed._forward_hooks


def test_targets_are_the_momentum_teachers(hundred):
    task, views = built(hundred)
    task.eval()
    before = task.embed(views, START)
    moved(task.teacher)
    after = task.embed(views, START)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {"patch_teacher", "teacher"}


def test_a_compiled_student_does_not_see_hidden_patches_either(hundred):
    """Local crops of the global size: one graph would do for masked views and for those that are not."""
    torch._dynamo.reset()
    crops = {"count": 2, "size": 16, "scale": [0.1, 0.3]}
    task, views = built(hundred, masked=1.0, crops=crops)
    task.eval()
    with torch.no_grad():
        expected = task.embed(views, START)
        task.backbone.compile(backend="eager")
        for _ in range(2):
            torch.testing.assert_close(task.embed(views, START), expected)


def test_about_so_many_views_are_masked(hundred):
    _, views = built(hundred, n=100, masked=0.3)
    for mask in views[-2:]:
        assert 0.15 < mask.any(1).double().mean() < 0.45
    _, views = built(hundred, n=100, masked=0.0)
    assert not any(mask.any() for mask in views[-2:])


@pytest.mark.parametrize("centring", ["centre", "sinkhorn"])
def test_equals_the_paper(hundred, centring):
    task, views = built(hundred, centring=centring, koleo=0.1)
    torch.manual_seed(0)
    task.centre.copy_(torch.randn(24))
    task.patch_centre.copy_(torch.randn(24))
    z = {name: x.unbind(1) for name, x in task.embed(views, START).items()}
    patch_teacher, patches, masks = z["patch_teacher"], z["patches"], z["hidden"]
    features, teacher, student = z["features"], z["teacher"], z["student"]
    assert len(student) == 6
    tau = task.teacher_temperature(START)

    def targets(logits, centre):
        if centring == "centre":
            return ((logits - centre) / tau).softmax(-1)
        return sinkhorn(logits.reshape(-1, 24), tau).view_as(logits)

    expected = cross_views(student, [targets(t, task.centre) for t in teacher], 0.1)
    for p, t, m in zip(patches, patch_teacher, masks, strict=True):
        expected = expected + masked_patches(p, targets(t, task.patch_centre), m, 0.1) / 2
    expected = expected + 0.1 * (koleo(features[0]) + koleo(features[1]))
    torch.testing.assert_close(task(views, START).loss, expected, rtol=1e-9, atol=1e-12)


def test_patches_have_a_centre_of_their_own(hundred):
    task, views = built(hundred)
    z = task.embed(views, START)
    task.after_step(task(views, START).carried(), START)
    for centre, logits in ((task.patch_centre, z["patch_teacher"]), (task.centre, z["teacher"])):
        mean = logits.reshape(-1, 24).mean(0)
        torch.testing.assert_close(centre, (1 - task.params.centre_momentum) * mean, rtol=1e-9, atol=1e-12)


def test_koleo_equals_a_loop_and_drives_features_apart():
    torch.manual_seed(0)
    x = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    rows = [row / np.linalg.norm(row) for row in x.detach().numpy()]
    nearest = [min(np.linalg.norm(a - b) for j, b in enumerate(rows) if j != i) for i, a in enumerate(rows)]
    assert koleo(x).item() == pytest.approx(-np.mean(np.log(nearest)), rel=1e-6)
    (gradient,) = torch.autograd.grad(koleo(x), x)
    assert koleo(x - 0.01 * gradient) < koleo(x)
    assert koleo(torch.ones(4, 3)).isfinite()  # equal rows
    apart = torch.tensor([[1.0, 0.0], [-0.5, 3**0.5 / 2], [-0.5, -(3**0.5) / 2]], dtype=torch.float64)
    assert koleo(apart).item() == pytest.approx(-np.log(3**0.5))  # no cosine is positive


def test_sinkhorn_and_koleo_see_the_global_batch(hundred, tmp_path):
    two_equal_one("ibot", hundred, tmp_path, centring="sinkhorn", koleo=0.1)


def test_sinkhorn_and_koleo_see_all_chunks(hundred, tmp_path):
    knobs = {"centring": "sinkhorn", "koleo": 0.1}
    whole, chunked = processes(1, in_chunks, "ibot", hundred, tmp_path, 32, [32, 8], knobs)
    name, difference = largest_difference(whole, chunked)
    assert difference < TOLERANCE, name


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"backbone": "conv"}, r"methods\.ibot\.backbone: .*choose vit"),
        ({"mask_ratio": 0.99}, r"methods\.ibot\.mask_ratio: leaves none or all"),
        ({"teacher_temperature": 0.1}, r"methods\.ibot\.teacher_temperature: must be lower"),
    ],
)
def test_bad_input_is_refused_in_one_line(hundred, overrides, message):
    with pytest.raises(UserError, match=message):
        built(hundred, **overrides)
