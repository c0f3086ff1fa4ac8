"""Equations compute at full precision whatever the autocast."""

import functools
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")


def full_precision(equation: Callable[P, R]) -> Callable[P, R]:
    """Make `equation` compute in float32 or better: autocast is off, and half-precision inputs are raised to float32.

    float64 stays float64. Inputs are the tensors among the arguments, and those in lists, tuples and mappings there.
    """

    @functools.wraps(equation)
    def computed(*args: P.args, **kwargs: P.kwargs) -> R:
        devices: set[str] = set()
        args, kwargs = _raised(args, devices), _raised(kwargs, devices)
        with ExitStack() as stack:
            for device in devices:
                stack.enter_context(torch.autocast(device, enabled=False))
            return equation(*args, **kwargs)

    return computed


def _raised(value: Any, devices: set[str]) -> Any:
    """`value` with its half-precision tensors as float32; the kinds of device of all its tensors go into `devices`."""
    if isinstance(value, Tensor):
        devices.add(value.device.type)
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, list | tuple):
        return type(value)(_raised(part, devices) for part in value)
    if isinstance(value, Mapping):
        return {name: _raised(part, devices) for name, part in value.items()}
    return value
