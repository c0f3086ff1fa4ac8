"""DINO's loss, teacher, centre, temperatures, decay and frozen layer; what is refused."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.nets.image import export_backbone
from selfsup.nn.heads import CosineLayer
from selfsup.task import Progress
from selfsup.training import monitors
from selfsup.training.loop import in_eval_mode
from tests.contract.runs import build, moved, trained
from tests.helpers import processes, values


def built(shards, n=10, **overrides):
    task, split, params = build("dino", shards, double=True, **overrides)
    batch = split.gather(torch.arange(n))
    return task.train(), task.views(batch, Draw(0, 0, batch["id"])), params.methods["dino"]


def outputs(module, views):
    """Logits view by view in eval mode, by the formula of a weight-normed layer with g = 1."""
    backbone, head = module
    out = []
    for view in views:
        z = head[0](backbone(view)["pooled"])
        layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(z.shape[1], len(head[1].weight), False))
        layer.parametrizations.weight.original0.data.fill_(1)
        layer.parametrizations.weight.original1.data = head[1].weight.data
        out.append(layer.double()(z / z.norm(dim=1, keepdim=True)).detach().numpy())
    return out


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.6])
def test_equals_the_paper(hundred, fraction):
    task, views, block = built(hundred)
    task.eval()
    with torch.no_grad():
        task.centre.copy_(torch.linspace(-1, 1, 24))
    moved(task.teacher)
    student, teacher = outputs((task.backbone, task.head), views), outputs(task.teacher, views[:2])
    start, end = block["teacher_temperature_start"], block["teacher_temperature"]
    sharp = start + (end - start) * min(1, fraction / block["teacher_warmup"])
    terms = []
    for i, t in enumerate(teacher):
        for v, s in enumerate(student):
            for n in range(len(s)):
                p, q = np.exp((t[n] - task.centre.numpy()) / sharp), np.exp(s[n] / 0.1)
                if v != i:
                    terms.append(-np.sum(p / p.sum() * np.log(q / q.sum())))
    assert len(terms) == 10 * (6 - 1) * 2  # global and local views to the student, global ones to the teacher
    found = task(views, Progress(round(100 * fraction), 100, 50)).loss.item()
    assert found == pytest.approx(np.mean(terms), rel=1e-9)


def test_the_teacher_sees_global_views_only_and_gets_no_gradient(hundred):
    task, views, _ = built(hundred)
    seen = []
    task.teacher[0].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    task(views, Progress(0, 10, 5)).loss.backward()
    assert seen == [(20, 3, 16, 16)]
    assert all(p.grad is None and not p.requires_grad for p in task.teacher.parameters())
    assert all(p.grad is not None for p in task.parameters() if p.requires_grad)


def test_the_centre_and_the_teacher_follow_by_momentum(hundred):
    task, views, block = built(hundred)
    with torch.no_grad():
        task.centre.fill_(0.5)
    carry = task(views, Progress(0, 10, 5)).carried()
    logits = task.embed(views, Progress(0, 10, 5))["teacher"]
    torch.testing.assert_close(carry["centre"], logits.mean((0, 1)), rtol=1e-9, atol=1e-12)
    start = [p.detach().clone() for p in task.head.parameters()]
    with torch.no_grad():
        for p in task.head.parameters():
            p += 1
    task.after_step(carry, Progress(5, 10, 5))
    m = 1 - (1 - block["momentum"][0]) / 2
    for before, p in zip(start, task.teacher[1].parameters(), strict=True):
        torch.testing.assert_close(p.detach(), before + 1 - m, rtol=1e-12, atol=1e-12)
    kept = block["centre_momentum"]
    torch.testing.assert_close(task.centre, kept * 0.5 + (1 - kept) * carry["centre"], rtol=1e-12, atol=1e-12)


def test_without_a_warm_up_the_teachers_temperature_is_the_final_one_at_once(hundred):
    task, _, block = built(hundred, methods__dino__teacher_warmup=0.0)
    assert block["teacher_temperature_start"] < block["teacher_temperature"]
    for step in (0, 1, 9):
        assert task.teacher_temperature(Progress(step, 10, 5)) == block["teacher_temperature"]


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_the_teacher_is_exported_and_probed_or_the_student_on_request(hundred, tmp_path, method):
    """What `encoder()` gives is what the stages export, extract and evaluate, and what the probe in training sees."""
    images = torch.rand(3, 3, 16, 16)
    for export in ("teacher", "student"):
        task, _, params = build(method, hundred, double=False, **{f"methods__{method}__export": export})
        moved(task.teacher)
        task.eval()
        with torch.no_grad():
            of = {"teacher": task.teacher[0](images)["pooled"], "student": task.backbone(images)["pooled"]}
        assert not torch.allclose(of["teacher"], of["student"], atol=1e-3)
        export_backbone(task.encoder(), params.backbones["vit"], params.data.of("image"), tmp_path / export)
        net = timm.create_model(f"local-dir:{tmp_path / export}", pretrained=True).eval()
        with torch.no_grad():
            found = net(task.backbone.normalize(images))
        torch.testing.assert_close(found, of[export], rtol=1e-5, atol=1e-5)
        probed = []
        waiting = SimpleNamespace(wait_for_everyone=lambda: None)
        in_eval_mode(task, lambda encoder, seen=probed: seen.append(encoder) or {}, waiting)
        assert probed == [task.encoder()]


@pytest.mark.parametrize("method", ["dino", "ibot"])
def test_the_recipe_exports_the_teacher_as_the_papers_do(method):
    assert values()["methods"][method]["export"] == "teacher"


def test_the_last_layer_is_frozen_for_the_first_epochs(hundred):
    task, views, _ = built(hundred, methods__dino__frozen_epochs=1)
    for step, frozen in ((0, True), (4, True), (5, False)):
        task(views, Progress(step, 10, 5)).loss.backward()
        task.before_step(Progress(step, 10, 5))
        assert (task.head[1].weight.grad is None) == frozen
        assert task.head[0][0].weight.grad is not None


def test_weight_decay_rises_along_a_cosine_and_spares_biases(hundred):
    task, _, block = built(hundred)
    weights, others = task.groups()
    low, high = block["optimizer"]["weight_decay"], block["decay_end"]
    for step in (0, 3, 5, 10):
        expected = high + (low - high) * (1 + math.cos(math.pi * step / 10)) / 2
        assert weights.decay(Progress(step, 10, 5)) == pytest.approx(expected, rel=1e-12)
        assert others.decay(Progress(step, 10, 5)) == 0
    assert all(p.ndim >= 2 for p in weights.params) and all(p.ndim < 2 for p in others.params)
    assert len(weights.params) + len(others.params) == sum(p.requires_grad for p in task.parameters())


def test_the_last_layer_gives_cosines():
    layer, x = CosineLayer(5, 7), torch.randn(3, 5)
    with torch.no_grad():
        layer.weight.mul_(torch.rand(7, 1) + 1)
    expected = [[torch.dot(a, w) / a.norm() / w.norm() for w in layer.weight.detach()] for a in x]
    torch.testing.assert_close(layer(x), torch.tensor(expected))
    assert torch.equal(layer(9 * x).argmax(1), layer(x).argmax(1))


def test_a_teacher_as_soft_as_the_mean_of_all_stays_at_ln_k_and_the_alarm_says_so(hundred, tmp_path):
    """A student's temperature so high that it says nothing: the loss stays at ln K."""
    settings = {"methods__dino__temperature": 50.0, "methods__dino__teacher_temperature": 40.0,
                "methods__dino__teacher_temperature_start": 40.0}  # fmt: skip
    found = processes(1, trained, "dino", hundred, tmp_path / "soft", settings)
    assert found.rows[-1]["loss"] == pytest.approx(math.log(24), rel=1e-3)
    assert "number of prototypes" in found.alarm
    assert found.alarm == monitors.alarm(found.rows)


@pytest.mark.parametrize("name", ["teacher_temperature", "teacher_temperature_start"])
@pytest.mark.parametrize("value", [0.1, 0.2])
def test_a_teacher_no_sharper_than_its_student_is_refused(hundred, name, value):
    with pytest.raises(UserError, match=rf"methods\.dino\.{name}: must be lower than the student's temperature, 0\.1"):
        build("dino", hundred, double=False, **{f"methods__dino__{name}": value})


def test_local_crops_that_do_not_fit_the_patches_are_refused(hundred):
    crops = {"count": 2, "size": 10, "scale": [0.1, 0.3]}
    with pytest.raises(UserError, match=r"methods\.dino\.crops\.size: the backbone does not take images of 10 px"):
        build("dino", hundred, double=False, methods__dino__crops=crops)
