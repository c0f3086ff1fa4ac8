"""What many methods have in common: two views of an image through one backbone and one projector."""

from collections.abc import Sequence

import torch
from torch import Tensor

from selfsup.nn.heads import mlp
from selfsup.params import HeadParams
from selfsup.task import Batch, Facts, Progress, Task
from selfsup.views.draw import Draw
from selfsup.views.recipe import two_views


class Siamese(Task):
    """z = g(f(view)) for two views; a method adds the loss. `embed` gives both, [B D] each."""

    def __init__(self, facts: Facts, projector: HeadParams, norm_output: bool = False):
        super().__init__()
        self.recipe, self.size = facts.views, facts.image_size
        self.backbone = facts.backbone()  # f
        self.projector = mlp(self.backbone.width, projector, norm_output)  # g, which is thrown away after training
        self.width = projector.out if projector.layers else self.backbone.width

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        return two_views(batch, draw, self.recipe, self.size)

    def embed(self, views: tuple[Tensor, Tensor], progress: Progress) -> Sequence[Tensor]:
        return self.projector(self.backbone(torch.cat(views))["pooled"]).chunk(2)
