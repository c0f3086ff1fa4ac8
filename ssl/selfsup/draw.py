"""Randomness as a pure function of (seed, epoch, sample id, use): no generator, no state, the same on every device.

The hash is splitmix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators", OOPSLA).
"""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

_GOLDEN, _MIX1, _MIX2 = (x - 2**64 for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64, whose own shift keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def splitmix64(x: Tensor) -> Tensor:
    """Hash int64 to int64, a bijection; multiplication wraps modulo 2^64."""
    x = x + _GOLDEN
    x = (x ^ _shift(x, 30)) * _MIX1
    x = (x ^ _shift(x, 27)) * _MIX2
    return x ^ _shift(x, 31)


@functools.cache
def _number(use: str) -> int:
    return int(splitmix64(torch.tensor(zlib.crc32(use.encode()))))


@functools.cache
def _columns(columns: tuple[tuple[str, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Use and step of each column, cached because copying them to a GPU would wait for it."""
    numbers = [_number(use) for use, n in columns for _ in range(n)]
    steps = torch.tensor([i for _, n in columns for i in range(n)], device=device) * _GOLDEN
    return torch.tensor(numbers, device=device), steps


def _unit(bits: Tensor) -> Tensor:
    """Uniform int64 -> uniform float32 in [0, 1)."""
    return _shift(bits, 40).to(torch.float32) * 2.0**-24


class Draw:
    """Random numbers of a batch of samples, one row per sample.

    The same (seed, epoch, id, use) gives the same numbers whatever the batch, its order, the process or the device.
    """

    def __init__(self, seed: int, epoch: int, ids: Tensor):
        """`ids` is int64 [B], the samples' numbers in the whole set."""
        start = splitmix64(splitmix64(torch.full_like(ids, seed)) + epoch)
        self.key = splitmix64(start + ids)  # [B]

    def fork(self, use: str) -> Draw:
        """Independent randomness of the same samples, such as that of a second view."""
        child = object.__new__(Draw)
        child.key = splitmix64(self.key ^ _number(use))
        return child

    def __getitem__(self, rows: slice | Tensor) -> Draw:
        """The randomness of some of the samples."""
        part = object.__new__(Draw)
        part.key = self.key[rows]
        return part

    def bits(self, use: str, *shape: int) -> Tensor:
        """Uniform int64 [B, *shape]."""
        index = torch.arange(math.prod(shape), device=self.key.device, dtype=torch.int64)
        return splitmix64(self.fork(use).key[:, None] + index * _GOLDEN).view(len(self.key), *shape)

    def uniform(self, use: str, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Uniform float32 [B, *shape] in [low, high), one of 2^24 equally likely values."""
        return low + (high - low) * _unit(self.bits(use, *shape))

    def uniforms(self, columns: Mapping[str, int]) -> dict[str, Tensor]:
        """`uniform(use, n)` [B, n] for several uses and their n, at about the cost of one call."""
        numbers, steps = _columns(tuple(columns.items()), self.key.device)
        bits = splitmix64(splitmix64(self.key[:, None] ^ numbers) + steps)
        return dict(zip(columns, _unit(bits).split(list(columns.values()), dim=1), strict=True))

    def bernoulli(self, use: str, p: float, *shape: int) -> Tensor:
        """Bool [B, *shape], true with probability p."""
        return self.uniform(use, *shape) < p

    def integers(self, use: str, high: int, *shape: int) -> Tensor:
        """Uniform int64 [B, *shape] in [0, high)."""
        return _shift(self.bits(use, *shape), 1) % high

    def place(self) -> Tensor:
        """Numbers, int64 [B], that rise in the order in which an epoch visits the samples: see `epoch_order`."""
        return self.fork("order").key

    def permutation(self, use: str, n: int) -> Tensor:
        """A random order of 0..n-1 for every sample, int64 [B, n]."""
        return self.bits(use, n).argsort(dim=1, stable=True)


def epoch_order(seed: int, epoch: int, samples: int) -> Tensor:
    """The order in which an epoch visits the samples: a permutation of 0..samples-1, int64 [samples]."""
    return Draw(seed, epoch, torch.arange(samples)).place().argsort(stable=True)
