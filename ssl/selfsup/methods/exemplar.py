"""Exemplar: every image is a separate class, and its views are the examples of the class.

Dosovitskiy et al. 2014, "Discriminative Unsupervised Feature Learning with Exemplar Convolutional Neural Networks",
arXiv:1406.6909, equation 2: `softmax`. Hermans, Beyer & Leibe 2017, "In Defense of the Triplet Loss for Person
Re-Identification", arXiv:1703.07737, equation 5 with the soft margin: `triplet`, which is `batch_hard`:

    softmax:  L = mean over views of -log softmax(W h)[own image]
    triplet:  L = mean over views of log(1 + exp(distance to the farthest positive - distance to the nearest negative))

Differences from the papers: the fully connected layer below the softmax has a batch norm and no dropout. The classifier
has one output per training image and grows with the data set. The triplets' distances are Euclidean, of embeddings that
are not normalised, over the global batch.

Expect: 80.1 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.draw import Draw
from selfsup.errors import KnobError
from selfsup.families.multicrop import by_sample, by_view
from selfsup.nn.distributed import gather
from selfsup.nn.heads import mlp
from selfsup.nn.precision import full_precision
from selfsup.params import HeadParams, MethodParams
from selfsup.task import Batch, Facts, Output, Progress, Task, Tensors
from selfsup.views.image.recipe import strong_view

ABOUT = About(
    title="Exemplar",
    family="pretext",
    kind="image",
    idea="every image is a class, its views the examples; softmax, batch-hard triplets",
    paper=Paper(
        authors="Dosovitskiy et al.",
        year=2014,
        title="Discriminative Unsupervised Feature Learning with Exemplar Convolutional Neural Networks",
        arxiv="1406.6909",
    ),
    couples_batch=True,
)


class Params(MethodParams):
    form: Literal["softmax", "triplet"]
    examples: Annotated[int, Field(ge=2)]  # views of an image in a batch
    projector: (
        HeadParams  # triplet: `out` is the embedding width; softmax: the last layer classifies images, `out` is unused
    )


@full_precision
def softmax(logits: Tensor, ids: Tensor) -> Tensor:  # [M n], int64 [M] -> []
    """Equation 2: L = -mean log softmax(logits)[i], i being the image among all n."""
    return F.cross_entropy(logits, ids)


@full_precision
def batch_hard(z: Tensor, ids: Tensor) -> Tensor:  # [M D], [M] -> []
    """Equation 5 with log(1 + e^x) for the hinge, on Euclidean distances, which are neither normalised nor squared.

    L = mean_i log( 1 + e^(max_{j of i's image} |z_i - z_j| - min_{k of another} |z_i - z_k|) )
    """
    d = torch.cdist(z, z, compute_mode="donot_use_mm_for_euclid_dist")  # whose gradient at 0 is 0
    same = ids[:, None] == ids
    farthest = d.masked_fill(~same, -torch.inf).amax(1)
    nearest = d.masked_fill(same, torch.inf).amin(1)
    return F.softplus(farthest - nearest).mean()


class Exemplar(Task):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__()
        self.recipe, self.size, self.params = facts.views, facts.image_size, params
        self.backbone = facts.backbone()
        head = params.projector
        if params.form == "softmax":
            if not head.layers:
                raise KnobError("projector.layers", "0 leaves no classifier; set 1 or more")
            head = head.model_copy(update={"out": facts.samples})
        self.projector = mlp(self.backbone.width, head)

    def views(self, batch: Batch, draw: Draw) -> tuple[Tensor, ...]:
        forks = [draw.fork(f"example {i}") for i in range(self.params.examples)]
        return *(strong_view(batch, fork, self.recipe, self.size) for fork in forks), batch["id"]

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        *images, ids = views
        h, count = self.backbone(torch.cat(images))["pooled"], len(images)
        return {"z": by_sample(self.projector(h), count), "h": by_sample(h, count)[:, :2].detach(), "id": ids}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        if self.params.form == "softmax":
            loss = softmax(by_view(z["z"]).flatten(0, 1), z["id"].repeat(self.params.examples))
        else:
            loss = batch_hard(by_view(gather(z["z"])).flatten(0, 1), gather(z["id"]).repeat(self.params.examples))
        return Output(loss, embeddings=z["h"].unbind(1))
