"""Instance discrimination: every image is a class; a memory bank, one vector per image, is the classifier.

Wu et al. 2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", arXiv:1805.01978. Equation 2
is `full_softmax`. Equation 7 is `nce`, in whose loss m noise images replace all n:

    P(i) = exp(v_i.f / tau) / Z,  Z = sum over all n images j of exp(v_j.f / tau)
    full softmax:  L = mean of -log P(own)
    NCE:           L = mean of -log h(own) - sum over the m noise images k of log(1 - h(k)),  h = P / (P + m / n)

f is the normalised embedding of an image and v the bank. The bank's vectors follow the embeddings by momentum.

Differences from the paper: in NCE the similarities to all images are computed although the loss needs m of them. The
constant Z (equation 8) is estimated once, from the first batch, and stored as a logarithm.

Expect: 81.9 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

import math

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveFloat
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.draw import Draw
from selfsup.errors import KnobError
from selfsup.nn.contrastive import queue_similarities, unit
from selfsup.nn.distributed import gather, world
from selfsup.nn.heads import mlp
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams, Probability
from selfsup.task import Batch, Facts, Output, Progress, Task, Tensors
from selfsup.views.image.recipe import strong_view

ABOUT = About(
    title="Instance discrimination",
    family="contrastive",
    kind="image",
    idea="every image is a class, a memory bank its classifier; full softmax, NCE",
    paper=Paper(
        authors="Wu et al.",
        year=2018,
        title="Unsupervised Feature Learning via Non-Parametric Instance Discrimination",
        arxiv="1805.01978",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    momentum: Probability  # of the bank's vectors: the share that stays
    negatives: NonNegativeInt  # m, noise terms; 0: the full softmax
    projector: HeadParams


@full_precision
def full_softmax(s: Tensor, ids: Tensor) -> Tensor:  # [N n] cosines / tau with all images, [N] -> []
    """Equation 2: L = -mean_i log( e^s_ii / sum_j e^s_ij ), j over all n images."""
    return F.cross_entropy(s, ids)


@full_precision
def nce(positive: Tensor, noise: Tensor, log_z: Tensor, images: int) -> Tensor:  # [N], [N m], [] -> []
    """Equation 7: -log h(own) - sum over the m noise images of log(1 - h), h = P / (P + m / n), P = e^s / Z."""
    odds = math.log(noise.shape[1] / images)
    own, other = positive - log_z - odds, noise - log_z - odds  # log P / (m / n), of which h is the sigmoid
    return -(F.logsigmoid(own) + F.logsigmoid(-other).sum(1)).mean()


class InstanceDiscrimination(Task):
    about = ABOUT
    bank: Tensor
    log_z: Tensor
    estimated: Tensor

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        if params.negatives > facts.samples:
            raise KnobError(
                "negatives",
                f"{params.negatives} are more than the {facts.samples} training images; set fewer, or 0 for the full "
                "softmax",
            )
        self.recipe, self.size, self.params, self.images = facts.views, facts.image_size, params, facts.samples
        self.backbone = facts.backbone()
        self.projector = mlp(self.backbone.width, params.projector)
        width = params.projector.out if params.projector.layers else self.backbone.width
        self.register_buffer("bank", unit(torch.randn(facts.samples, width)))  # v, by sample id
        self.register_buffer("log_z", torch.zeros(()))  # log(Z / n): e^(1 / tau) leaves float32 below a tau of 0.0113
        self.register_buffer("estimated", torch.zeros((), dtype=torch.bool))  # whether it is

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
        """A view, the samples' ids, and the ids of their noise, int64 [B m]."""
        image = strong_view(batch, draw, self.recipe, self.size)
        noise = draw.integers("noise", self.images, self.params.negatives)
        return image, batch["id"].to(image.device), noise.to(image.device, non_blocking=True)

    def embed(self, views: tuple[Tensor, Tensor, Tensor], progress: Progress) -> Tensors:
        image, ids, noise = views
        return {"f": self.projector(self.backbone(image)["pooled"]), "id": ids, "noise": noise}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        f, ids, rows = z["f"], z["id"], {"f": z["f"], "id": z["id"]}
        s = queue_similarities(f, self.bank, self.params.temperature)  # [N n]
        if not self.params.negatives:
            return Output(full_softmax(s, ids), rows=rows, embeddings=[f])
        others = s.gather(1, z["noise"])  # [N m]
        mean = gather(others.detach().flatten().logsumexp(0)[None]).logsumexp(0) - math.log(world() * others.numel())
        log_z = torch.where(self.estimated, self.log_z, mean.to(self.log_z.dtype))
        loss = nce(s.gather(1, ids[:, None])[:, 0], others, log_z + math.log(self.images), self.images)
        return Output(loss, rows=rows, carry={"log_z": log_z}, embeddings=[f])

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        if "log_z" in carry:
            self.log_z.copy_(carry["log_z"])
            self.estimated.fill_(True)
        ids, m = carry["id"], self.params.momentum
        moved = m * self.bank[ids] + (1 - m) * unit(carry["f"]).to(self.bank.dtype)
        self.bank[ids] = unit(moved)
