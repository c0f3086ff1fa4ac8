"""A working folder as the stages before evaluation leave it, with features of known quality."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from selfsup import needs
from selfsup.config import parse
from selfsup.data.loader import open_split
from selfsup.features.store import Splits
from selfsup.params import Params
from tests.helpers import values

PLACES = {  # noise around the class centres
    "pretrained": 1.0,
    "baselines/random": 2.5,
    "baselines/supervised": 0.6,
    "baselines/pixels": None,
}


def quick() -> dict[str, Any]:
    """Overrides that make every protocol fast: of a list its first two values, of a whole number at most three."""
    short = {}
    for name, block in values()["evaluation"].items():
        if name != "protocols":
            for key, value in block.items():
                cut = value[:2] if isinstance(value, list) else min(value, 3) if isinstance(value, int) else value
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


def write_features(folder: Path, meta: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    """A feature set as extraction leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    for name, features in arrays.items():
        np.save(folder / f"{name}.npy", features.astype(np.float32))
