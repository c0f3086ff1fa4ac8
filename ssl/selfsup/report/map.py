"""The interactive map: one self-contained HTML page, where pointing at a place shows the image that lies there."""

from __future__ import annotations

import importlib
import importlib.util
import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from selfsup.report import pictures
from selfsup.report.charts import palette
from selfsup.report.template import render

if TYPE_CHECKING:
    from selfsup.data.loader import Split
    from selfsup.features.store import FeatureSet

TILE = 48  # pixels, the longest side of an image in the sheet; with 2,000 images the page takes a few MB
CLUSTERS = 10
HOW_TO_GET_UMAP = "UMAP is not installed: pip install umap-learn, and the next map has it beside t-SNE."

Layouts = dict[str, dict[str, np.ndarray]]  # by row and projection: places in the plane [N 2]


def layouts(sets: Sequence[FeatureSet], test: Split, seed: int) -> Layouts:
    """Places of the same test images by the pretrained features and by raw pixels, without projections that fail."""
    shown = pictures.sample(test.samples, pictures.POINTS, seed)
    found: Layouts = {}
    for one in sets:
        if one.row in ("method", "pixels"):
            features = np.asarray(one.load("test", test.samples)[shown])
            made = {"t-SNE": pictures.tsne(features, seed)}
            made["UMAP"] = None if made["t-SNE"] is None else umap(features, seed)
            found[one.row] = {name: places for name, places in made.items() if places is not None}
    return found


def umap(features: np.ndarray, seed: int) -> np.ndarray | None:
    """Places [N 2] of `features` [N D] by UMAP (McInnes et al. 2018, arXiv:1802.03426), on l2-normalised features.

    None where umap-learn, an extra of this package, is not installed, or there are too few images for it.
    """
    from sklearn.preprocessing import normalize

    if importlib.util.find_spec("umap") is None or len(features) < 6:
        return None
    made = importlib.import_module("umap").UMAP(n_neighbors=min(15, len(features) - 1), random_state=seed, n_jobs=1)
    return np.asarray(made.fit_transform(normalize(np.asarray(features, np.float32))), np.float64)


def clusters(features: np.ndarray, seed: int) -> np.ndarray:
    """The k-means cluster of every row of `features` [N D], l2-normalised, int64 [N]; at most CLUSTERS of 5 or more."""
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    count = max(1, min(CLUSTERS, len(features) // 5))
    return KMeans(count, n_init=1, random_state=seed).fit_predict(normalize(np.asarray(features, np.float64)))


def page(
    title: str, names: Mapping[str, str], sets: Sequence[FeatureSet], test: Split, places: Layouts, seed: int
) -> str | None:
    """The page of the `places` that `layouts` found; None where there are none."""
    drawn = {row: own for row, own in places.items() if own}
    if not drawn:
        return None
    shown = pictures.sample(test.samples, pictures.POINTS, seed)
    sheet, side = sprite(test, shown)
    colourings: dict[str, Any] = {}
    if len(test.classes):
        labels = test.labels[shown]
        groups = [*test.classes, *(["no label"] if (labels < 0).any() else [])]
        colourings["class"] = colouring(groups, np.where(labels < 0, len(test.classes), labels), len(test.classes))
    for one in sets:
        if one.row in drawn:
            found = clusters(np.asarray(one.load("test", test.samples)[shown]), seed)
            groups = [f"cluster {i + 1}" for i in range(int(found.max()) + 1)]
            colourings[f"cluster of {names[one.row]}"] = colouring(groups, found, len(groups))
    data = {
        "maps": [
            {"title": f"{names[row]}, {projection}", "places": _unit(own)}
            for row, by_projection in drawn.items()
            for projection, own in by_projection.items()
        ],
        "names": [test.names[i] for i in shown.tolist()],
        "colourings": [{"title": name, **one} for name, one in colourings.items()],
        "columns": math.ceil(math.sqrt(len(shown))),
        "side": side,
    }
    note = "" if importlib.util.find_spec("umap") else HOW_TO_GET_UMAP
    return render("map.html", title=title, data=data, sheet=sheet, count=len(shown), noun=test.data.noun, note=note)


def colouring(groups: Sequence[str], of: np.ndarray, colours: int) -> dict[str, Any]:
    """Names and colours of groups, and the group of every point; a group beyond `colours` is grey."""
    known = [f"rgb({r},{g},{b})" for r, g, b in (palette(colours) * 255).round().astype(int).tolist()]
    return {"groups": list(groups), "colours": [*known, "rgb(128,128,128)"][: len(groups)], "of": of.tolist()}


def sprite(test: Split, shown: np.ndarray) -> tuple[str, int]:
    """All images in one sheet, row by row in squares, as a data URI, and the side of a square in pixels."""
    from PIL import Image

    tiles: list[Image.Image] = []
    for part in np.array_split(shown, math.ceil(len(shown) / 256)):
        arrays = {name: x.numpy() for name, x in test.gather(part).items()}
        for i in range(len(part)):
            tiles.append(test.format.thumbnail({name: x[i] for name, x in arrays.items()}))
            tiles[-1].thumbnail((TILE, TILE))
    columns, side = math.ceil(math.sqrt(len(shown))), max(max(tile.size) for tile in tiles)
    sheet = Image.new("RGB", (columns * side, math.ceil(len(shown) / columns) * side), (128, 128, 128))
    for number, tile in enumerate(tiles):
        row, column = divmod(number, columns)
        sheet.paste(tile, (column * side + (side - tile.width) // 2, row * side + (side - tile.height) // 2))
    file, kind = io.BytesIO(), "png" if side <= TILE // 2 else "jpeg"  # small images as they are
    sheet.save(file, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return pictures.data_uri(file.getvalue(), kind), side


def _unit(places: np.ndarray) -> list[list[float]]:
    """Places in a square from 0 to 1, with equal scales, to three digits."""
    low, high = places.min(axis=0), places.max(axis=0)
    middle = (low + high) / 2
    scaled = (places - middle) / max(float((high - low).max()), 1e-12) + 0.5
    return [[round(x, 3), round(y, 3)] for x, y in scaled.tolist()]
