"""MoCo: an image's two views agree more than with a long queue of the keys of earlier batches.

He et al. 2020, "Momentum Contrast for Unsupervised Visual Representation Learning", arXiv:1911.05722: equation 1 is
`info_nce`, equation 2 the key encoder's moving average. Version 1 is `projector.layers: 1` and `temperature: 0.07`;
version 2, Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning", arXiv:2003.04297: 2 and 0.2.
Batch norm is not shuffled among processes (section 3.3): queries and keys have statistics of their own, each over the
global batch, so that results are the same on any number of processes. What a query can read off them, that its key is
of the same batch, it can; the larger the batch, the less. Unlike the paper's, heads of two layers have a batch norm,
and m rises along a cosine, where the paper's is 0.999 throughout: short runs need keys that follow faster at first. The
query encoder is the one that is exported and probed, as in the paper.
Expect (CIFAR-10, ResNet-18, 200 epochs, linear): 86 %.
"""

from collections.abc import Mapping, Sequence

from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from selfsup.families.momentum import Momentum
from selfsup.nn.contrastive import info_nce, key_similarities
from selfsup.nn.distributed import gather
from selfsup.nn.queue import Queue, in_order
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities
from selfsup.task import Facts, Output, Progress


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    queue: PositiveInt  # K, the keys of earlier batches that are negatives
    momentum: PairOfProbabilities  # m of the key encoder, at the first step and after the last
    projector: HeadParams


class MoCo(Momentum):
    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum)
        self.queue = Queue(params.queue, self.width, facts.samples, "methods.moco.queue")
        self.tau = params.temperature

    def loss(self, embeddings: Sequence[Tensor], progress: Progress) -> Output:
        q, k, place = embeddings[0], embeddings[1].detach(), embeddings[2]
        loss = info_nce(*key_similarities(q, k, self.queue.keys, self.tau))
        return Output(loss, carry={"keys": in_order(k, place)}, embeddings=(gather(q.detach()), gather(k)))

    def after_step(self, carry: Mapping[str, Tensor], progress: Progress) -> None:
        super().after_step(carry, progress)
        self.queue.push(carry["keys"])
