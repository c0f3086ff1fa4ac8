"""What is random in a view, measured on its pixels: nothing here takes the package's word for the numbers it drew."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from selfsup.draw import Draw
from selfsup.views.image.recipe import two_views
from tests.contract.runs import build
from tests.helpers import METHODS, params

IMAGES, SIZE = 600, 16
STILL = {
    "views__crop_scale": [1.0, 1.0], "views__crop_ratio": [1.0, 1.0], "views__flip": 0.0, "views__jitter__p": 0.0,
    "views__grey": 0.0, "views__blur": [0.0, 0.0], "views__solarize": [0.0, 0.0],
}  # fmt: skip


def batch_of(images: Tensor) -> dict[str, Tensor]:
    count, side = len(images), images.shape[3]
    return {"id": torch.arange(count), "image": images, "box": torch.full((count, 2), side),
            "label": torch.zeros(count, dtype=torch.int64)}  # fmt: skip


def uniform_apart(x: np.ndarray, low: float, high: float) -> float:
    """The largest distance of the distribution of `x` from the uniform one (Kolmogorov)."""
    x = np.sort((x - low) / (high - low))
    rank = np.arange(len(x) + 1) / len(x)
    return max(np.abs(x - rank[1:]).max(), np.abs(x - rank[:-1]).max())


def sigmas(view: Tensor) -> np.ndarray:
    """Of the blur of a white point on black: a neighbour is e^(-1 / 2 sigma^2) of the point. [B], 0: not blurred"""
    point, beside = (view[:, 0, SIZE // 2, SIZE // 2 + i].double().numpy() for i in (0, 1))
    return np.where(beside > 0, np.sqrt(-0.5 / np.log(np.maximum(beside, 1e-300) / point)), 0.0)


@pytest.mark.parametrize("share", [0.3, 0.7])
def test_how_strong_a_blur_is_does_not_depend_on_whether_there_is_one(share):
    views = params(**STILL | {"views__blur": [share, share], "views__blur_sigma": [0.5, 2.0]}).views
    images = torch.zeros(IMAGES, 3, SIZE, SIZE, dtype=torch.uint8)
    images[:, :, SIZE // 2, SIZE // 2] = 255
    batch = batch_of(images)
    measured = [sigmas(view) for view in two_views(batch, Draw(0, 0, batch["id"]), views, SIZE)]
    for own in measured:
        blurred = own[own > 0]
        assert abs(len(blurred) / IMAGES - share) < 4 * math.sqrt(0.25 / IMAGES)
        assert uniform_apart(blurred, 0.5, 2.0) < 1.95 / math.sqrt(len(blurred))  # of chance 1 in 1000
    both = (measured[0] > 0) & (measured[1] > 0)
    assert abs(np.corrcoef(measured[0][both], measured[1][both])[0, 1]) < 4 / math.sqrt(both.sum())
    assert abs(np.corrcoef(measured[0] > 0, measured[1] > 0)[0, 1]) < 4 / math.sqrt(IMAGES)


def centres(view: Tensor) -> np.ndarray:
    """Where in their images crops lie, read off images whose red and green are the column and the row. [B 2]"""
    return view[:, :2].double().mean((2, 3)).numpy()


@pytest.mark.parametrize("method", METHODS)
def test_views_of_an_image_are_crops_of_their_own(hundred, method):
    """Of every method that has several views: where one lies says nothing of where another does."""
    still = STILL | {"views__crop_scale": [0.2, 1.0], "views__crop_ratio": [0.75, 1.3333]}
    task, _, _ = build(method, hundred, double=False, **still)
    ramp = torch.linspace(0, 255, 32).to(torch.uint8)
    image = torch.stack([ramp.expand(32, 32), ramp[:, None].expand(32, 32), torch.zeros(32, 32, dtype=torch.uint8)])
    batch = batch_of(image.expand(IMAGES, -1, -1, -1))
    made = task.views(batch, Draw(0, 0, batch["id"]))
    crops = [centres(x) for x in (made if isinstance(made, tuple) else (made,)) if x.ndim == 4]
    for i, a in enumerate(crops):
        assert a.std(0).min() > 0.02, "crops lie here and there"
        for b in crops[:i]:
            for axis in (0, 1):
                assert abs(np.corrcoef(a[:, axis], b[:, axis])[0, 1]) < 4 / math.sqrt(IMAGES)
