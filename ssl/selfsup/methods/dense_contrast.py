"""DenseCL: MoCo for every place of the feature map; its positive is the most similar place of the other view.

Wang et al. 2021, "Dense Contrastive Learning for Self-Supervised Visual Pre-Training", arXiv:2011.09157:

    L = (1 - lambda) L_q + lambda L_r
    L_r = mean over places r of -log(exp(r.t / tau) / (exp(r.t / tau) + sum over the dense queue of exp(r.k / tau)))

L_q is MoCo's loss of the pooled features. `match` gives each place r of the query its place t in the key by the cosines
of the backbone's features; no geometry is used. The dense queue has one key per image, the mean of its normalised
places.

Differences from the paper: the tokens of a transformer are places, too. As in `moco`, batch norm is not shuffled among
processes, and m rises along a cosine.

Expect: 83.9 % kNN accuracy on 9,000 images of Fashion-MNIST (ResNet-9, 20 epochs), where random weights reach 77.9 %.
"""

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from selfsup.about import About, Paper
from selfsup.families.momentum import Momentum
from selfsup.families.two_views import places
from selfsup.nn.contrastive import info_nce, unit
from selfsup.nn.ema import ema_update, target_of
from selfsup.nn.heads import mlp
from selfsup.nn.precision import full_precision
from selfsup.nn.queue import Queue
from selfsup.params import HeadParams, MethodParams, PairOfProbabilities, Probability
from selfsup.task import Facts, Output, Progress, Tensors

ABOUT = About(
    title="DenseCL",
    family="contrastive",
    kind="image",
    idea="MoCo for every place of the feature map, matched by similarity",
    paper=Paper(
        authors="Wang et al.",
        year=2021,
        title="Dense Contrastive Learning for Self-Supervised Visual Pre-Training",
        arxiv="2011.09157",
    ),
    couples_batch=False,
)


class Params(MethodParams):
    temperature: PositiveFloat  # tau
    dense_weight: Probability  # lambda
    queue: PositiveInt  # K of both queues
    momentum: PairOfProbabilities  # m of the key encoder, at the first step and after the last
    projector: HeadParams  # of the pooled features
    dense_projector: HeadParams  # of each place


@full_precision
def contrast(q: Tensor, k: Tensor, queue: Tensor, tau: float) -> Tensor:  # [M D], [M D], [K D] of length 1 -> []
    """L = -mean_i log( e^(q_i.k_i/tau) / (e^(q_i.k_i/tau) + sum_j e^(q_i.m_j/tau)) ), m the queue, q and k of length 1.

    Equation 1 with the pooled features, equation 2 with those of the places, each beside the key it is matched to.
    """
    positive, negatives = (unit(q) * unit(k)).sum(1) / tau, unit(q) @ queue.T / tau
    return info_nce(positive, negatives)


@torch.no_grad()
@full_precision
def match(query: Tensor, key: Tensor) -> Tensor:  # [B L C], [B L C] -> int64 [B L]
    """The place of the key whose features are most similar (cosine) to each place of the query."""
    return (unit(query) @ unit(key).mT).argmax(2)


class DenseContrast(Momentum):
    about = ABOUT

    def __init__(self, params: Params, facts: Facts):
        super().__init__(facts, params.projector, params.momentum)
        net = self.backbone.net
        self.prefix, width = getattr(net, "num_prefix_tokens", 0), net.num_features
        self.dense_projector = mlp(width, params.dense_projector)
        self.dense_target = target_of(self.dense_projector)
        dense_width = params.dense_projector.out if params.dense_projector.layers else width
        self.queue = Queue(params.queue, self.width, facts.samples)
        self.dense_queue = Queue(params.queue, dense_width, facts.samples)
        self.params = params

    def dense(self, head: nn.Module, local: Tensor) -> Tensor:  # [B L C] -> [B L D]
        return head(local.flatten(0, 1)).unflatten(0, local.shape[:2])

    def embed(self, views: tuple[Tensor, ...], progress: Progress) -> Tensors:
        """Query and key q, k [B D]; of the places queries, their keys [B L D], and all keys' mean [B D]."""
        query, key = views
        features = self.backbone(query)
        local = places(features, self.prefix)
        with torch.no_grad():
            backbone, projector = self.target
            key_features = backbone(key)
            key_local = places(key_features, self.prefix)
            k = projector(key_features["pooled"])
            dense_k = unit(self.dense(self.dense_target, key_local))  # [B L D]
            index = match(local, key_local)[:, :, None].expand(-1, -1, dense_k.shape[2])
            matched, mean = dense_k.gather(1, index), dense_k.mean(1)
        q, dense_q = self.projector(features["pooled"]), self.dense(self.dense_projector, local)
        return {"q": q, "k": k, "dense_q": dense_q, "dense_k": matched, "mean": mean}

    def loss(self, z: Tensors, progress: Progress) -> Output:
        k, dense_k, tau, weight = (
            z["k"].detach(),
            z["dense_k"].detach(),
            self.params.temperature,
            self.params.dense_weight,
        )
        whole = contrast(z["q"], k, self.queue.keys, tau)
        dense = contrast(z["dense_q"].flatten(0, 1), dense_k.flatten(0, 1), self.dense_queue.keys, tau)
        return Output(
            (1 - weight) * whole + weight * dense,
            logs={"global_loss": whole, "dense_loss": dense},
            rows={"k": k, "mean": z["mean"]},
            embeddings=(z["q"], k),
        )

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        super().after_step(carry, progress)
        ema_update(self.dense_target, self.dense_projector, self.m(progress))
        self.queue.push(carry["k"])
        self.dense_queue.push(carry["mean"])
