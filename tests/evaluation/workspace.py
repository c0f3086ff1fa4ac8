"""A working folder as the stages before evaluation leave it, with features of known quality."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ruamel.yaml import YAML
from torch import Tensor, nn

from selfsup import needs
from selfsup.config import parse
from selfsup.data.loader import open_split
from selfsup.evaluation import protocols, run
from selfsup.evaluation.networks import Images, ImageSplits, Networks
from selfsup.features.store import Splits
from selfsup.nets.image import ResNet9
from selfsup.params import Params
from selfsup.views.image.recipe import centre_view
from tests.helpers import values

PLACES = {  # noise around the class centres
    "pretrained": 1.0,
    "baselines/random": 2.5,
    "baselines/supervised": 0.6,
    "baselines/pixels": None,
}


def quick() -> dict[str, Any]:
    """Overrides that make every protocol fast: of a list its first two values, of a whole number at most three.

    How many images take part is left as it is: few have no spread.
    """
    short = {}
    for name, block in values()["evaluation"].items():
        if name not in ("protocols", "encoder_protocols"):
            for key, value in block.items():
                whole = isinstance(value, int) and key != "images"
                cut = value[:2] if isinstance(value, list) else min(value, 3) if whole else value
                short[f"evaluation__{name}__{key}"] = cut
    return short


def make(folder: Path, shards: Path, **overrides: Any) -> Params:
    """Fill `folder` with params.yaml, a link to `shards`, features; returns the parameters.

    `pixels` are the images; the other features are class centres under noise, least in `supervised`.
    """
    chosen = {"data__cache": "none", "tracking__enabled": False} | overrides
    YAML().dump(values(**chosen), folder / "params.yaml")
    params = parse(Params, values(**chosen))
    (folder / "models/pretrained").mkdir(parents=True)
    needs.write(params, "image", "conv", folder)
    (folder / "data/shards").symlink_to(shards)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 16))
    splits = {name: open_split(shards, name, params.data) for name in Splits._fields}
    for place, noise in PLACES.items():
        arrays = {}
        for name, split in splits.items():
            if noise is None:
                images = split.gather(np.arange(split.samples))["image"].numpy()
                arrays[name] = images.reshape(len(images), -1) / 255
            else:
                arrays[name] = centres[split.labels] + noise * rng.normal(size=(split.samples, 16))
        meta = {"method": "simclr", "backbone": "conv"} if place == "pretrained" else {}
        write_features(folder / "features" / place, meta, arrays)
    return params


class Lookup(nn.Module):
    """An encoder that gives the features of the most similar image that it knows, so that its quality is known.

    `images` [N 3 S S] in 0..1, `features` [N D]. The network inside tells nothing: its weights are zero.
    """

    def __init__(self, images: Tensor, features: np.ndarray):
        super().__init__()
        self.register_buffer("images", images.flatten(1))
        self.register_buffer("features", torch.from_numpy(features.copy()))
        self.net = ResNet9(width=1).eval()
        for weight in self.net.parameters():
            nn.init.zeros_(weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        self.net(images)
        return {"pooled": self.features[torch.cdist(images.flatten(1), self.images).argmin(1)]}


def networks(params: Params) -> Networks:
    """Encoders that give the features in the working folder, and the images."""
    splits = {name: open_split("data/shards", name, params.data) for name in Splits._fields}
    view = partial(centre_view, size=splits["train"].data.image_size)
    images = ImageSplits(*(Images(split, view, torch.device("cpu")) for split in splits.values()))
    known = torch.cat([each.take(np.arange(len(each))) for each in images])

    def encoder(row: str) -> nn.Module:
        place = next(folder for folder in PLACES if folder.endswith("pretrained" if row == "method" else row))
        features = [np.load(f"features/{place}/{name}.npy") for name in Splits._fields]
        return Lookup(known, np.concatenate(features))

    return Networks(encoder, images, lambda row: "toy")


def evaluate(name: str, params: Params) -> dict[str, Any]:
    """What the stage of the protocol `name` does in the working folder."""
    return run.evaluate(name, params, networks=networks(params) if protocols.find(name).inside else None)


def write_features(folder: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """A feature set as extraction leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    for name, features in arrays.items():
        np.save(folder / f"{name}.npy", features.astype(np.float32))
