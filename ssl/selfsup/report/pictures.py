"""Pictures of a representation: a t-SNE map, and nearest neighbours beside those of raw pixels."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from selfsup.evaluation.neighbours import search
from selfsup.report.charts import palette

if TYPE_CHECKING:
    from PIL import Image

    from selfsup.data.loader import Split

POINTS = 2000  # of a map, at most
QUERIES, NEIGHBOURS = 8, 5
THUMBNAIL = 96  # pixels, the longest side of an embedded image


def data_uri(picture: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode()}"


def sample(count: int, most: int, seed: int) -> np.ndarray:
    """At most `most` of 0..count-1, seeded, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(count)[:most])


def tsne(features: np.ndarray, seed: int) -> np.ndarray | None:
    """Places in the plane [N 2] of `features` [N D]; None when there are fewer than 5 or all are alike.

    van der Maaten & Hinton 2008; on l2-normalised features, reduced to 50 principal components as there.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE
    from sklearn.preprocessing import normalize

    x = normalize(np.asarray(features, np.float64))
    if len(x) < 5 or x.std(axis=0).max() < 1e-6:
        return None
    if min(x.shape) > 50:
        x = PCA(50, svd_solver="randomized", random_state=seed).fit_transform(x)
    perplexity = min(30.0, (len(x) - 1) / 3)  # it must stay below the number of images
    start = "pca" if min(x.shape) > 1 else "random"
    return TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(x)


def scatter(places: np.ndarray, labels: np.ndarray, classes: int) -> str:
    """A map as a PNG data URI with a clear background: `places` [N 2], `labels` [N] (-1: drawn in grey)."""
    from matplotlib.figure import Figure

    colours = np.concatenate([palette(classes), [[0.5, 0.5, 0.5]]])[labels]  # -1 is the last
    figure = Figure((5.4, 5.4), dpi=160)
    axis = figure.add_axes((0, 0, 1, 1))
    axis.scatter(
        places[:, 0], places[:, 1], c=colours, s=max(9, min(30, 12_000 / len(places))), alpha=0.85, linewidths=0
    )
    axis.set_aspect("equal", adjustable="datalim")
    axis.axis("off")
    out = io.BytesIO()
    figure.savefig(out, format="png", transparent=True)
    return data_uri(out.getvalue())


@dataclass(frozen=True)
class Thumbnail:
    uri: str
    caption: str  # class and file name
    right: bool | None = None  # same class as the query; None when one of them has none


@dataclass(frozen=True)
class Neighbours:
    query: Thumbnail
    sides: list[list[Thumbnail]]  # one a feature space


def neighbours(
    queries: Split, bank: Split, spaces: Sequence[tuple[np.ndarray, np.ndarray]], seed: int
) -> list[Neighbours]:
    """Seeded images of `queries` and the nearest ones of `bank` by cosine, in every space of (bank, query) features."""
    chosen = sample(queries.samples, QUERIES, seed)
    found = [search([features], asked[chosen], NEIGHBOURS)[1] for features, asked in spaces]
    pictures = thumbnails(queries, chosen)
    needed = np.unique(np.concatenate([index.ravel() for index in found]))
    near = dict(zip(needed.tolist(), thumbnails(bank, needed), strict=True))
    answer = []
    for row, query in enumerate(chosen):
        label = int(queries.labels[query])
        sides = [
            [
                Thumbnail(
                    near[i], caption(bank, i), None if min(label, bank.labels[i]) < 0 else label == bank.labels[i]
                )
                for i in index[row].tolist()
            ]
            for index in found
        ]
        answer.append(Neighbours(Thumbnail(pictures[row], caption(queries, int(query))), sides))
    return answer


def caption(split: Split, i: int) -> str:
    """Class, where there is one, and file name of an image."""
    label = int(split.labels[i])
    return f"{split.classes[label]}: {split.names[i]}" if label >= 0 else str(split.names[i])


def thumbnails(split: Split, ids: np.ndarray) -> list[str]:
    """Data URIs of pictures of samples."""
    batch = split.gather(np.asarray(ids, np.int64))
    arrays = {name: tensor.numpy() for name, tensor in batch.items()}
    return [encoded(split.format.thumbnail({name: x[i] for name, x in arrays.items()})) for i in range(len(ids))]


def encoded(picture: Image.Image) -> str:
    """Small images as they are, larger ones shrunk and compressed with loss: a page of hundreds stays light."""
    out = io.BytesIO()
    if max(picture.size) <= THUMBNAIL // 2:
        picture.save(out, "png", optimize=True)
        return data_uri(out.getvalue())
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(out, "jpeg", quality=85)
    return data_uri(out.getvalue(), "jpeg")
