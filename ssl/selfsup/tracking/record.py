"""Which MLflow run a stage is recorded in: one parent run per experiment, and one nested run per stage.

Pretraining opens a parent run with its parameters. The first evaluation of its weights with the same parameters is
recorded in this parent. Any other evaluation of the weights (other parameters, features of baselines or code) opens a
new parent with its own parameters; its tag `training` is the id of the training's parent. The files in .cache/runs
record which parent belongs to which weights. They are outside of everything that DVC hashes, because two trainings that
end with the same bits have the same output. A stage that is repeated, after a kill or by force, continues its run. The
content of a finished run is never changed.
"""

import json
import os
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfsup import digests
from selfsup.files import write_json
from selfsup.imports import PACKAGE, closure
from selfsup.params import Params
from selfsup.tracking import runs as tracking
from selfsup.tracking.runs import Run

NOTHING = Run(None, None)


def _tags(checksum: str) -> dict[str, Any]:
    torch = sys.modules.get("torch")  # a stage without torch is one process on a CPU
    gpu = torch is not None and torch.cuda.is_available()
    processes = torch.distributed.get_world_size() if torch is not None and torch.distributed.is_initialized() else 1
    device = torch.cuda.get_device_name() if torch is not None and gpu else "cpu"
    return {"data.checksum": checksum, "world_size": processes, "device": device}


def _used(params: Params) -> dict[str, Any]:
    """The parameters that are recorded in a parent run."""
    return params.model_dump(exclude={"methods", "tracking"}) | {"knobs": params.methods[params.method]}


def _keys(resume: Path, *names: str) -> dict[str, str]:
    """Keys of runs, by name. A training that resumes from the folder `resume` continues the same runs."""
    note = resume / "run.json"
    if not note.exists():
        note.parent.mkdir(parents=True, exist_ok=True)
        write_json(note, {name: uuid.uuid4().hex for name in names})
    return json.loads(note.read_text())


@contextmanager
def single(
    params: Params, stage: str, chief: bool, values: Mapping[str, Any], checksum: str = "", resume: Path | None = None
) -> Iterator[Run]:
    """A run without a parent, for a stage that does not depend on `method`. Only the chief process records."""
    if not chief or not params.tracking.enabled:
        yield NOTHING
        return
    key = _keys(resume, "run")["run"] if resume else None
    with tracking.start(params.tracking, stage, stage, None, key, values, _tags(checksum)) as run:
        yield run


@contextmanager
def training(params: Params, chief: bool, checksum: str, resume: Path) -> Iterator[tuple[Run, Run]]:
    """The parent run of a training and, nested in it, the run of the stage. A resumed training continues both."""
    if not chief or not params.tracking.enabled:
        yield NOTHING, NOTHING
        return
    keys, values, tags = _keys(resume, "parent", "run"), _used(params), _tags(checksum)
    with (
        tracking.start(params.tracking, "pipeline", params.method, None, keys["parent"], values, tags) as parent,
        tracking.start(params.tracking, "pretrain", "pretrain", parent, keys["run"], values, tags) as run,
    ):
        yield parent, run


def trained(params: Params, parent: Run, weights: str) -> None:
    """Record for later stages which training the weights with this digest come from."""
    if parent.key is not None:
        with _notes(weights) as notes:
            own = {"parent": parent.key, "values": digests.of_values(_used(params))}
            notes["trainings"] = [one for one in notes["trainings"] if one != own] + [own]


@contextmanager
def nested(
    params: Params, stage: str, weights: str, origin: Mapping[str, Any] | None = None, chief: bool = True
) -> Iterator[tuple[Run, Run]]:
    """The parent run of a stage after pretraining, and a run of the stage nested in it.

    `weights` is the digest of the weights that the stage reads. `origin` describes everything that the figures of an
    evaluation are computed from, by protocol. None: the stage belongs to the training.
    """
    if not chief or not params.tracking.enabled:
        yield NOTHING, NOTHING
        return
    key, trained_by = _parent(weights, digests.of_values(_used(params)), origin)
    code = sorted([*PACKAGE.rglob("*.py"), *(PACKAGE.parents[1] / "stages").glob("*.py")])
    own = digests.of_values([key, stage, digests.of_files(*code)])
    tags = {"weights": weights}
    with (
        tracking.start(
            params.tracking, "pipeline", params.method, None, key, _used(params), tags, training=trained_by
        ) as parent,
        tracking.start(params.tracking, stage, stage, parent, own) as run,
    ):
        yield parent, run


def _parent(weights: str, values: str, origin: Mapping[str, Any] | None) -> tuple[str, str | None]:
    """The key of the parent run, and the key of the training's parent if that is another run."""
    with _notes(weights) as notes:
        if not notes["trainings"]:  # trained without tracking, or on another machine
            notes["trainings"].append({"parent": uuid.uuid4().hex, "values": values})
        alike = [one["parent"] for one in notes["trainings"] if one["values"] == values]
        source = alike[-1] if alike else notes["trainings"][-1]["parent"]
        if origin is None:
            return source, None
        evaluations = notes["evaluations"]
        code = closure([PACKAGE / "evaluation/run.py"], {"protocols": list(origin)})
        identity = digests.of_values([origin, digests.of_files(*sorted(code))])
        if identity not in evaluations:
            free = alike and alike[-1] not in evaluations.values()
            evaluations[identity] = alike[-1] if free else uuid.uuid4().hex
        parent = evaluations[identity]
        return parent, None if parent in (one["parent"] for one in notes["trainings"]) else source


@contextmanager
def _notes(weights: str) -> Iterator[dict[str, Any]]:
    """The recorded runs that trained or evaluated these weights. Changes to the dictionary are saved."""
    from filelock import FileLock

    path = Path(os.environ.get("DVC_ROOT", "."), ".cache", "runs", f"{weights}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        notes = json.loads(path.read_text()) if path.exists() else {"trainings": [], "evaluations": {}}
        yield notes
        write_json(path, notes)
