"""One method of each family, its loss written out from the paper."""

import copy
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn

from tests.contract.plain.networks import HEAD, SAMPLES, Backbone, Block, head, head_with_norm
from tests.contract.plain.trainer import Method, Now


def cosines(a: Tensor, b: Tensor) -> Tensor:  # [N D], [M D] -> [N M]
    return (a / a.norm(dim=1, keepdim=True)) @ (b / b.norm(dim=1, keepdim=True)).mT


def cross_entropy(p: Tensor, logits: Tensor) -> Tensor:  # probabilities and logits [N K] -> []
    return -(p * (logits - logits.logsumexp(1, keepdim=True))).sum(1).mean()


def one_hot(labels: Tensor, count: int) -> Tensor:
    return torch.eye(count, dtype=torch.float64)[labels]


def codes(scores: Tensor, eps: float, rounds: int = 3) -> Tensor:  # [N K] -> [N K]
    """Caron et al. 2020, arXiv:2006.09882, section 3.1; rows sum to 1 at the end."""
    q = (scores / eps).exp()
    for _ in range(rounds):
        q = q / q.sum(0, keepdim=True) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / q.shape[0]
    return q * q.shape[0]


def over_pairs(targets: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
    """Mean over all pairs of a target and the prediction from another view."""
    pairs = [(p, s) for i, p in enumerate(targets) for j, s in enumerate(logits) if i != j]
    return sum(cross_entropy(p, s) for p, s in pairs) / len(pairs)


class Plain(Method):
    """A backbone, to which a method adds its heads."""

    kind = "conv"

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__()
        self.backbone, self.settings = Backbone(self.kind), settings


class Projected(Plain):
    """A backbone and a projector."""

    head = staticmethod(head)

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.projector = self.head(self.backbone.width, *HEAD)

    def z(self, view: Tensor) -> Tensor:
        return self.projector(self.backbone(view))


class WithTarget(Projected):
    """A momentum encoder, whose batch norms follow from its own forwards."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.target = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.projector)])

    @torch.no_grad()
    def of_target(self, view: Tensor) -> Tensor:
        backbone, projector = self.target
        return projector(backbone(view))

    def after(self, now: Now) -> None:
        follow(self.target, nn.ModuleList([self.backbone, self.projector]), now.cosine(*self.settings["momentum"]))


def follow(slow: nn.Module, fast: nn.Module, m: float) -> None:
    """Grill et al. 2020, section 3.1: xi <- tau xi + (1 - tau) theta."""
    for xi, theta in zip(slow.parameters(), fast.parameters(), strict=True):
        xi.data = m * xi.data + (1 - m) * theta.data


class SimCLR(Projected):
    """Chen et al. 2020, arXiv:2002.05709, equation 1; both views in one batch."""

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        z = self.z(torch.cat(list(views)))
        n = len(z) // 2
        s = cosines(z, z) / self.settings["temperature"]
        others = [[k for k in range(2 * n) if k != i] for i in range(2 * n)]
        return sum(s[i, others[i]].logsumexp(0) - s[i, (i + n) % (2 * n)] for i in range(2 * n)) / (2 * n)


class BYOL(WithTarget):
    """Grill et al. 2020, arXiv:2006.07733, equation 2, in both directions."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.predictor = head(HEAD[1], *HEAD)

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        q = [self.predictor(z) for z in [self.z(view) for view in views]]
        t = [self.of_target(view) for view in views]
        return sum((2 - 2 * cosines(q[i], t[1 - i]).diagonal()).mean() for i in (0, 1))


class SimSiam(Projected):
    """Chen & He 2021, arXiv:2011.10566, algorithm 1; the predictor's rate is constant (section 4.2)."""

    head = staticmethod(head_with_norm)

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.predictor = head(HEAD[1], *HEAD)

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        z = [self.z(view) for view in views]
        p = [self.predictor(x) for x in z]
        return sum(-cosines(p[i], z[1 - i].detach()).diagonal().mean() / 2 for i in (0, 1))

    def constant_rate(self, name: str) -> bool:
        return name.startswith("predictor.")


class MoCo(WithTarget):
    """He et al. 2020, arXiv:1911.05722, algorithm 1: the keys enter the queue when the step is done."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.queue = nn.Module()
        self.queue.register_buffer("keys", torch.zeros(settings["queue"], HEAD[1]))

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        query, key = views
        q, k = self.z(query), self.of_target(key)
        self.new = k  # the oldest is the first of the batch
        old = q / q.norm(dim=1, keepdim=True) @ self.queue.keys.mT
        logits = torch.cat([cosines(q, k).diagonal()[:, None], old], dim=1) / self.settings["temperature"]
        return (logits.logsumexp(1) - logits[:, 0]).mean()

    def after(self, now: Now) -> None:
        super().after(now)
        push(self.queue, self.new)


def push(queue: nn.Module, new: Tensor) -> None:
    keys = [*queue.keys, *(new / new.norm(dim=1, keepdim=True))]
    queue.keys = torch.stack(keys[-len(queue.keys) :])


class MoCoV3(WithTarget):
    """Chen et al. 2021, arXiv:2104.02057, algorithm 1; the patch projection is not trained (section 4.2)."""

    kind, head, fixed = "vit", staticmethod(head_with_norm), ("backbone.net.patch_embed.",)

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.predictor = head_with_norm(HEAD[1], *HEAD)

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        tau = self.settings["temperature"]
        q = [self.predictor(self.z(view)) for view in views]
        k = [self.of_target(view) for view in views]
        own = torch.eye(len(q[0]), dtype=torch.float64)
        return sum(2 * tau * cross_entropy(own, cosines(q[i], k[1 - i]) / tau) for i in (0, 1))


def of_views(backbone: Backbone, crops: Sequence[Tensor]) -> Tensor:
    """Features of all crops in order, those of one size in one batch."""
    sizes = [list(same) for _, same in groupby(crops, key=lambda crop: crop.shape[3])]
    return torch.cat([backbone(torch.cat(same)) for same in sizes])


class SwAV(Projected):
    """Caron et al. 2020, arXiv:2006.09882: prototypes of length 1, frozen at first; a queue for each global view."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.prototypes = nn.Parameter(torch.zeros(settings["prototypes"], HEAD[1]))
        self.queues = nn.ModuleList(nn.Module() for _ in range(2))
        for queue in self.queues:
            queue.register_buffer("keys", torch.zeros(settings["queue"], HEAD[1]))

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        z = self.projector(of_views(self.backbone, views))
        z = (z / z.norm(dim=1, keepdim=True)).chunk(len(views))
        scores = [x @ self.prototypes.mT for x in z]
        targets = []
        with torch.no_grad():
            for x, queue in zip(z, self.queues, strict=False):
                rows = torch.cat([x, queue.keys]) if now.epoch >= self.settings["queue_epoch"] else x
                targets.append(codes(rows @ self.prototypes.mT, self.settings["eps"])[: len(x)])
        self.new = [x.detach() for x in z[:2]]
        return over_pairs(targets, [s / self.settings["temperature"] for s in scores])

    def after(self, now: Now) -> None:
        self.prototypes.data = self.prototypes.data / self.prototypes.data.norm(dim=1, keepdim=True)
        for queue, new in zip(self.queues, self.new, strict=True):
            push(queue, new)

    def still(self, name: str, now: Now) -> bool:
        return name == "prototypes" and now.epoch < self.settings["frozen_epochs"]


class SeLaV2(Projected):
    """Caron et al. 2020, appendix: before an epoch, 20 rounds of Sinkhorn-Knopp over what the last one stored."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        heads, count = settings["heads"], settings["prototypes"]
        self.prototypes = nn.Parameter(torch.zeros(heads, count, HEAD[1]))
        self.register_buffer("bank", torch.zeros(2, SAMPLES, HEAD[1]))
        self.register_buffer("labels", torch.zeros(heads, SAMPLES, dtype=torch.int64))
        self.register_buffer("used", torch.zeros(()))

    @torch.no_grad()
    def before_epoch(self, now: Now, images: Tensor) -> None:
        if now.step == 0:
            self.eval()
            z = self.z(images)
            z = z - z.mean(0)
            self.bank = (z / z.norm(dim=1, keepdim=True)).expand(2, -1, -1).clone()
            self.train()
        for i, own in enumerate(self.prototypes):
            self.labels[i] = codes(self.bank[i % 2] @ own.mT, self.settings["eps"], 20).argmax(1)
        self.used.fill_(sum(len(set(own.tolist())) for own in self.labels) / self.prototypes[:, :, 0].numel())

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        *crops, self.ids = views
        z = self.projector(of_views(self.backbone, crops))
        z = (z / z.norm(dim=1, keepdim=True)).chunk(len(crops))
        self.new = torch.stack([x.detach() for x in z[:2]])
        terms = [
            cross_entropy(one_hot(labels[self.ids], len(own)), x @ own.mT / self.settings["temperature"])
            for x in z
            for labels, own in zip(self.labels, self.prototypes, strict=True)
        ]
        return sum(terms) / len(terms)

    def after(self, now: Now) -> None:
        self.prototypes.data = self.prototypes.data / self.prototypes.data.norm(dim=2, keepdim=True)
        self.bank[:, self.ids] = self.new


class Directions(nn.Linear):
    """A last layer of unit weights on unit inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return cosines(x, self.weight)


class DINO(Plain):
    """Caron et al. 2021, arXiv:2104.14294, algorithm 1, its multi-crop, and the schedules of its section 3.2."""

    kind = "vit"

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        width, outputs = self.backbone.width, settings["outputs"]
        body = nn.Sequential(nn.Linear(width, HEAD[0]), nn.GELU(), nn.Linear(*HEAD))
        self.head = nn.Sequential(body, Directions(HEAD[1], outputs, bias=False))
        self.teacher = nn.ModuleList([copy.deepcopy(self.backbone), copy.deepcopy(self.head)])
        self.register_buffer("centre", torch.zeros(outputs))

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        s, done = self.settings, now.step / now.steps
        start, end = s["teacher_temperature_start"], s["teacher_temperature"]
        tau = start + (end - start) * min(1, done / s["teacher_warmup"])
        student = self.head(of_views(self.backbone, views)).chunk(len(views))
        with torch.no_grad():
            backbone, last = self.teacher
            teacher = last(backbone(torch.cat(views[:2])))
        self.seen = teacher.mean(0)
        targets = ((teacher - self.centre) / tau).softmax(1).chunk(2)
        return over_pairs(targets, [x / s["temperature"] for x in student])

    def after(self, now: Now) -> None:
        m = self.settings["centre_momentum"]
        self.centre = m * self.centre + (1 - m) * self.seen
        follow(self.teacher, nn.ModuleList([self.backbone, self.head]), now.cosine(*self.settings["momentum"]))

    def still(self, name: str, now: Now) -> bool:
        return name.startswith("head.1.") and now.epoch < self.settings["frozen_epochs"]

    def decay(self, base: float, now: Now) -> float:
        return now.cosine(base, self.settings["decay_end"])


class MAE(Plain):
    """He et al. 2021, arXiv:2111.06377, section 3; the target is a normalised input's patch, standardised by itself."""

    kind = "vit"

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        width = settings["decoder"]["width"]
        self.decoder_embed = nn.Linear(self.backbone.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.register_buffer("positions", torch.zeros(16, width))
        self.decoder = nn.Sequential(Block(width), nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 3 * 4 * 4))

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        images, keep, _ = views
        seen = torch.zeros(len(images), 16, dtype=torch.bool).scatter(1, keep, True)  # [B L]
        images = self.backbone.normalise(images)
        net, terms = self.backbone.net, []
        embedded = net.patches(images)
        for image, x, visible in zip(images, embedded, seen, strict=True):
            tokens = self.decoder_embed(net.tokens(x[None, visible])[0, 1:])
            rows = self.mask_token.expand(16, -1).clone()
            rows[visible] = tokens
            painted = self.decoder((rows + self.positions)[None])[0]
            for i in (~visible).nonzero().flatten().tolist():
                top, left = 4 * (i // 4), 4 * (i % 4)
                pixels = image[:, top : top + 4, left : left + 4].permute(1, 2, 0).flatten()
                target = (pixels - pixels.mean()) / (pixels.var() + 1e-6).sqrt()
                terms.append((painted[i] - target).square().mean())
        return torch.stack(terms).mean()


class Rotation(Plain):
    """Gidaris et al. 2018, arXiv:1803.07728, equation 3: the batch in four rotations, one after the other."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.classifier = nn.Linear(self.backbone.width, 4)

    def loss(self, views: Tensor, now: Now) -> Tensor:
        turned = torch.arange(4).repeat_interleave(len(views) // 4)
        return cross_entropy(one_hot(turned, 4), self.classifier(self.backbone(views)))


class BarlowTwins(Projected):
    """Zbontar et al. 2021, arXiv:2103.03230, algorithm 1: a forward for each view, no row of length 1."""

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        z = [self.z(view) for view in views]
        a, b = ((x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt() for x in z)
        c = a.mT @ b / len(a)
        weight = torch.full_like(c, self.settings["redundancy"]).fill_diagonal_(1)
        return self.settings["scale"] * ((c - torch.eye(len(c), dtype=c.dtype)).square() * weight).sum()


class VICReg(Projected):
    """Bardes et al. 2022, arXiv:2105.04906, algorithm 1: a forward for each view."""

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        z = [self.z(view) for view in views]
        total = self.settings["invariance"] * (z[0] - z[1]).square().mean()
        for x in z:
            c = x.mT.cov()
            total = total + self.settings["variance"] * (1 - (c.diagonal() + 1e-4).sqrt()).relu().mean() / 2
            total = total + self.settings["covariance"] * (c - c.diagonal().diag()).square().sum() / len(c)
        return total


class Supervised(Plain):
    """Cross-entropy with smoothed labels (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""

    def __init__(self, settings: Mapping[str, Any]):
        super().__init__(settings)
        self.classifier = nn.Linear(self.backbone.width, 3)

    def loss(self, views: Sequence[Tensor], now: Now) -> Tensor:
        images, labels = views
        smooth = self.settings["label_smoothing"]
        return cross_entropy(one_hot(labels, 3) * (1 - smooth) + smooth / 3, self.classifier(self.backbone(images)))


METHODS: Mapping[str, type[Plain]] = {
    "simclr": SimCLR,
    "byol": BYOL,
    "simsiam": SimSiam,
    "moco": MoCo,
    "moco_v3": MoCoV3,
    "swav": SwAV,
    "sela_v2": SeLaV2,
    "dino": DINO,
    "mae": MAE,
    "rotation": Rotation,
    "barlow_twins": BarlowTwins,
    "vicreg": VICReg,
    "supervised": Supervised,
}
