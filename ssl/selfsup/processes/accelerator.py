"""Accelerate's `Accelerator`, set up for this package."""

import os
import warnings
from datetime import timedelta
from typing import Any

import torch

from selfsup.errors import UserError
from selfsup.processes.allocator import keep_freed_memory


def rank_timeout() -> timedelta:
    """How long processes wait for one that does not answer: RANK_TIMEOUT seconds (600). Raises `UserError`."""
    seconds = os.environ.get("RANK_TIMEOUT", "600")
    if not seconds.isdigit() or int(seconds) < 1:
        raise UserError(f"RANK_TIMEOUT={seconds}: must be a whole number of seconds from 1")
    return timedelta(seconds=int(seconds))


def make_accelerator(precision: str) -> Any:
    """An `Accelerator`: devices, processes and precision. Raises `UserError` for fp16 without CUDA."""
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("pretrain.precision: fp16 needs a CUDA device; use fp32 or bf16 here")
    keep_freed_memory()
    # Its replacement is missing from some versions of torch that are allowed here.
    warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision={"fp32": "no"}.get(precision, precision),
        # No broadcast: by construction all ranks hold the same buffers, except those that a method keeps per rank.
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=rank_timeout()),
        ],
    )
