"""One training run of a stage: its resume folder, its lock, its kNN probe and what it tells the tracker."""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import Timeout

from selfsup import digests, methods
from selfsup.about import ANY
from selfsup.data.loader import Split
from selfsup.imports import PACKAGE, closure
from selfsup.nn.distributed import rank, world
from selfsup.params import MethodParams, Params
from selfsup.processes.memory import peak_memory
from selfsup.task import Task
from selfsup.training import resume
from selfsup.training.build import build_task, short_run
from selfsup.training.loop import Plan, Result, train
from selfsup.training.probe import knn_probe

_log = logging.getLogger(__name__)


def code_checksum(method: str, package: Path = PACKAGE) -> str:
    """SHA-256 of the code that decides a run's weights and features: all that this file and the method import.

    What other code left unfinished is not resumed.
    """
    names = ("training/session.py", "training/encoders.py", "features/writer.py", f"methods/{method}.py")
    starts = [package / name for name in names]
    kind = methods.find(method)[1].about.kind
    files = sorted(closure(starts, {"methods": [method], **choices(kind)}, package))
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()


def choices(kind: str) -> dict[str, list[str]]:
    """The modules of a kind of data, by folder; all modules for `ANY`."""
    return {} if kind == ANY else {folder: [kind] for folder in ("formats", "views", "nets")}


def identity(params: Params, method: str, architecture: str, checksum: str) -> dict[str, Any]:
    """All that a run's checkpoints depend on: parameters, data and code, not hardware."""
    reads = params.data.of(methods.kind_of(method, params)).read()
    return {
        "seed": params.seed,
        "method": method,
        f"methods.{method}": params.methods[method],
        "data": [checksum, *reads.values()],
        "code": code_checksum(method),
        "backbone": params.backbones[architecture].model_dump(),
        **{name: getattr(params, name).model_dump() for name in ("views", "pretrain")},
    }


def resume_folder(root: Path, stage: str, params: Params, method: str, architecture: str, checksum: str) -> Path:
    """Where exactly this run keeps its checkpoints, a function of its `identity`."""
    return _folder(root, stage, identity(params, method, architecture, checksum))


def raw_folder(root: Path, split: Split, package: Path = PACKAGE) -> Path:
    """Where the features that are the samples themselves are kept until they are whole, a function of data and code."""
    starts = [package / "features" / "writer.py", package / "nets" / "__init__.py"]
    files = closure(starts, choices(split.kind), package)
    values = {"data": [split.checksum, *split.data.read().values()], "code": digests.of_files(*sorted(files))}
    return _folder(root, "pixels", values)


def _folder(root: Path, stage: str, values: Mapping[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    return root / resume.PLACE / f"{stage}-{digest[:16]}"


def begin(folder: Path, params: Params, method: str, architecture: str, checksum: str) -> None:
    """Note in the folder, on the first process, what it belongs to."""
    if rank() == 0:
        of = identity(params, method, architecture, checksum)
        resume.begin(folder, {"stage": folder.name.rpartition("-")[0], **of})


@contextmanager
def owned(folder: Path, role: str = "run") -> Iterator[None]:
    """Hold the folder's lock of that role, which ends with the process; log and wait while another process has it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = resume.lock(folder, role)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _log.warning("%s: another process runs exactly this configuration; waiting for its end", folder)
        lock.acquire(poll_interval=0.5)
    try:
        yield
    finally:
        lock.release()


def run(
    params: Params,
    method: str,
    block: MethodParams,
    splits: Mapping[str, Split],
    folder: Path,
    title: str,
    log: Callable[[Mapping[str, float], int], None],
    accelerator: Any,
) -> tuple[Task, Result]:
    """Build `method` and train it; the checkpoints stay in `folder` until `finished`."""
    split = splits["train"]
    if rank() == 0 and (note := short_run(params, method, block)):
        _log.info(note)
    task = build_task(params, method, block, split)
    begin(folder, params, method, block.backbone, split.checksum)
    plan = Plan(
        seed=params.seed,
        pretrain=params.pretrain,
        optimizer=block.optimizer,
        resume=folder,
        title=title,
        log=log,
        probe=knn_probe(split, splits["validation"]),
    )
    return task, train(task, split, plan, accelerator)


def finished(folder: Path) -> None:
    """The outs are written: the checkpoints have served."""
    shutil.rmtree(folder, ignore_errors=True)


def summary(task: Task, result: Result, method: str, architecture: str, params: Params, images: str) -> dict:
    """The contents of `metrics/*.json` for a training on shards with the checksum `images`: equal for equal weights.

    `computed_from` tells by digests which samples and parameters decided the weights.
    """
    last = {name: round(value, 6) for name, value in (result.rows[-1] if result.rows else {}).items()}
    return {
        "method": method,
        "seed": params.seed,
        "computed_from": {
            "images": images,
            "kind": (kind := methods.kind_of(method, params)),
            "parameters": digests.of_training(params, method, kind, architecture),
        },
        "backbone": architecture,
        "epochs": params.pretrain.epochs,
        "steps": result.steps,
        "parameters": sum(p.numel() for p in task.encoder().parameters()),
        "skipped_steps": result.skipped,
        "alarm": result.alarm,
        "loss": last.pop("loss", None),
        "last": {name: value for name, value in last.items() if name not in ("step", "epoch", "lr")},
    }


def times(result: Result) -> dict:
    """The contents of `metrics/times/*.json`: figures that differ between two runs with the same weights.

    Peak memory is in bytes, of the first process since it last started.
    """
    return {
        "seconds": round(result.seconds, 1),
        "images_per_second": round(result.images_per_second, 1),
        **peak_memory(),
        "world_size": world(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }
