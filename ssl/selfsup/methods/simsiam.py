"""SimSiam: predict the other view with no negatives and no momentum encoder; stop-gradient keeps it from collapsing.

Chen & He 2021, "Exploring Simple Siamese Representation Learning", arXiv:2011.10566.
L = D(p1, sg z2) / 2 + D(p2, sg z1) / 2 (equation 2), D being the negative cosine (equation 1). Each view goes through
the networks by itself. The projector ends in a batch norm without scale and shift, as in the authors' code. The
predictor's learning rate does not fall, nor is it warmed up (section 4.2).
With `stop_gradient: false` the embeddings collapse to one direction (section 4.1): all images but a few lie at one
point and the rest opposite, as the norm on the output keeps the mean of a batch at 0. The alarm says "dimensional
collapse".
Differences: biases and norms are not decayed, as in all methods here, where the authors' SGD decays everything; the
heads are narrower, for small images.
Expect (CIFAR-10, ResNet-18, 200 epochs, linear): 88 %.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from selfsup.families.two_views import Siamese
from selfsup.nn.distributed import gather
from selfsup.nn.heads import predictor
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Facts, Group, Output, Progress, decayed_groups


class Params(MethodParams):
    projector: HeadParams  # of f, with a batch norm on its output
    predictor: HeadParams  # h, a bottleneck; 0 layers: none, and the method collapses
    stop_gradient: bool  # false: the ablation that collapses


def distance(p: Tensor, z: Tensor) -> Tensor:  # [B D], [B D] -> []
    """Equation 1: the negative cosine, mean over the batch."""
    return -F.cosine_similarity(*((p, z) if p.dtype == torch.float64 else (p.float(), z.float())), dim=1).mean()


class SimSiam(Siamese):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, norm_output=True)
        self.predictor = predictor(self.width, params.predictor, "simsiam")  # h
        self.stop_gradient, self.peak = params.stop_gradient, facts.peak_lr

    def forward(self, views: tuple[Tensor, Tensor], progress: Progress) -> Output:
        z = [self.projected(view) for view in views]  # batch norm's statistics are each view's own
        p1, p2 = (self.predictor(x) for x in z)
        z1, z2 = (x.detach() for x in z) if self.stop_gradient else z
        loss = distance(p1, z2) / 2 + distance(p2, z1) / 2
        return Output(loss, embeddings=[gather(x.detach()) for x in z])

    def groups(self) -> list[Group]:
        def predicts(name: str) -> bool:
            return name.startswith("predictor.")

        rest = decayed_groups(self, lambda name: not predicts(name))
        return rest + decayed_groups(self, predicts, lr=lambda _: self.peak)
