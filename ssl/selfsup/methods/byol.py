"""BYOL: predict what a slowly moving copy of the network outputs for another view of the same image; no negatives.

Grill et al. 2020, "Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning", arXiv:2006.07733. Equation
2, in both directions, is `regression`, and the moving average of the target is that of section 3.3:

    L = mean of |unit(q(z_1)) - unit(z'_2)|^2 + mean of |unit(q(z_2)) - unit(z'_1)|^2
    xi <- m xi + (1 - m) theta after each step

z is the online projection, z' the target's, which gets no gradient, and q the predictor. Without the predictor
(`predictor.layers: 0`) the output collapses to a constant. The online network is exported and probed, as in the paper.

Differences from the paper: none in the loss. The heads are narrower, for small images, and m starts at 0.99, where the
paper's starts at 0.996, for short runs.

Expect: 86 % linear accuracy on CIFAR-10 (ResNet-18, 200 epochs).
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfsup.about import About, Paper
from selfsup.draw import Draw
from selfsup.nn.ema import cosine_momentum, ema_update, target_of
from selfsup.nn.heads import mlp, predictor
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Batch, Facts, Output, Progress, Task, Tensors
from selfsup.views.image.recipe import two_views

ABOUT = About(
    title="BYOL",
    family="no negatives",
    kind="image",
    idea="predict a moving average's output for another view of the same image",
    paper=Paper(
        authors="Grill et al.",
        year=2020,
        title="Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning",
        arxiv="2006.07733",
    ),
    couples_batch=False,
)


class Params(MethodParams):
    momentum: PairOfProbabilities  # m of the target, at the first step (tau_base in the paper) and after the last
    projector: HeadParams  # g
    predictor: HeadParams  # q, of the online network only


@full_precision
def regression(q: Tensor, z: Tensor) -> Tensor:  # [B D], [B D] -> []
    """Equation 2: L = mean |q / |q| - z / |z||^2 = mean( 2 - 2 cos(q, z) )."""
    return 2 - 2 * F.cosine_similarity(q, z, dim=1).mean()


class BYOL(Task):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        self.recipe, self.size = facts.views, facts.image_size
        self.backbone = facts.backbone()  # f
        self.projector = mlp(self.backbone.width, params.projector)  # g
        width = params.projector.out if params.projector.layers else self.backbone.width
        self.predictor = predictor(width, params.predictor)  # q
        self.target = nn.ModuleList([target_of(self.backbone), target_of(self.projector)])  # xi
        self.momentum = params.momentum

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor]:
        return two_views(batch, draw, self.recipe, self.size)

    def forward(self, views: tuple[Tensor, Tensor], progress: Progress) -> Output:
        online = [self.projector(self.backbone(v)["pooled"]) for v in views]  # z_theta, one batch norm a view
        with torch.no_grad():
            backbone, projector = self.target
            target = [projector(backbone(v)["pooled"]) for v in views]  # sg(z'_xi)
        a, b = (self.predictor(z) for z in online)
        loss = regression(a, target[1]) + regression(b, target[0])
        return Output(loss, embeddings=online)

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        m = cosine_momentum(self.momentum, progress.fraction)
        for target, online in zip(self.target, (self.backbone, self.projector), strict=True):
            ema_update(target, online, m)
