"""What the chosen method needs of data and backbone, as files that the stages depend on in place of `method`.

The stage `check` writes them and leaves them as they are when nothing in them changes. So another method of the same
kind and architecture reruns neither `shard` nor `baseline`, and a change of a backbone that no run uses reruns nothing.
"""

import json
from pathlib import Path
from typing import Any

from selfsup.blocks import KindData, models
from selfsup.config import parse
from selfsup.errors import UserError, missing
from selfsup.files import write_json
from selfsup.params import Params

SHARDS = Path("data/needs/shards.json")
BACKBONE = Path("data/needs/backbone.json")
READING = {"verify": "full", "cache": "none"}  # how shards are read: no part of what is written


def write(params: Params, kind: str, architecture: str, root: Path = Path()) -> None:
    """Write both files below `root`, the project's.

    `shards.json` has the kind, of its block what networks read (`reads`), and all keys that decide what is sharded.
    `backbone.json` has the architecture's name and block.
    """
    data = params.data.of(kind)
    values = data.model_dump(mode="json", exclude=set(READING))
    write_json(root / SHARDS, {"kind": kind, "reads": data.read(), "data": values})
    write_json(
        root / BACKBONE, {"name": architecture, "backbone": params.backbones[architecture].model_dump(mode="json")}
    )


def data() -> KindData:
    """The keys of `data` that decide what is sharded, from `shards.json`. Raises `UserError`."""
    values = _read(SHARDS)
    model = models().get(str(values.get("kind")))
    if model is None or not isinstance(values.get("data"), dict):
        raise _damaged(SHARDS)
    return parse(model, values["data"] | READING, prefix="data", file=str(SHARDS))


def architecture() -> str:
    """The name of the chosen method's block under `backbones`, from `backbone.json`. Raises `UserError`."""
    name = _read(BACKBONE).get("name")
    if not isinstance(name, str):
        raise _damaged(BACKBONE)
    return name


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise missing(path) from None
    except ValueError:
        values = None
    if not isinstance(values, dict):
        raise _damaged(path)
    return values


def _damaged(path: Path) -> UserError:
    return UserError(f"{path}: damaged or edited; run `dvc repro --force --single-item check` to write it again")
