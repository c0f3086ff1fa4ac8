"""Exemplar: softmax over images and batch-hard triplets against plain loops."""

import math

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.exemplar import batch_hard
from selfsup.task import Progress
from tests.contract.runs import build, two_equal_one

START = Progress(0, 10, 5)


def slow_batch_hard(z, ids):
    """Equation 5, anchor by anchor, with the soft margin."""
    total = []
    for i, x in enumerate(z):
        positive = [np.linalg.norm(x - z[j]) for j in range(len(z)) if j != i and ids[j] == ids[i]]
        negative = [np.linalg.norm(x - z[j]) for j in range(len(z)) if ids[j] != ids[i]]
        total.append(math.log(1 + math.exp(max(positive) - min(negative))))
    return np.mean(total)


def start(hundred, form, layers=2):
    knobs = {"form": form, "projector": {"layers": layers, "hidden": 8, "out": 16}}
    task, split, _ = build(
        "exemplar", hundred, double=True, **{f"methods__exemplar__{name}": value for name, value in knobs.items()}
    )
    batch = split.gather(torch.arange(20, 32))
    task.train()
    return task, task.views(batch, Draw(0, 0, batch["id"])), split


def test_batch_hard_equals_the_paper():
    z = np.random.default_rng(0).normal(size=(9, 3))
    ids = [0, 1, 2] * 3
    assert batch_hard(torch.tensor(z), torch.tensor(ids)).item() == pytest.approx(slow_batch_hard(z, ids), rel=1e-9)


def test_the_softmax_is_over_all_images_above_a_fully_connected_layer(hundred):
    task, (*images, ids), split = start(hundred, "softmax")
    connected, norm, _, classifier = task.projector
    assert connected.out_features == 8 and classifier.out_features == split.samples
    assert len(images) == task.params.examples > 2
    with torch.no_grad():
        h = task.backbone(torch.cat(images))["pooled"].numpy()
    w, v, b = (x.detach().numpy() for x in (connected.weight, classifier.weight, classifier.bias))
    hidden = h @ w.T
    hidden = (hidden - hidden.mean(0)) / np.sqrt(hidden.var(0) + norm.eps)
    logits = np.maximum(hidden, 0) @ v.T + b
    y = ids.tolist() * len(images)
    expected = np.mean([math.log(np.sum(np.exp(row))) - row[i] for row, i in zip(logits, y, strict=True)])
    assert task((*images, ids), START).loss.item() == pytest.approx(expected, rel=1e-9)


def test_without_a_layer_the_softmax_has_no_classifier(hundred):
    with pytest.raises(UserError, match=r"^methods.exemplar.projector.layers: 0 leaves no classifier; set 1 or more$"):
        start(hundred, "softmax", layers=0)


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_a_step_of_triplets(hundred, layers):
    task, (*images, ids), _ = start(hundred, "triplet", layers)
    with torch.no_grad():
        z = task.projector(task.backbone(torch.cat(images))["pooled"]).numpy()
    assert z.shape[1] == (16 if layers else task.backbone.width)
    expected = slow_batch_hard(z, ids.tolist() * len(images))
    assert task((*images, ids), START).loss.item() == pytest.approx(expected, rel=1e-9)


def test_equal_embeddings_cost_log_2_with_a_finite_gradient():
    z = torch.ones(6, 3, requires_grad=True)
    loss = batch_hard(z, torch.tensor([0, 1, 2] * 2))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2)) and torch.isfinite(z.grad).all()


def test_the_examples_of_an_image_differ(hundred):
    _, (*images, _), _ = start(hundred, "softmax")
    for i, a in enumerate(images):
        assert not any(torch.allclose(a, b, atol=1e-3) for b in images[i + 1 :])


def test_triplets_are_of_the_global_batch(hundred, tmp_path):
    two_equal_one("exemplar", hundred, tmp_path, form="triplet")
