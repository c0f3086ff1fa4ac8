"""How the stages' MLflow runs hang together: one parent run a pipeline run, opened by pretrain, and a nested run a stage."""

import json
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfsup import tracking
from selfsup.params import Params
from selfsup.tracking import Run

RUN = Path("models/pretrained/run.json")


def _tags(checksum: str) -> dict[str, Any]:
    import torch

    from selfsup.nn.distributed import world

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu"
    return {"data.checksum": checksum, "world_size": world(), "device": device}


@contextmanager
def single(params: Params, stage: str, chief: bool, checksum: str, values: Mapping[str, Any]) -> Iterator[Run]:
    """A run of its own, for a stage that does not depend on `method`. Only the chief process records."""
    if not chief:
        yield Run(None)
        return
    with tracking.start(params.tracking, stage, stage, values=values, tags=_tags(checksum)) as run:
        yield run


@contextmanager
def pipeline(params: Params, chief: bool, checksum: str, resume: Path) -> Iterator[Run]:
    """The parent run and, nested in it, pretrain's own; a pretraining that goes on after a kill goes on in both.

    Writes `run.json`, in which the later stages find the parent.
    """
    if not chief:
        yield Run(None)
        return
    note = resume / "run.json"
    old = json.loads(note.read_text()) if note.exists() else {"parent": None, "run": None}
    used = params.model_dump(exclude={"methods", "tracking"}) | {"knobs": params.methods[params.method]}
    name, tags = params.method, _tags(checksum)
    with tracking.start(params.tracking, "pipeline", name, resume=old["parent"], values=used, tags=tags) as parent:
        ids = {"parent": parent.id}
        with tracking.start(
            params.tracking, "pretrain", "pretrain", parent=parent.id, resume=old["run"], values=used, tags=tags
        ) as run:
            ids["run"] = run.id
            resume.mkdir(parents=True, exist_ok=True)
            note.write_text(json.dumps(ids) + "\n")
            yield run
        RUN.write_text(json.dumps(ids) + "\n")


@contextmanager
def nested(params: Params, stage: str, chief: bool = True) -> Iterator[Run]:
    """A run under the parent that pretrain opened."""
    parent = json.loads(RUN.read_text())["parent"] if chief else None
    if parent is None:
        yield Run(None)
        return
    with tracking.start(params.tracking, stage, stage, parent=parent) as run:
        yield run


def summarise(params: Params, values: Mapping[str, float]) -> None:
    """Put a stage's headline numbers on the parent run, where runs are compared."""
    parent = json.loads(RUN.read_text())["parent"]
    if parent is not None:
        with tracking.start(params.tracking, "pipeline", params.method, resume=parent) as run:
            run.metrics(values, 0)
