"""The message of a loss that is not finite looks at the data before it advises on the learning rate."""

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup.data.loader import open_splits
from selfsup.data.shards import write
from selfsup.errors import UserError
from selfsup.training.health import stop_if_not_finite
from tests.helpers import params


def line(split, tmp_path, **overrides) -> str:
    settings = params(pretrain__batch_size=16, **overrides).pretrain
    with pytest.raises(UserError, match="not finite at step 1 ") as caught:
        stop_if_not_finite(torch.tensor(1), split, 0, settings, tmp_path / "resume")
    return str(caught.value).partition("checkpoint: none. ")[2]


def split_of(tmp_path, images):
    """The training split of such pictures, uint8 [N S S 3]."""
    (tmp_path / "images").mkdir()
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"images/{i:02}.png")
    source = {"data__image__source": "image_folder", "data__image__path": str(tmp_path / "images")}
    data = params(**source, data__cache="memory").data.of("image")
    write(data, 0, tmp_path / "shards", processes=1)
    return open_splits(data, tmp_path / "shards", verified=True)["train"]


def noise(count: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3), np.uint8)


def test_sound_data_leave_the_optimiser(tmp_path):
    split = split_of(tmp_path, noise())
    sound = "The images and their statistics are sound: lower the method's optimizer.lr"
    assert line(split, tmp_path) == f"{sound}, or set pretrain.clip_grad_norm"
    assert line(split, tmp_path, pretrain__clip_grad_norm=1.0) == sound
    assert line(split, tmp_path, pretrain__clip_grad_norm=1.0, pretrain__precision="bf16") == (
        f"{sound}, or set pretrain.precision: fp32"
    )


def test_pictures_that_are_all_the_same(tmp_path):
    split = split_of(tmp_path, np.repeat(noise(1), 60, axis=0))
    said = line(split, tmp_path)
    assert said == "All 16 images of the step are equal; check the images of data.image"


def test_pictures_of_one_colour(tmp_path):
    images = noise()
    images[: 5 * 10] = np.arange(50, dtype=np.uint8)[:, None, None, None] + np.uint8([3, 2, 1])
    said = line(split_of(tmp_path, images), tmp_path)
    assert said.endswith(" of the 16 images of the step are of one colour; check the images in data.image.path")
