"""What methods see of samples, random or whole: one module or package per kind of data."""

from importlib import import_module
from typing import Any

from selfsup import kinds

DECLARED = ("plain", "view", "pictures", "suspicious")


def find(kind: str) -> Any:
    """What networks see of a kind of data. Raises `UserError`."""
    return kinds.checked("views", kind, lambda: import_module(f"selfsup.views.{kind}"), DECLARED)
