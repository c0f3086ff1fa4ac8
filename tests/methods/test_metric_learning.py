"""Metric learning: the three losses against plain loops, what counts as positive, and retrieval."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.metric_learning import FORMS, distances, root
from selfsup.task import Progress
from tests.contract.runs import build, trained, two_equal_one
from tests.helpers import processes

START, MARGIN = Progress(0, 10, 5), 0.8
GROUPS = [0, 1, 2, 1, 0, 3, 1]


def slow(form, z, groups):
    """The papers' equations, pair by pair and triplet by triplet."""
    z = [x / np.linalg.norm(x) for x in z]
    n = range(len(z))

    def d(i, j):
        return float(np.linalg.norm(z[i] - z[j]))

    positive = [(i, j) for i in n for j in n if i != j and groups[i] == groups[j]]
    negative = [(i, j) for i in n for j in n if groups[i] != groups[j]]
    if form == "pair":
        far = [max(0, MARGIN - d(i, j)) ** 2 / 2 for i, j in negative]
        return np.mean([d(i, j) ** 2 / 2 for i, j in positive]) + np.mean(far)
    if form == "triplet":
        hinges = [
            max(0, d(i, j) ** 2 - d(i, k) ** 2 + MARGIN) for i, j in positive for k in n if groups[k] != groups[i]
        ]
        return np.mean(hinges)
    total = []
    for i, j in positive:
        inside = sum(math.exp(MARGIN - d(i, k)) for a, k in negative if a == i)
        inside += sum(math.exp(MARGIN - d(j, k)) for a, k in negative if a == j)
        total.append(max(0, math.log(inside) + d(i, j)) ** 2)
    return np.sum(total) / 2 / len(positive)


def masks(groups):
    group = torch.tensor(groups)
    alike = group[:, None] == group
    return alike & ~torch.eye(len(group), dtype=torch.bool), ~alike


@pytest.mark.parametrize("form", ["pair", "triplet", "lifted"])
def test_equals_the_paper(form):
    z = np.random.default_rng(0).normal(size=(len(GROUPS), 3))
    found = FORMS[form](distances(torch.tensor(z)), *masks(GROUPS), MARGIN)
    assert found.item() == pytest.approx(slow(form, z, GROUPS), rel=1e-9)


@pytest.mark.parametrize("form", ["pair", "triplet"])
def test_what_lies_beyond_the_margin_costs_nothing(form):
    z = torch.tensor([[1.0, 0], [1, 0], [-1, 0], [-1, 0]], dtype=torch.float64, requires_grad=True)
    loss = FORMS[form](distances(z), *masks([0, 0, 1, 1]), 1.5)
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12) and torch.isfinite(z.grad).all()


@pytest.mark.parametrize("form", ["pair", "triplet", "lifted"])
def test_equal_embeddings_and_a_batch_of_one_class_have_finite_gradients(form):
    for groups in ([0, 1, 0, 1], [0, 0, 0, 0]):
        z = torch.ones(4, 3, requires_grad=True)
        loss = FORMS[form](distances(z), *masks(groups), MARGIN)
        loss.backward()
        assert torch.isfinite(loss) and torch.isfinite(z.grad).all()
    assert root(torch.tensor(4.0)).item() == 2


@pytest.mark.parametrize("labels", [False, True])
@pytest.mark.parametrize("form", ["pair", "triplet", "lifted"])
def test_a_step_takes_views_or_classes_as_positives(hundred, form, labels):
    task, split, _ = build(
        "metric_learning",
        hundred,
        double=True,
        methods__metric_learning__labels=labels,
        methods__metric_learning__form=form,
        methods__metric_learning__margin=MARGIN,
    )
    batch = split.gather(torch.arange(16))
    batch["label"] = torch.where(torch.arange(16) < 2, -1, batch["label"])  # unlabelled: only its views are alike
    task.train()
    views = task.views(batch, Draw(0, 0, batch["id"]))
    with torch.no_grad():
        z = task.embed(views, START)
        a, b = z["a"].numpy(), z["b"].numpy()
    groups = [f"image {i}" if y < 0 or not labels else y for i, y in enumerate(batch["label"].tolist())]
    output = task(views, START)
    assert output.loss.item() == pytest.approx(slow(form, [*a, *b], groups * 2), rel=1e-9)
    a, b = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (a, b))
    for k in (1, 5):
        nearest = [np.argsort(-(b @ x))[:k] for x in a]
        right = [groups[i] in [groups[j] for j in near] for i, near in enumerate(nearest)]
        assert output.logs[f"recall_at_{k}"].item() == pytest.approx(np.mean(right))


# Pairs learn more slowly: in 24 epochs their gain depends on how a processor rounds, in 60 it is .14 or more.
@pytest.mark.parametrize(("form", "lr", "epochs"), [("pair", 1.0, 60), ("triplet", 0.3, 24), ("lifted", 0.3, 24)])
def test_recall_rises_as_training_goes(hundred, tmp_path, form, lr, epochs):
    rate = {"name": "sgd", "lr": lr, "momentum": 0.9, "weight_decay": 1e-4}
    overrides = {"pretrain__epochs": epochs, "methods__metric_learning__optimizer": rate}
    overrides["methods__metric_learning__form"] = form
    rows = processes(1, trained, "metric_learning", hundred, tmp_path, overrides).rows
    for k, gain in ((1, 0.05), (5, 0.15)):
        curve = [row[f"recall_at_{k}"] for row in rows]
        print(f"recall at {k}: {np.mean(curve[:3]):.2f}, {np.mean(curve[-6:]):.2f}")
        assert np.mean(curve[-6:]) > np.mean(curve[:3]) + gain


def test_the_root_of_0_has_a_finite_gradient():
    squared = torch.tensor([0.0, 1e-14, 4.0], dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(root(squared).sum(), squared)
    assert gradient.isfinite().all() and gradient[2].item() == pytest.approx(0.25)


def test_labels_that_are_not_there_are_refused_in_one_line(unlabelled_shards):
    with pytest.raises(UserError, match=r"^methods.metric_learning.labels: the data has no labels; set false$"):
        build(
            "metric_learning",
            unlabelled_shards,
            double=False,
            data__labels="none",
            methods__metric_learning__labels=True,
        )


@pytest.mark.parametrize("knobs", [{"form": "pair"}, {"form": "triplet", "labels": True}], ids=str)
def test_other_forms_are_of_the_global_batch(hundred, tmp_path, knobs):
    two_equal_one("metric_learning", hundred, tmp_path, **knobs)
