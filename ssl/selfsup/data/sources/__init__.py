"""One module per source, found by its name. It declares two functions of the block `data.<kind>`:

    listing(data, scratch) -> Source    the samples and a function that reads one; remote files are copied to `scratch`
    watched(data) -> Watched            its files outside the project, which DVC does not track

Both raise `UserError`. `data/source.py` has the types.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from selfsup.blocks import KindData
from selfsup.data.source import Source
from selfsup.errors import UserError

DECLARED = ("listing", "watched")


def find(name: str) -> Any:
    """The module of a source. Raises `UserError`: no such module, or a declaration is missing."""
    try:
        module = import_module(f"selfsup.data.sources.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"selfsup.data.sources.{name}":
            raise
        raise UserError(f"data: no source {name}; there is no file data/sources/{name}.py") from None
    if missing := [each for each in DECLARED if not hasattr(module, each)]:
        raise UserError(
            f"data/sources/{name}.py: {', '.join(missing)} missing; a source declares {', '.join(DECLARED)}"
        )
    return module


def open_source(data: KindData, scratch: Path) -> Source:
    """List the samples of the source that `data` names, without labels where it says so. Raises `UserError`."""
    source: Source = find(data.source).listing(data, scratch)
    if data.labels == "none":
        source.classes = []
        for samples in source.splits.values():
            samples.labels = np.full(len(samples.names), -1)
    return source
