"""Digests that identify what a figure was computed from: the first 16 hexadecimal digits of SHA-256."""

from __future__ import annotations

import hashlib
import json
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


def of_training(params: Params, method: str) -> str:
    """Digest of the parameters that, with the seed and the images, decide the weights of a training of `method`."""
    decided = params.model_dump(include={"backbones", "views", "pretrain"}) | {"knobs": params.methods[method]}
    return of_values(decided | {"sizes": [params.data.image_size, params.data.store_size]})
