"""A protocol of the encoder: how long the features of a few test images are, and the first of the images."""

import torch
from pydantic import PositiveInt

from selfsup.config import Strict
from selfsup.evaluation.result import Metric, Picture, Plot, Result

TITLE = "brightness"
NEEDS = {"encoder", "images"}


class Params(Strict):
    most: PositiveInt


def run(encoder, images, params: Params, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    views = images.test.take(torch.arange(params.most))
    with torch.no_grad():
        size = float(encoder(views)["pooled"].norm(dim=1).mean())
    pixels = views[0].permute(1, 2, 0).mul(255).byte().numpy()
    return Result(
        {"size": Metric(size, "mean length", "none")},
        plots={"lengths": Plot("Lengths", "image", "length", [(0.0, size), (1.0, size / 2)], "none")},
        pictures={"first": Picture("First image", "an image", pixels)},
    )
