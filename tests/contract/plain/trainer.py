"""The trainer, and what it asks of a method."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

NOT_TRAINED = ("target.", "teacher.", "backbone.net.pos_embed")  # momentum encoders and fixed positions


@dataclass(frozen=True)
class Now:
    """The step under way, counted from 0, of `steps`."""

    step: int
    steps: int
    per_epoch: int

    @property
    def epoch(self) -> int:
        return self.step // self.per_epoch

    def cosine(self, start: float, end: float) -> float:
        """From `start` at the first step to `end` after the last, along half a cosine."""
        return end + (start - end) * (1 + math.cos(math.pi * self.step / self.steps)) / 2


class Method(nn.Module):
    """A method, with the answers of most to what it is asked."""

    fixed: tuple[str, ...] = ()  # parameters that are never trained

    def loss(self, views: Any, now: Now) -> Tensor:
        raise NotImplementedError

    def before_epoch(self, now: Now, images: Tensor) -> None:
        """Before an epoch's first step; `images` are the whole set, by number."""

    def after(self, now: Now) -> None:
        """After the optimiser's step."""

    def still(self, name: str, now: Now) -> bool:
        """Whether a parameter stays as it is in this step, though the clipped norm is of its gradient too."""
        return False

    def constant_rate(self, name: str) -> bool:
        """Whether a parameter's learning rate neither rises nor falls."""
        return False

    def decay(self, base: float, now: Now) -> float:
        """The weight decay of this step."""
        return base


def trained(net: Method) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if not name.startswith(NOT_TRAINED + net.fixed)}


def decayed(net: nn.Module, name: str) -> bool:
    """Weights of layers are; biases, scales of norms, tokens and positions are not."""
    owner, _, last = name.rpartition(".")
    return (isinstance(net.get_submodule(owner), nn.Linear | nn.Conv2d) and last == "weight") or name == "prototypes"


def move(p: Tensor, g: Tensor, kept: dict[str, Any], rate: float, decay: float, rule: Mapping[str, Any]) -> None:
    """One step of a parameter."""
    if rule["name"] == "adamw":  # Loshchilov & Hutter 2019, arXiv:1711.05101, algorithm 2
        (b1, b2), t = rule["betas"], kept.get("t", 0) + 1
        m = b1 * kept.get("m", 0) + (1 - b1) * g
        v = b2 * kept.get("v", 0) + (1 - b2) * g.square()
        p.data = p.data - rate * decay * p.data
        p.data = p.data - rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + 1e-8)
        kept |= {"t": t, "m": m, "v": v}
        return
    u = g + decay * p.data
    if rule["name"] == "lars" and decay:  # You et al. 2017, arXiv:1708.03888, equation 6; timm adds the 1e-8
        u = u * rule["trust_coefficient"] * p.data.norm() / (g.norm() + decay * p.data.norm() + 1e-8)
    kept["v"] = rule["momentum"] * kept.get("v", 0) + u  # the rate multiplies the velocity, as in torch's SGD
    p.data = p.data - rate * kept["v"]


def train(
    net: Method,
    images: Tensor,
    batches: Sequence[Any],
    rule: Mapping[str, Any],
    *,
    per_epoch: int,
    warmup: int,
    peak: float,
    clip: float,
) -> list[float]:
    """A step for each of the batches' views, of `images` in all; the norms of the gradients before they are clipped."""
    learning = trained(net)
    kept: dict[str, dict[str, Any]] = {name: {} for name in learning}
    norms = []
    net.train()
    for step, views in enumerate(batches):
        now = Now(step, len(batches), per_epoch)
        if step % per_epoch == 0:
            net.before_epoch(now, images)
        found = torch.autograd.grad(net.loss(views, now), list(learning.values()))
        gradients = dict(zip(learning, found, strict=True))
        norms.append(math.sqrt(sum(g.square().sum().item() for g in gradients.values())))
        shrink = min(1.0, clip / (norms[-1] + 1e-6))  # Pascanu et al. 2013, arXiv:1211.5063; torch adds the 1e-6
        fraction = (step - warmup) / (len(batches) - warmup)
        rate = peak * (step + 1) / (warmup + 1) if step < warmup else peak * (1 + math.cos(math.pi * fraction)) / 2
        for name, g in gradients.items():
            if not net.still(name, now):
                decay = net.decay(rule["weight_decay"], now) if decayed(net, name) else 0.0
                own = peak if net.constant_rate(name) else rate
                move(learning[name], shrink * g, kept[name], own, decay, rule)
        net.after(now)
    return norms
