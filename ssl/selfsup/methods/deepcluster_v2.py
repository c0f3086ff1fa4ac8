"""DeepCluster-v2: predict each view's cluster, the prototypes being the clusters' own centroids.

Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", arXiv:2006.09882,
appendix: DeepCluster (arXiv:1807.05520) with SwAV's views, projector and temperature. Prototypes are not learnt, and so
need no new classifier each epoch: spherical k-means puts them where the images are.
"""

import torch
from torch import Tensor

from selfsup.families.clusters import Clusters, ClustersParams
from selfsup.nn.contrastive import unit
from selfsup.nn.kmeans import spherical_kmeans
from selfsup.task import Facts


class Params(ClustersParams):
    pass


class DeepClusterV2(Clusters):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(params, facts, "deepcluster_v2")
        self.register_buffer("prototypes", unit(torch.randn(params.heads, params.prototypes, self.width)))
        self.seed = int(torch.randint(2**31, ()))  # of the first centroids, a function of the run's seed

    def assign(self, z: Tensor, head: int, epoch: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + epoch * self.params.heads + head)
        labels, self.prototypes[head] = spherical_kmeans(z, self.params.prototypes, generator)
        return labels
