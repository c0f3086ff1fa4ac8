import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from selfsup.draw import Draw
from selfsup.evaluation.protocols import invariance
from selfsup.nn.hypersphere import alignment

PARAMS = invariance.Params(images=40, views=3, crop=0.5)


class Pixels(nn.Module):
    def forward(self, x):
        return {"pooled": x.flatten(1)}


class Mean(nn.Module):
    def forward(self, x):
        return {"pooled": x.mean((2, 3)) * 0 + 1}


def images(count=30, size=8, seed=0):
    pictures = torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
    taken = []

    class Split:
        def __len__(self):
            return count

        def take(self, ids):
            taken.append(len(ids))
            return pictures[torch.as_tensor(ids)]

    return SimpleNamespace(test=Split()), pictures, taken


def test_a_collapsed_network_is_aligned_and_has_rank_1():
    split, _, _ = images()
    found = invariance.run(Mean(), split, PARAMS, seed=0).metrics
    assert found["alignment"].value == 0 and found["lidar"].value == 1


def test_alignment_is_the_mean_over_all_pairs_of_views(monkeypatch):
    monkeypatch.setattr(invariance, "BATCH", 7)
    split, pictures, taken = images()
    found = invariance.run(Pixels(), split, PARAMS, seed=3).metrics["alignment"]
    draw = Draw(3, 0, torch.arange(30))
    crops = [invariance.cropped(pictures, draw.fork(f"view {i}"), 0.5).flatten(1) for i in range(3)]
    unit = [nn.functional.normalize(crop, dim=1) for crop in crops]
    pairs = [float(alignment(a, b)) for a, b in itertools.combinations(unit, 2)]
    assert found.value == pytest.approx(np.mean(pairs), rel=1e-5) and len(found.outcomes) == 30
    assert taken == [7, 7, 7, 7, 2] and not found.higher_is_better


def test_the_seed_draws_images_and_crops_and_nothing_else_does():
    split, _, _ = images()
    few = invariance.Params(images=10, views=2, crop=0.5)
    once, again, other = (invariance.run(Pixels(), split, few, seed).metrics["lidar"].value for seed in (0, 0, 1))
    assert once == again != other
    drawn = [invariance.run(Pixels(), split, few, seed).drawn for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and len(set(drawn[0])) == 10


def test_crops_show_at_least_their_share_of_the_image():
    """Of an image of coordinates each pixel says where it was."""
    side = torch.linspace(-1, 1, 65)
    grid = torch.stack([*torch.meshgrid(side, side, indexing="xy"), torch.zeros(65, 65)])
    draw = Draw(0, 0, torch.arange(200))
    crops = invariance.cropped(grid.expand(200, 3, 65, 65), draw, 0.4)
    low, high = crops[:, :2].amin((2, 3)), crops[:, :2].amax((2, 3))
    share = ((high - low) / 2).prod(1) * (65 / 64) ** 2
    assert share.min() > 0.39 and share.max() < 1.04 and share.std() > 0.1
    assert (low >= -1).all() and (high <= 1).all() and ((low + high) / 2).std() > 0.1
    whole = invariance.cropped(grid.expand(5, 3, 65, 65), draw[:5], 1.0)
    torch.testing.assert_close(whole, grid.expand(5, 3, 65, 65), atol=1e-5, rtol=0)


def slow_lidar(views, delta=1e-4, eps=1e-8):
    """Equations 1 to 4 of Thilak et al. 2023, image by image."""
    width, mean = views.shape[2], views.mean(axis=(0, 1))
    between, within = np.zeros((width, width)), delta * np.eye(width)
    for image in views:
        own = image.mean(axis=0)
        between += np.outer(own - mean, own - mean) / len(views)
        for view in image:
            within += np.outer(view - own, view - own) / (len(views) * len(image))
    value, vector = np.linalg.eigh(within)
    root = vector @ np.diag(value**-0.5) @ vector.T
    weights = np.linalg.eigvalsh(root @ between @ root)
    p = weights / np.abs(weights).sum() + eps
    return math.exp(-sum(x * math.log(x) for x in p))


def test_lidar_equals_the_slow_transcription():
    rng = np.random.default_rng(3)
    views = rng.normal(size=(40, 1, 6)) * [5, 3, 2, 1, 0.5, 0.1] + 0.3 * rng.normal(size=(40, 7, 6))
    assert invariance.lidar(views) == pytest.approx(slow_lidar(views))


def test_lidar_counts_directions_that_differ_between_images_not_between_views():
    rng = np.random.default_rng(4)
    images = np.pad(rng.normal(size=(500, 1, 3)), ((0, 0), (0, 0), (0, 5)))
    noise = np.pad(rng.normal(size=(500, 20, 5)), ((0, 0), (0, 0), (3, 0)))
    assert invariance.lidar(images + 3 * noise) == pytest.approx(3, abs=0.05)
    assert invariance.lidar(np.ones((10, 2, 4))) == 1.0
