"""Small images, labels and encoders for protocols that look inside a network."""

from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

from selfsup.evaluation.networks import ImageSplits
from selfsup.features.store import Splits

SIZES = {"train": 90, "validation": 45, "test": 60}
CLASSES = 3
GREY = SimpleNamespace(mean=[0.5] * 3, std=[0.25] * 3)  # what sharding finds of images
LABELS = Splits(*(np.arange(count) % CLASSES for count in SIZES.values()))


class Plain:
    """Stands for `networks.Images`: views [N 3 S S] that are there."""

    def __init__(self, views: Tensor):
        self.views = views

    def __len__(self):
        return len(self.views)

    def batches(self, size=256, stop=None):
        for ids in torch.arange(len(self) if stop is None else stop).split(size):
            yield ids, self.views[ids]

    def take(self, ids):
        return self.views[torch.as_tensor(ids)]


def images(size: int = 16) -> ImageSplits:
    """Noisy images [N 3 S S] in which a bright bar lies at a place that tells the class."""
    found = []
    for seed, labels in enumerate(LABELS):
        x = 0.3 * torch.rand(len(labels), 3, size, size, generator=torch.Generator().manual_seed(seed))
        for view, label in zip(x, labels, strict=True):
            view[:, 2 + 4 * label : 4 + 4 * label] += 0.5
        found.append(Plain(x))
    return ImageSplits(*found)


class Means(nn.Module):
    """The mean of each row and channel: an encoder without a network. [B 3 S S] -> {"pooled": [B 3*S]}"""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pooled": x.mean(3).flatten(1)}


class Constant(nn.Module):
    """The same features for every image."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pooled": torch.ones(len(x), 4)}


def encoded(encoder: nn.Module, given: ImageSplits) -> Splits:
    """The features of all splits, float32 [N D]."""
    with torch.no_grad():
        return Splits(*(encoder(each.views)["pooled"].numpy() for each in given))
