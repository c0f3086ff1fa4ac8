"""A working folder as the stages before evaluation leave it, small and with features of known quality."""

import json
from pathlib import Path

import numpy as np
from ruamel.yaml import YAML
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.params import Params, parse

from tests.helpers import values


def make(folder: Path, **overrides) -> Params:
    """Write params.yaml, shards and features to `folder`, the current one; returns the parameters.

    Pixels are the images, the others are class centres under noise: little in `method`, least in `supervised`.
    """
    chosen = {"data__cache": "none", "tracking__enabled": False} | overrides
    YAML().dump(values(**chosen), folder / "params.yaml")
    params = parse(Params, values(**chosen))
    write(params.data, params.seed, folder / "data/shards", processes=1)
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 16))
    places = {
        "pretrained": ({"method": "simclr", "backbone": "conv"}, 1.0),
        "baselines/pixels": ({}, None),
        "baselines/conv/random": ({}, 2.5),
        "baselines/conv/supervised": ({}, 0.6),
    }
    splits = {name: open_split(folder / "data/shards", name, params.data) for name in ("train", "validation", "test")}
    for place, (meta, noise) in places.items():
        (folder / "features" / place).mkdir(parents=True)
        (folder / "features" / place / "meta.json").write_text(json.dumps(meta))
        for name, split in splits.items():
            if noise is None:
                images = split.gather(np.arange(split.samples))["image"].numpy()
                features = images.reshape(len(images), -1) / 255
            else:
                features = centres[split.labels] + noise * rng.normal(size=(split.samples, 16))
            np.save(folder / "features" / place / f"{name}.npy", features.astype(np.float32))
    return params
