"""SimSiam: predict the other view without negatives and momentum encoder; stop-gradient prevents the collapse.

Chen & He 2021, "Exploring Simple Siamese Representation Learning", arXiv:2011.10566. Equation 1 is `distance`:

    L = D(p_1, stop(z_2)) / 2 + D(p_2, stop(z_1)) / 2,  D(p, z) = mean of -cos(p, z)

z is the projection of a view and p = h(z) its prediction. Each view has its own forward pass. The projector ends in a
batch norm without scale and shift, as in the authors' code. The predictor's learning rate does not fall, nor is it
warmed up (section 4.2). With `stop_gradient: false` the embeddings collapse to one direction (section 4.1): all images
but a few lie at one point and the rest opposite, as the norm on the output keeps the mean of a batch at 0. The alarm
then reports "dimensional collapse".

Differences from the paper: biases and norms are not decayed, as in all methods here; the authors' SGD decays
everything. The heads are narrower, for small images.

Expect: 88 % linear accuracy on CIFAR-10 (ResNet-18, 200 epochs).
"""

import torch.nn.functional as F
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.two_views import Siamese
from selfsup.nn.heads import predictor
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Group, Output, Progress, decayed_groups

ABOUT = About(
    title="SimSiam",
    family="no negatives",
    kind="image",
    idea="BYOL without the momentum encoder: stop-gradient is enough",
    paper=Paper(
        authors="Chen & He", year=2021, title="Exploring Simple Siamese Representation Learning", arxiv="2011.10566"
    ),
    couples_batch=False,
)


class Params(MethodParams):
    projector: HeadParams  # of f, with a batch norm on its output
    predictor: HeadParams  # h, a bottleneck; 0 layers: none, and the method collapses
    stop_gradient: bool  # false: the ablation that collapses


@full_precision
def distance(p: Tensor, z: Tensor) -> Tensor:  # [B D], [B D] -> []
    """Equation 1: D = -mean p.z / (|p| |z|)."""
    return -F.cosine_similarity(p, z, dim=1).mean()


class SimSiam(Siamese):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, norm_output=True)
        self.predictor = predictor(self.width, params.predictor)  # h
        self.stop_gradient, self.peak = params.stop_gradient, facts.peak_lr

    def forward(self, views: tuple[Tensor, Tensor], progress: Progress) -> Output:
        z = [self.projected(view) for view in views]  # batch norm's statistics are each view's own
        p1, p2 = (self.predictor(x) for x in z)
        z1, z2 = (x.detach() for x in z) if self.stop_gradient else z
        loss = distance(p1, z2) / 2 + distance(p2, z1) / 2
        return Output(loss, embeddings=z)

    def groups(self) -> list[Group]:
        def predicts(name: str) -> bool:
            return name.startswith("predictor.")

        rest = decayed_groups(self, lambda name: not predicts(name))
        return rest + decayed_groups(self, predicts, lr=lambda _: self.peak)
