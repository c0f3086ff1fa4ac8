"""How the stages' MLflow runs hang together: pretrain opens one parent run, every later stage a run nested in it."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup import tracking
from selfsup.params import Params
from selfsup.tracking import Run

RUN = Path("models/pretrained/run.json")


def _tags(checksum: str) -> dict[str, Any]:
    torch = sys.modules.get("torch")  # a stage that does without it has one process on a CPU
    gpu = torch is not None and torch.cuda.is_available()
    processes = torch.distributed.get_world_size() if torch is not None and torch.distributed.is_initialized() else 1
    device = torch.cuda.get_device_name() if torch is not None and gpu else "cpu"
    return {"data.checksum": checksum, "world_size": processes, "device": device}


@contextmanager
def single(params: Params, stage: str, chief: bool, values: Mapping[str, Any], checksum: str = "") -> Iterator[Run]:
    """A run of its own, for a stage that does not depend on `method`. Only the chief process records."""
    if not chief:
        yield Run(None, None)
        return
    with tracking.start(params.tracking, stage, stage, values=values, tags=_tags(checksum)) as run:
        yield run


@dataclass(frozen=True)
class Resumable:
    """Pretrain's run and its parent."""

    parent: Run
    run: Run

    def save(self, path: Path) -> None:
        """Note both, for later stages and for a pretraining that goes on after a kill."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"parent": self.parent.key, "run": self.run.key}) + "\n")
        part.replace(path)


@contextmanager
def pipeline(params: Params, chief: bool, checksum: str, resume: Path) -> Iterator[Resumable]:
    """The parent run and, nested in it, pretrain's own; a pretraining that goes on after a kill goes on in both."""
    note = resume / "run.json"
    if not chief:
        yield Resumable(Run(None, None), Run(None, None))
        return
    old = json.loads(note.read_text()) if note.exists() else {"parent": None, "run": None}
    used = params.model_dump(exclude={"methods", "tracking"}) | {"knobs": params.methods[params.method]}
    tags = _tags(checksum)
    with (
        tracking.start(params.tracking, "pipeline", params.method, None, old["parent"], used, tags) as parent,
        tracking.start(params.tracking, "pretrain", "pretrain", parent, old["run"], used, tags) as run,
    ):
        both = Resumable(parent, run)
        both.save(note)
        yield both


@contextmanager
def nested(params: Params, stage: str, chief: bool = True) -> Iterator[Run]:
    """A run under the parent that pretrain opened."""
    parent = json.loads(RUN.read_text())["parent"] if chief else None
    if parent is None:
        yield Run(None, None)
        return
    with tracking.start(params.tracking, stage, stage, parent=parent) as run:
        yield run


def summarise(params: Params, values: Mapping[str, float]) -> None:
    """Put a stage's headline numbers on the parent run, where runs are compared."""
    parent = json.loads(RUN.read_text())["parent"]
    if parent is not None:
        with tracking.start(params.tracking, "pipeline", params.method, resume=parent) as run:
            run.metrics(values, 0)
