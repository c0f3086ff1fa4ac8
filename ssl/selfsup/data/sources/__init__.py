"""One module per source, found by its name. It declares two functions of the block `data.<kind>`:

    listing(data, scratch) -> Source    the samples and a function that reads one; remote files are copied to `scratch`
    watched(data) -> Watched            its files outside the project, which DVC does not track

Both raise `UserError`. `data/source.py` has the types.
"""

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from selfsup import kinds
from selfsup.blocks import KindData
from selfsup.data.source import Source

DECLARED = ("listing", "watched")


def find(name: str) -> Any:
    """The module of a source. Raises `UserError`."""
    return kinds.checked(
        "data/sources", name, lambda: import_module(f"selfsup.data.sources.{name}"), DECLARED, what="source"
    )


def open_source(data: KindData, scratch: Path) -> Source:
    """List the samples of the source that `data` names, without labels where it says so. Raises `UserError`."""
    source: Source = find(data.source).listing(data, scratch)
    if data.labels == "none":
        source.classes = []
        for samples in source.splits.values():
            samples.labels = np.full(len(samples.names), -1)
    return source
