"""DeepCluster-v2: predict the cluster of each view; the prototypes are the centroids of the clusters.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv:2006.09882,
appendix: DeepCluster (arXiv:1807.05520) with SwAV's views, projector and temperature:

    L = mean over views, heads and images of -log softmax(z.C / tau)[cluster of the image]

z is a normalised projection. The prototypes C are not learnt: spherical k-means sets them once per epoch, so that no
new classifier is needed.

Differences from the paper: none in the loss; `Clusters` explains what is stored and clustered.

Expect: 82.3 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

import torch
from torch import Tensor

from selfsup.about import About, Paper
from selfsup.families.clusters import Clusters, ClustersParams
from selfsup.nn.contrastive import unit
from selfsup.nn.kmeans import spherical_kmeans
from selfsup.task import Facts

ABOUT = About(
    title="DeepCluster-v2",
    family="clustering",
    kind="image",
    idea="predict each view's cluster, whose centroid is the prototype; small crops",
    paper=Paper(
        authors="Caron et al.",
        year=2020,
        title="Unsupervised Learning of Visual Features by Contrasting Cluster Assignments",
        arxiv="2006.09882",
    ),
    couples_batch=False,
)


class Params(ClustersParams):
    pass


def clusters(z: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:  # [N D] -> int64 [N], [K D]
    """y_i = argmax_k z_i.c_k and c_k = sum of its z_i, scaled to length 1, in turn; the seed draws the first c_k."""
    return spherical_kmeans(z, count, torch.Generator().manual_seed(seed))


class DeepClusterV2(Clusters):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(params, facts)
        self.register_buffer("prototypes", unit(torch.randn(params.heads, params.prototypes, self.width)))
        self.seed = int(torch.randint(2**31, ()))  # of the first centroids, a function of the run's seed

    def assign(self, z: Tensor, head: int, epoch: int) -> Tensor:
        seed = self.seed + epoch * self.params.heads + head
        labels, self.prototypes[head] = clusters(z, self.params.prototypes, seed)
        return labels
