"""Two views of an image through one backbone and projector."""

from collections.abc import Mapping

import torch
from torch import Tensor

from selfsup.draw import Draw
from selfsup.nn.heads import mlp
from selfsup.params import HeadParams
from selfsup.task import Batch, Facts, Progress, Task, Tensors
from selfsup.views.image.recipe import two_views


class Siamese(Task):
    """z = g(f(view)) for two views; a method adds the loss. `embed` gives them as `a` and `b`, [B D].

    Both views go through the networks together, so that batch norm's statistics are of all 2N views, as in SimCLR and
    later methods. A method with separate statistics for each view overrides `embed` and uses `projected`.
    """

    def __init__(self, facts: Facts, projector: HeadParams, norm_output: bool = False):
        super().__init__()
        self.recipe, self.size = facts.views, facts.image_size
        self.backbone = facts.backbone()  # f
        self.projector = mlp(self.backbone.width, projector, norm_output)  # g, which is thrown away after training
        self.width = projector.out if projector.layers else self.backbone.width

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        return two_views(batch, draw, self.recipe, self.size)

    def projected(self, images: Tensor) -> Tensor:  # [n 3 S S] -> [n D]
        """z of images whose batch norm statistics are their own."""
        return self.projector(self.backbone(images)["pooled"])

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        a, b = self.projected(torch.cat(views)).chunk(2)
        return {"a": a, "b": b}


def places(features: Mapping[str, Tensor], prefix: int) -> Tensor:  # -> [B L C]
    """The places of the feature map, or a transformer's tokens without the first `prefix`, which are no patches."""
    return features["map"].flatten(2).mT if "map" in features else features["tokens"][:, prefix:]
