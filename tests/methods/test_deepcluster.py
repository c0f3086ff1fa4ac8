"""DeepCluster's classes, their weights, its new classifiers and its edges."""

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.deepcluster import Sobel
from selfsup.params import SGD
from selfsup.processes.accelerator import make_accelerator
from selfsup.task import Progress
from selfsup.training import loop
from tests.contract.runs import build, trained
from tests.helpers import processes


def features(task, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(len(task.labels), 10, generator=generator, dtype=torch.float64)


def test_the_loss_weighs_every_cluster_alike(hundred):
    task, split, _ = build("deepcluster", hundred, double=True)
    task.start_epoch(Progress(0, 10, 5), lambda: features(task, 0))
    ids = torch.arange(20)
    views = task.views(split.gather(ids), Draw(0, 0, ids))
    found = task.eval()(views, Progress(0, 10, 5)).loss.item()
    with torch.no_grad():
        logits = task.classifier(task.backbone(views[0])["pooled"]).numpy()
    labels, sizes = task.labels.numpy(), np.bincount(task.labels.numpy(), minlength=12)
    assert sizes.min() > 0 and sizes.max() > sizes.min()
    terms = []
    for i, row in enumerate(logits):
        own = labels[i]
        p = np.exp(row[own]) / np.exp(row).sum()
        terms.append(-np.log(p) * len(labels) / (12 * sizes[own]))
    assert found == pytest.approx(np.mean(terms), rel=1e-9)
    weights = task.weight[task.labels]
    assert weights.mean().item() == pytest.approx(1)
    for k in range(12):
        assert weights[task.labels == k].sum().item() == pytest.approx(len(labels) / 12)


def test_classes_are_made_anew_every_so_many_epochs_and_their_agreement_is_logged(hundred):
    every = {"pretrain__epochs": 4, "methods__deepcluster__every": 2}
    task, split, _ = build("deepcluster", hundred, double=True, **every)
    seen, agreements = [], []
    for epoch in range(4):
        before = task.labels.clone(), task.classifier.weight.detach().clone()
        new = task.start_epoch(Progress(5 * epoch, 20, 5), lambda epoch=epoch: features(task, epoch))
        changed = epoch % 2 == 0
        assert [id(p) for p in new] == ([id(p) for p in task.classifier.parameters()] if changed else [])
        assert torch.equal(before[0], task.labels) != changed
        assert torch.equal(before[1], task.classifier.weight) != changed
        assert task.labels.bincount(minlength=12).min() > 0
        seen.append(task.labels.numpy().copy())
        ids = torch.arange(8)
        output = task(task.views(split.gather(ids), Draw(0, 0, ids)), Progress(5 * epoch, 20, 5))
        agreements.append(output.logs["nmi"].item())
    assert agreements[:2] == [0, 0]
    assert agreements[2] == agreements[3] == pytest.approx(normalized_mutual_info_score(seen[1], seen[2]))


def test_the_same_features_keep_their_classes(hundred):
    task, _, _ = build("deepcluster", hundred, double=True)
    heaps = 9 * features(task, 0)[:12][torch.arange(len(task.labels)) % 12]
    for epoch in (0, 1):
        task.start_epoch(Progress(5 * epoch, 10, 5), lambda: heaps + 0.1 * features(task, epoch + 1))  # noqa: B023
    print(f"agreement of the same heaps {task.agreement:.2f}")
    assert task.agreement > 0.75  # another start and noise, but what sets the images apart is the same
    task.start_epoch(Progress(10, 15, 5), lambda: features(task, 4))
    print(f"agreement of unrelated features {task.agreement:.2f}")
    assert task.agreement < 0.5  # unrelated features; some agreement is chance, of so few images


def test_agreement_rises_as_training_goes(shards, tmp_path):
    """And not because some agreement of the same images is there from the start: without learning it stays lower."""
    knobs = {"clusters": 20, "dims": 16, "every": 2}
    settings = {f"methods__deepcluster__{name}": value for name, value in knobs.items()}
    settings |= {"pretrain__epochs": 12, "pretrain__batch_size": 64}
    curves = {}
    for rate in (0.4, 1e-6):
        overrides = settings | {"methods__deepcluster__optimizer__lr": rate}
        rows = processes(1, trained, "deepcluster", shards, tmp_path / str(rate), overrides).rows
        curves[rate] = [row["nmi"] for row in rows][:: len(rows) // 6]  # a value a clustering
        print(f"agreement at rate {rate}: {curves[rate]}")
    learnt, still = curves.values()
    assert learnt[0] == 0 and learnt[-1] > learnt[1] + 0.15
    assert np.mean(learnt[-2:]) > 0.65 > np.mean(still[-2:])


def test_the_optimiser_forgets_the_old_classifier(hundred, tmp_path, monkeypatch):
    kept, real = [], loop.build_optimizer
    monkeypatch.setattr(loop, "build_optimizer", lambda *args: kept.append(real(*args)) or kept[0])
    task, split, params = build("deepcluster", hundred, double=False)
    known = {}

    def look(progress, own=task.before_step):
        own(progress)
        state = kept[0].state
        known[progress.step] = task.classifier.weight in state, task.backbone.net.layers[0][0].weight in state

    task.before_step = look
    plan = loop.Plan(0, params.pretrain, SGD(name="sgd", lr=0.1, momentum=0.9, weight_decay=0.0), tmp_path)
    loop.train(task, split, plan, make_accelerator("fp32"))
    fresh, going = (False, True), (True, True)
    assert list(known.values()) == [(False, False), going, going, fresh, going, going]


def test_edges_are_slopes_of_the_grey_level():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 5, 6, dtype=torch.float64)
    found = Sobel()(images)
    grey = np.pad(images.mean(1).numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    for b in range(2):
        for y in range(5):
            for x in range(6):
                window = grey[b, y : y + 3, x : x + 3]
                right = ((window[:, 2] - window[:, 0]) * [1, 2, 1]).sum() / 8
                down = ((window[2] - window[0]) * [1, 2, 1]).sum() / 8
                np.testing.assert_allclose(found[b, :, y, x], [right, down, 0], atol=1e-12)


@pytest.mark.parametrize("sobel", [False, True])
def test_a_network_of_edges_does_not_see_brightness_in_training_nor_after(hundred, sobel):
    task, split, _ = build("deepcluster", hundred, double=True, methods__deepcluster__sobel=sobel)
    images = split.gather(torch.arange(4))["image"].double() / 512
    encoder = task.eval().encoder()
    same = torch.allclose(encoder(images)["pooled"], encoder(images + 0.25)["pooled"], atol=1e-9)
    loss = [task((x, torch.arange(4)), Progress(0, 10, 5)).loss.item() for x in (images, images + 0.25)]
    assert same == sobel
    assert (loss[0] == pytest.approx(loss[1], rel=1e-9)) == sobel


def test_more_clusters_than_images_are_refused(hundred):
    with pytest.raises(UserError, match=r"methods\.deepcluster\.clusters: 1000 are more than the \d+ training images"):
        build("deepcluster", hundred, double=False, methods__deepcluster__clusters=1000)
