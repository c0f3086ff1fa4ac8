"""One module per kind of data, found by its name: how its files become samples. `data/format.py` has the contract."""

from importlib import import_module
from typing import cast

from selfsup.data.format import Format
from selfsup.errors import UserError

DECLARED = ("VERSION", "Facts", "Intake", "decoder", "equality", "thumbnail")


class NoFormat(UserError):
    """There is no module of a kind of data, or it lacks a declaration."""


def find(kind: str) -> Format:
    """The format of a kind of data. Raises `NoFormat`: no such module, or a declaration is missing."""
    try:
        module = import_module(f"selfsup.data.formats.{kind}")
    except ModuleNotFoundError as error:
        if error.name != f"selfsup.data.formats.{kind}":
            raise
        raise NoFormat(f"data.{kind}: no kind of data; there is no file data/formats/{kind}.py") from None
    if missing := [name for name in DECLARED if not hasattr(module, name)]:
        raise NoFormat(f"data/formats/{kind}.py: {', '.join(missing)} missing; a format declares {', '.join(DECLARED)}")
    return cast(Format, module)
