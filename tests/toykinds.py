"""A kind of data that the package does not have: short sequences of whole numbers, in files that lie in `toykind/`.

The folder mirrors the package. Copied over it, the files make the kind known; no file of the package says its name.
"""

import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest

import selfsup
from selfsup import methods, params
from selfsup.blocks import models

TOYS = Path(__file__).parent / "toykind"
BLOCK = {"source": "steps", "path": None, "length": 8}  # `data.sequence` of params.yaml
SGD = {"name": "sgd", "lr": 1.0, "momentum": 0.9, "weight_decay": 1e-4}
OWN = {"backbone": "numbers", "optimizer": SGD}
PARAMS = {  # what a user of the kind adds to params.yaml
    "data__sequence": BLOCK,
    "backbones__numbers": {"name": "numbers", "small_stem": False, "options": {"width": 16}},
    "methods__hidden_number": OWN | {"hidden": 2},
    "methods__same_sequence": OWN | {"temperature": 0.2, "projector": {"layers": 2, "hidden": 16, "out": 8}},
}


def mount(patch: pytest.MonkeyPatch) -> None:
    """Make the kind known in this process until `patch` is undone: each of its folders is part of a package's."""
    blocks = models()  # listed before the kind's folder is in the list
    for folder in sorted({path.parent for path in TOYS.rglob("*.py")}):
        package = import_module(".".join([selfsup.__name__, *folder.relative_to(TOYS).parts]))
        patch.setattr(package, "__path__", [*package.__path__, str(folder)])
    patch.setattr(params, "METHODS", methods.__path__)
    patch.setitem(blocks, "sequence", import_module("selfsup.blocks.sequence").Block)


def unmount() -> None:
    """Forget the kind's modules."""
    for name, module in list(sys.modules.items()):
        if name.startswith("selfsup.") and TOYS in Path(getattr(module, "__file__", None) or "/").parents:
            del sys.modules[name]


def copy_into(package: Path) -> None:
    """Add the kind's files to a copy of the package."""
    shutil.copytree(TOYS, package, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
