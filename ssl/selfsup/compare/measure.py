"""Measure a few dozen steps of one training, and what follows it, in a process of its own.

    python -I measure.py < request.json > measured.json

Nothing but the working folder is written to. `request.json` has `values`, all parameters of the run; `shards`, the
folder of its shards; `evaluate`, whether to measure the protocols too; `at`, when the process was started.
"""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

FIRST = 5  # steps that are not counted: memory is allocated, and caches are filled
STEPS = 30  # that are counted, or one interval of the curves where that is longer
PATIENCE = 60  # seconds after which the steps that were counted must do


class Enough(Exception):
    """Ends the training."""


def main() -> None:
    request = json.load(sys.stdin)
    said, sys.stdout = sys.stdout, sys.stderr  # protocols print
    from selfsup.errors import one_line_errors

    with one_line_errors():
        json.dump(measured(request), said)


def measured(request: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds, bytes and counts of one run; `steps` is how many it has."""
    from selfsup.config import parse
    from selfsup.data.loader import open_splits
    from selfsup.params import Params
    from selfsup.processes.memory import peak_memory
    from selfsup.training.build import build_task, method_params
    from selfsup.training.schedule import planned_steps

    params = parse(Params, request["values"])
    block = method_params(params, params.method)
    splits = open_splits(params.data, Path(request["shards"]), verified=True)
    task = build_task(params, params.method, block, splits["train"])
    found: dict[str, Any] = {"start": time.time() - request["at"]}
    found |= trained(task, params, block, splits)
    found |= {
        "steps": planned_steps(splits["train"].samples, params.pretrain),
        "epochs": params.pretrain.epochs,
        "memory": peak_memory()["peak_memory_process"],
        "weights": sum(x.nbytes for x in task.state_dict().values()),
        "samples": {name: split.samples for name, split in splits.items()},
        "every": getattr(block, "every", 1),  # epochs between two sweeps
    }
    return found | (judged(task, params, splits) if request["evaluate"] else {})


def trained(task: Any, params: Any, block: Any, splits: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of a step, of what an epoch begins with, and of a reading during training."""
    from selfsup.processes.accelerator import make_accelerator
    from selfsup.training.loop import Plan, train
    from selfsup.training.probe import knn_probe

    ends: list[float] = []
    sweeps: list[float] = []  # of the epochs that have one
    spent: list[tuple[float, float]] = []  # by epoch: when its first step began, and the seconds until then
    every = getattr(block, "every", 1)
    begin, after, start = time.monotonic(), task.after_step, task.start_epoch

    def start_epoch(progress: Any, *given: Any) -> Any:
        now = time.monotonic()
        found = start(progress, *given)
        spent.append((time.monotonic(), time.monotonic() - now))
        if progress.epoch % every == 0:
            sweeps.append(spent[-1][1])
        return found

    def after_step(*given: Any) -> None:
        after(*given)
        ends.append(time.monotonic())
        counted = len(ends) - FIRST
        if counted >= max(STEPS, params.pretrain.log_every) or (counted > 0 and ends[-1] - begin > PATIENCE):
            raise Enough

    task.start_epoch, task.after_step = start_epoch, after_step
    resume = Path(tempfile.mkdtemp(dir="."))
    plan = Plan(params.seed, params.pretrain, block.optimizer, resume)
    accelerator = make_accelerator(params.pretrain.precision)
    with contextlib.suppress(Enough):
        train(task, splits["train"], plan, accelerator)
    counted = ends[min(FIRST, len(ends) - 2) :] if len(ends) > 1 else [begin, *ends]
    probe, reading = knn_probe(splits["train"], splits["validation"]), 0.0
    if probe is not None and params.pretrain.knn_every:
        now = time.monotonic()
        probe(task.encoder())
        reading = time.monotonic() - now
    between = sum(took for at, took in spent if counted[0] < at <= counted[-1])
    step = (counted[-1] - counted[0] - between) / max(1, len(counted) - 1)
    return {"step": step, "sweep": statistics.mean(sweeps) if sweeps else 0.0, "reading": reading}


def judged(task: Any, params: Any, splits: Mapping[str, Any]) -> dict[str, Any]:
    """Seconds of the features of all samples, and of each protocol on them; `None`: one that needs something else."""
    import torch

    from selfsup.evaluation import protocols
    from selfsup.features.encode import encode
    from selfsup.features.store import Splits

    device = next(task.parameters()).device
    now = time.monotonic()
    features = Splits(*(encode(task.encoder(), splits[name], device).cpu().numpy() for name in Splits._fields))
    torch.cuda.synchronize() if torch.cuda.is_available() else None
    found: dict[str, Any] = {"extract": time.monotonic() - now, "width": features.train.shape[1], "protocols": {}}
    given = {"features": features, "labels": Splits(*(splits[name].labels for name in Splits._fields))}
    for name in params.evaluation.listed:
        protocol, block = protocols.chosen(name, params.evaluation)
        found["protocols"][name] = None
        if protocol.needs <= set(given):
            now = time.monotonic()
            protocol.run(**{need: given[need] for need in protocol.needs}, params=block, seed=params.seed)
            found["protocols"][name] = time.monotonic() - now
    return found


if __name__ == "__main__":
    main()
