"""One module per kind of data, found by its name: how its files become samples. `data/format.py` has the contract."""

from importlib import import_module
from typing import cast

from selfsup import kinds
from selfsup.data.format import Format

DECLARED = ("VERSION", "Facts", "Intake", "decoder", "equality", "thumbnail")


def find(kind: str) -> Format:
    """The format of a kind of data. Raises `UserError`."""
    found = kinds.checked("data/formats", kind, lambda: import_module(f"selfsup.data.formats.{kind}"), DECLARED)
    return cast(Format, found)
