import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup.data import formats
from selfsup.report import pictures


@pytest.mark.parametrize("count", [5, 6, 40])
def test_a_map_of_few_points_has_a_perplexity_that_fits(count):
    places = pictures.tsne(np.random.default_rng(0).normal(size=(count, 3)), seed=0)
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_a_map_keeps_groups_together_and_is_seeded():
    rng = np.random.default_rng(1)
    group = np.arange(60) % 3
    features = 10 * np.eye(80)[group] + 0.1 * rng.normal(size=(60, 80))
    places = pictures.tsne(features, seed=0)
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + 1e9 * np.eye(60)
    assert (group[distance.argmin(axis=1)] == group).all()
    assert np.array_equal(places, pictures.tsne(features, seed=0))


@pytest.mark.parametrize("features", [np.ones((30, 8)), np.zeros((30, 8)), np.eye(4)])
def test_no_map_of_collapsed_or_too_few_features(features):
    assert pictures.tsne(features, seed=0) is None


def test_one_feature_is_enough_for_a_map():
    assert pictures.tsne(np.linspace(-1, 1, 20)[:, None], seed=0) is not None


@pytest.mark.parametrize("labels", [np.full(7, -1), np.arange(7) - 1])
def test_scatter_draws_unlabelled_points_too(labels):
    uri = pictures.scatter(np.random.default_rng(0).normal(size=(7, 2)), labels, max(labels.max() + 1, 0))
    picture = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    pixels = np.asarray(picture)
    assert pixels[..., 3].min() == 0
    assert pixels[..., 3].max() > 0


class Images:
    """Stands for a split: image i is filled with grey i, and valid in its upper left corner."""

    def __init__(self, labels, size=8):
        self.labels, self.samples, self.size = np.array(labels), len(labels), size
        self.classes, self.names = ["cat", "dog"], [f"{i}.png" for i in range(len(labels))]
        self.asked, self.format = [], formats.find("image")

    def gather(self, ids):
        self.asked += ids.tolist()
        image = torch.zeros(len(ids), 3, self.size, self.size, dtype=torch.uint8)
        image[:, :, : self.size // 2] = torch.as_tensor(ids, dtype=torch.uint8)[:, None, None, None]
        return {"image": image, "box": torch.tensor([[self.size // 2, self.size]] * len(ids))}


def test_neighbours_are_the_nearest_of_each_space_and_say_whether_the_class_agrees():
    queries, bank = Images([0, 1, -1]), Images([0, 1, 0, 1, 0, 1, -1, 0])
    rng = np.random.default_rng(0)
    spaces = [(rng.normal(size=(8, 5)).astype(np.float32), rng.normal(size=(3, 5)).astype(np.float32)) for _ in "ab"]
    found = pictures.neighbours(queries, bank, spaces, seed=0)
    assert len(found) == 3
    for row, one in enumerate(found):
        for (features, asked), side in zip(spaces, one.sides, strict=True):
            cosine = (features @ asked[row]) / np.linalg.norm(features, axis=1)
            order = np.argsort(-cosine)[:5]
            names = [bank.names[i] for i in order]
            assert [near.caption.split(": ")[-1] for near in side] == names
            for i, near in zip(order, side, strict=True):
                known = queries.labels[row] >= 0 and bank.labels[i] >= 0
                assert near.right == ((queries.labels[row] == bank.labels[i]) if known else None)
    assert found[0].query.caption == "cat: 0.png"
    assert found[2].query.caption == "2.png"


def test_thumbnails_are_cut_to_the_valid_box_and_only_those_shown_are_read():
    queries, bank = Images([0] * 30), Images([0] * 50)
    rng = np.random.default_rng(0)
    space = (rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(30, 4)).astype(np.float32))
    found = pictures.neighbours(queries, bank, [space], seed=3)
    assert len(found) == pictures.QUERIES == len(queries.asked)
    assert len(bank.asked) <= pictures.QUERIES * pictures.NEIGHBOURS
    picture = Image.open(io.BytesIO(base64.b64decode(found[0].query.uri.split(",")[1])))
    assert picture.size == (8, 4)
    assert np.asarray(picture).max() == np.asarray(picture).min() == queries.asked[0]


def test_large_images_are_shrunk():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 150, 3), np.uint8))
    kind, data = pictures.encoded(picture).split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (48, 96)
