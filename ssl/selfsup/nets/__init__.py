"""Backbones: one module per kind of data, and how they leave the project."""

from importlib import import_module
from typing import Any

from selfsup import kinds

DECLARED = ("build_backbone", "check_backbone", "Raw", "export_backbone")


def find(kind: str) -> Any:
    """The networks of a kind of data. Raises `UserError`."""
    return kinds.checked("nets", kind, lambda: import_module(f"selfsup.nets.{kind}"), DECLARED)
