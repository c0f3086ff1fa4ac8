"""A kind of data that the package does not have: short sequences of whole numbers, in files that lie in `toykind/`.

The folder mirrors the package. Copied over it, the files make the kind known; no file of the package says its name.
"""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

import selfsup
from selfsup.blocks import BLOCKS

TOYS = Path(__file__).parent / "toykind"
BLOCK = {"source": "steps", "path": None, "length": 8}  # `data.sequence` of params.yaml


def mount(patch: pytest.MonkeyPatch) -> None:
    """Make the kind known in this process until `patch` is undone: each of its folders is part of a package's."""
    for folder in sorted({path.parent for path in TOYS.rglob("*.py")}):
        package = import_module(".".join([selfsup.__name__, *folder.relative_to(TOYS).parts]))
        patch.setattr(package, "__path__", [*package.__path__, str(folder)])
    patch.setitem(BLOCKS, "sequence", import_module("selfsup.blocks.sequence").Block)


def unmount() -> None:
    """Forget the kind's modules."""
    for name, module in list(sys.modules.items()):
        if name.startswith("selfsup.") and TOYS in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


def copy_into(package: Path) -> None:
    """Add the kind's files to a copy of the package."""
    shutil.copytree(TOYS, package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
