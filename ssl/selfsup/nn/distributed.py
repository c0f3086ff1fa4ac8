"""The collectives that make the batch global, with their true gradients.

Every rank differentiates its own loss and `DistributedDataParallel` averages the gradients: the mean of the ranks'
losses is minimised. A backward pass through a collective therefore sums the gradients of all ranks. After averaging,
the gradient is exactly that of one process with the whole batch, whether each rank computes the loss of the gathered
batch or only of its rows.
"""

import torch
import torch.distributed as dist
from torch import Tensor


def world() -> int:
    """The number of processes, 1 when not distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, 0 when not distributed."""
    return dist.get_rank() if world() > 1 else 0


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        x = x.contiguous()
        ctx.rows = len(x)
        parts = [torch.empty_like(x) for _ in range(world())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(total)  # every rank's loss depends on these rows
        return total[rank() * ctx.rows : (rank() + 1) * ctx.rows].to(gradient.dtype)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:  # noqa: ARG004
        x = x.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # noqa: ARG004
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient


def gather(x: Tensor) -> Tensor:
    """Rows of all ranks in rank order, the order of the global batch, with gradient. [n ...] -> [n * world ...]"""
    return x if world() == 1 else _Gather.apply(x)


@torch.no_grad()
def in_batch_order(x: Tensor, chunks: int) -> Tensor:
    """Rows of all ranks in the order of the global batch, without gradient. [n ...] -> [n * world ...]

    The batch has `chunks` equal parts, and of each part a rank holds its share, chunk after chunk.
    """
    return gather(x).unflatten(0, (world(), chunks, -1)).transpose(0, 1).flatten(0, 2)


def sum_over_ranks(x: Tensor) -> Tensor:
    """The sum of `x` over ranks, with gradient."""
    return x if world() == 1 else _Sum.apply(x)


@torch.no_grad()
def of_first_rank(x: Tensor) -> Tensor:
    """The first process's `x` on every process."""
    if world() > 1:
        dist.broadcast(x, 0)
    return x


@torch.no_grad()
def mean_over_ranks(x: Tensor) -> Tensor:
    """The mean of `x` over ranks, without gradient."""
    return x if world() == 1 else sum_over_ranks(x) / world()
