"""Measures over views, without labels: how near the views of an image lie, and how else images differ.

Every row sees the same random crops of the same test images. LiDAR (Thilak et al. 2023) is the effective rank of what
tells images apart beyond what tells their views apart; alignment (Wang & Isola 2020) is the mean squared distance of
two views of an image. Alignment alone is best for a collapsed network, so read it beside uniformity (`label_free`).

Differences from the papers: views are crops of at least half of the area, the same for all methods, instead of each
method's own, and features are those of the backbone, which are kept, instead of the projector's, which is dropped.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from selfsup.config import Strict
from selfsup.draw import Draw, epoch_order
from selfsup.evaluation.compare import standard_error
from selfsup.evaluation.networks import BATCH, ImageSplits
from selfsup.evaluation.result import Metric, Result, Uncertainty

TITLE = "over views"
NEEDS = {"encoder", "images"}

DELTA = 1e-4  # of the covariance within images
EPS = 1e-8
DIGITS = 6  # after the point: as many as two linear algebra libraries agree on


class Params(Strict):
    images: Annotated[int, Field(ge=2)]  # test images, at most, drawn by the seed
    views: Annotated[int, Field(ge=2)]  # of each image
    crop: Annotated[float, Field(gt=0, le=1)]  # smallest share of the area that a view shows


def run(encoder: nn.Module, images: ImageSplits, params: Params, seed: int) -> Result:
    """The metrics are `lidar` (1 to the width) and `alignment` (0 to 4), whose outcomes are per image."""
    ids = np.sort(epoch_order(seed, 0, len(images.test))[: params.images].numpy())
    parts = []
    for start in range(0, len(ids), BATCH):
        chosen = ids[start : start + BATCH]
        whole, draw = images.test.take(chosen), Draw(seed, 0, torch.from_numpy(chosen))
        crops = [cropped(whole, draw.fork(f"view {i}"), params.crop) for i in range(params.views)]
        with torch.no_grad():
            parts.append(torch.stack([encoder(crop)["pooled"].float().cpu() for crop in crops], dim=1))
    features = torch.cat(parts).double().numpy()  # [N Q D]
    apart = distances(features)
    error = Uncertainty(standard_error(apart), "images")
    return Result(
        {
            "lidar": Metric(round(lidar(features), DIGITS), "LiDAR", unit="none"),
            "alignment": Metric(float(apart.mean()), "alignment", "none", False, error, apart),
        },
        drawn=ids.tolist(),
    )


def cropped(images: Tensor, draw: Draw, smallest: float) -> Tensor:
    """A random part of each of `images` [B 3 S S], of a share of the area in [`smallest`, 1], at the same size."""
    share = draw.uniform("area", 1, low=smallest, high=1.0)[:, 0].sqrt()  # of the side
    place = draw.uniform("place", 2, low=-1.0, high=1.0) * (1 - share)[:, None]
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = share
    theta[:, :, 2] = place
    grid = F.affine_grid(theta.to(images.device, images.dtype), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False, padding_mode="border")


def distances(views: np.ndarray) -> np.ndarray:
    """Mean of |z_a - z_b|^2 over the pairs of views a != b of each image, float64 [N], 0 to 4.

    z are the rows of `views` [N Q D] at length 1. With s their sum over views: 2 (Q^2 - |s|^2) / (Q (Q - 1)).
    """
    norm = np.linalg.norm(views, axis=2, keepdims=True)
    z, count = views / np.where(norm > 0, norm, 1), views.shape[1]
    total = (z**2).sum(axis=(1, 2)) * count  # Q^2 where no row is zero
    return np.maximum(0, 2 * (total - (z.sum(axis=1) ** 2).sum(axis=1)) / (count * (count - 1)))


def lidar(views: np.ndarray) -> float:
    """Effective rank, 1 to D, of how images differ beyond how their views do; `views` [N Q D], Q >= 2 views per image.

    With B the covariance of the images' means, W that of views around their image's mean plus delta I, and l_i the
    eigenvalues of W^-1/2 B W^-1/2: exp(-sum_i p_i log p_i), p_i = l_i / sum_j l_j + eps. Thilak et al. 2023, "LiDAR:
    Sensing Linear Probing Performance in Joint Embedding SSL Architectures", arXiv:2312.04000, equations 1 to 4.
    """
    from scipy.linalg import eigh

    x = np.asarray(views, np.float64)
    means = x.mean(axis=1)  # [N D]
    centred = means - means.mean(axis=0)
    between = centred.T @ centred / len(means)
    rest = (x - means[:, None]).reshape(-1, x.shape[2])
    within = rest.T @ rest / len(rest) + DELTA * np.eye(x.shape[2])
    values = np.clip(eigh(between, within, eigvals_only=True), 0, None)
    if values.sum() == 0:
        return 1.0
    p = values / values.sum() + EPS
    return float(np.exp(-(p * np.log(p)).sum()))
