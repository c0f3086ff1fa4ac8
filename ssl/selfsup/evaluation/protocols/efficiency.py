"""What a network costs: parameters, operations, speed and memory of inference.

Speed is measured, so it differs between two runs and between machines: read it as cost, and compare rows of one run.
The other figures are counts and do not differ.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Iterable
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from selfsup.config import Strict
from selfsup.evaluation import inside
from selfsup.evaluation.networks import ImageSplits
from selfsup.evaluation.result import Metric, Result

TITLE = "efficiency"
NEEDS = {"encoder", "images"}
REPEATABLE = False


class Params(Strict):
    batch: PositiveInt  # images in one pass
    passes: PositiveInt  # timed passes; the fastest counts


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are alive at the same time: those `held`, and those made while it is active.

    What a kernel needs for itself while it runs is not counted.
    """

    def __init__(self, held: Iterable[Tensor]):
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0
        for x in held:
            self._note(x.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._note(x.untyped_storage())
        return out

    def _note(self, storage: Any) -> None:
        key = storage._cdata
        if key not in self.alive:
            self.alive[key] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, key, None)
            self.peak = max(self.peak, sum(self.alive.values()))


def run(encoder: nn.Module, images: ImageSplits, params: Params, seed: int) -> Result:  # noqa: ARG001 nothing is drawn
    """The metrics are `parameters`, `mflops` per image, `images_per_second` and `memory` in MB for one batch.

    Raises `Unfit` for a representation without a network.
    """
    inside.network(encoder)
    _, views = next(images.test.batches(params.batch))
    mega = 1e6
    figures = {
        "images_per_second": (speed(encoder, views, params.passes), "images per second", True),
        "parameters": (sum(x.numel() for x in encoder.parameters()), "parameters", False),
        "mflops": (flops(encoder, views[:1]) / mega, "million FLOPs per image", False),
        "memory": (peak(encoder, views) / mega, f"peak memory, MB for {len(views)} images", False),
    }
    metrics = {
        key: Metric(float(value), title, "none", higher, judged=False)
        for key, (value, title, higher) in figures.items()
    }
    device = torch.cuda.get_device_name() if views.is_cuda else f"the CPU with {torch.get_num_threads()} thread(s)"
    return Result(metrics, notes=[f"images per second are measured, on {device}, and differ between two runs"])


@torch.no_grad()
def speed(encoder: nn.Module, views: Tensor, passes: int) -> float:
    """Images per second in the fastest of `passes`, after one that is not timed: other work only slows one down."""
    seconds = []
    for _ in range(passes + 1):
        start = time.perf_counter()
        encoder(views)
        if views.is_cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return len(views) / min(seconds[1:])


@torch.no_grad()
def flops(encoder: nn.Module, views: Tensor) -> int:
    """Floating point operations of one pass, two for each multiplication with addition.

    Matrix products, convolutions and attention are counted; norms and activations are not.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        encoder(views)
    return counter.get_total_flops()


@torch.no_grad()
def peak(encoder: nn.Module, views: Tensor) -> int:
    """Bytes that one pass holds at the same time at most: weights, buffers, its input and what it computes."""
    with Memory([*encoder.parameters(), *encoder.buffers(), views]) as memory:
        encoder(views)
    return memory.peak
