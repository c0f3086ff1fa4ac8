"""Digests that identify what a figure was computed from: the first 16 hexadecimal digits of SHA-256."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from selfsup.params import Params

_DIGITS = 16


def of_files(*paths: Path) -> str:
    """Digest of the contents of files, in this order. Raises `OSError`."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:_DIGITS]


def of_arrays(*arrays: np.ndarray) -> str:
    """Digest of arrays with their types and shapes, in this order."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(f"{array.dtype.str} {array.shape};".encode())
        whole.update(np.ascontiguousarray(array).data)
    return whole.hexdigest()[:_DIGITS]


def of_values(values: Any) -> str:
    """Digest of plain data: numbers, texts, lists, and dictionaries in any order."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:_DIGITS]


def same_training(params: Params, method: str, run: Mapping[str, Any]) -> bool:
    """Whether metrics/pretrain.json, `run`, is of a training with these parameters; also where it does not say."""
    origin = run.get("computed_from", {})
    kind = origin.get("kind", "image")  # earlier versions knew no other
    return "parameters" not in origin or origin["parameters"] == of_training(params, method, kind, run["backbone"])


def of_training(params: Params, method: str, kind: str, architecture: str) -> str:
    """Digest of the parameters that, with the seed and the shards, decide the weights of a training of `method`.

    `kind` is the method's kind of data, `architecture` the name of its block under `backbones`. Raises `UserError`
    where params.yaml has no block for the kind.
    """
    block = params.backbones.get(architecture)
    decided = params.model_dump(include={"views", "pretrain"}) | {"knobs": params.methods[method]}
    return of_values(
        decided | {"backbone": block and block.model_dump(), "reads": params.data.of(kind).read(), "kind": kind}
    )
