"""What several tests share: parameters with overrides, a small data set, processes that start fast."""

import copy
import functools
import multiprocessing
import os
import pickle
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from selfsup.config import parse
from selfsup.params import Params
from selfsup.processes.launch import free_port

ROOT = Path(__file__).parent.parent
METHODS = sorted(  # all but those of other kinds of data than images, which the tests' data are
    path.stem
    for path in (ROOT / "ssl/selfsup/methods").glob("[!_]*.py")
    if not re.search(r'\bkind="(?!image")', path.read_text(encoding="utf-8"))
)


@functools.cache
def _defaults() -> dict[str, Any]:
    return YAML(typ="safe", pure=True).load(ROOT / "params.yaml")


def values(**overrides: Any) -> dict[str, Any]:
    """`params.yaml` with overrides given as `pretrain__epochs=3`."""
    out = copy.deepcopy(_defaults())
    for path, value in overrides.items():
        section = out
        *parents, last = path.split("__")
        for name in parents:
            section = section[name]
        section[last] = copy.deepcopy(value)
    return out


def params(**overrides: Any) -> Params:
    return parse(Params, copy.deepcopy(values(**overrides)))


NUMBERS = {  # of knobs by their name, in the methods' blocks
    "queue": 40,  # no multiple of the batch
    "negatives": 20,
    "examples": 3,
    "clusters": 12,
    "prototypes": 12,
    "outputs": 24,
    "dims": 8,
    "every": 1,
    "teacher_temperature": 0.07,
}
LARGEST = 32  # of all other whole numbers
CROPS = {"count": 4, "size": 8, "scale": [0.1, 0.3]}


def shrunk(knob: str, value: Any) -> Any:
    """The value of a method's knob, or of its whole block, with which a test takes a second on a hundred images.

    No rule names a method: heads, crops and numbers are known by what they hold, by their name, or by their size.
    """
    match value:
        case {"layers": _, "hidden": _, "out": _}:
            return value | {"layers": 2, "hidden": 32, "out": 16}
        case {"count": _, "size": _, "scale": _}:
            return CROPS
        case dict():
            return {name: shrunk(name, part) for name, part in value.items()}
        case bool():
            return value
    if knob.endswith(("_epoch", "_epochs")):
        return 0
    return NUMBERS.get(knob, min(value, LARGEST) if isinstance(value, int) else value)


SMALL = {  # networks and runs that take a second
    "backbones__conv__options": {"width": 4},
    "backbones__vit__options": {
        "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2,
        "class_token": False, "global_pool": "avg", "fc_norm": False,
    },
    **{f"methods__{method}": shrunk(method, block) for method, block in values()["methods"].items()},
    "views__solarize": [0.0, 0.2],
    "views__grey": 0.2,
    "views__flip": 0.5,
    "pretrain__batch_size": 32,
    "pretrain__epochs": 2,
    "pretrain__warmup_epochs": 0.1,
    "pretrain__log_every": 1,
    "pretrain__knn_every": 0,
    "data__cache": "memory",
}  # fmt: skip


def small(**overrides: Any) -> Params:
    return params(**(SMALL | overrides))


def _child(function: Callable, rank: int, world: int, port: int, arguments: tuple, queue: Any) -> None:
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    if world == 1:
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            del os.environ[name]
    try:
        result = function(*arguments)
        if rank == 0:
            queue.put(("ok", pickle.dumps(result)))  # bytes: tensors would be handed over by file descriptor
    except BaseException as error:
        queue.put(("error", f"rank {rank}: {error}\n{traceback.format_exc()}"))
        raise
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def processes(world: int, function: Callable, *arguments: Any, timeout: float = 240) -> Any:
    """Run `function(*arguments)` on `world` processes, one thread each; the result of rank 0.

    Returns None when a process was killed. Children are forked from a server that has imported torch already.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "timm", "selfsup.training.session", "accelerate", "sklearn.metrics"])
    queue = context.SimpleQueue()
    port = free_port()
    children = [
        context.Process(target=_child, args=(function, rank, world, port, arguments, queue)) for rank in range(world)
    ]
    for child in children:
        child.start()
    outcome = None
    deadline = time.monotonic() + timeout
    while any(child.is_alive() for child in children):
        if not queue.empty():
            outcome = queue.get()
            break
        if any(child.exitcode not in (None, 0) for child in children) or time.monotonic() > deadline:
            break
        time.sleep(0.02)
    if outcome is None and not queue.empty():
        outcome = queue.get()
    for child in children:
        if outcome is None or outcome[0] == "error":
            child.kill()
        child.join(timeout=60)
    if time.monotonic() > deadline:
        raise TimeoutError(f"{function.__name__} took more than {timeout} s on {world} processes")
    if outcome and outcome[0] == "error":
        print(outcome[1], file=sys.stderr)
        raise RuntimeError(outcome[1])
    return pickle.loads(outcome[1]) if outcome else None
