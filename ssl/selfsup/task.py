"""The contract between a method and the training loop. The loop knows nothing else of a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from selfsup.about import About
from selfsup.draw import Draw
from selfsup.nn.distributed import in_batch_order
from selfsup.params import ViewsParams

if TYPE_CHECKING:
    from selfsup.nets.image import Backbone

Tensors = Mapping[str, Tensor]
"""Tensors by name."""

Batch = Tensors
"""`id` int64 [B], `label` int64 [B] (-1: none) and what the kind of data gives.

Images give `image` uint8 [B 3 H W] and `box` int64 [B 2] (valid height, width).
"""


@dataclass(frozen=True)
class Progress:
    """Where the run stands. `step` counts optimiser steps done, `steps` is their planned number."""

    step: int
    steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        return self.step // self.steps_per_epoch

    @property
    def passed(self) -> float:
        """Epochs done: 1.5 in the middle of the second."""
        return self.step / self.steps_per_epoch

    @property
    def fraction(self) -> float:
        """0 at the first step, 1 after the last."""
        return self.step / self.steps

    def of(self, share: float) -> float:
        """How much of the run's first `share` is done: 0 at the first step, 1 from its end on; 1 at once for 0."""
        return 1.0 if self.fraction >= share else self.fraction / share


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a method may know of the run when it is built."""

    samples: int  # of the training split
    data: Any  # the block of the method's kind of data, such as `data.image`
    batch_size: int  # samples of a step over all processes
    views: ViewsParams
    backbone: Callable[[], Backbone]  # a new backbone of the method's architecture
    classes: int = 0  # 0: no labels
    peak_lr: float = 0.1  # of the run's schedule: the block's optimizer.lr scaled to the batch
    found: Any = None  # what sharding found of the samples: the `Facts` of the kind of data

    @property
    def image_size(self) -> int:
        """Side of the square that a network sees of an image, pixels."""
        return self.data.image_size


@dataclass
class Output:
    """What `forward` returns. n are this process's samples; gradients are taken of the loss alone."""

    loss: Tensor  # []
    logs: Tensors = field(default_factory=dict)  # scalars for the curves
    rows: Tensors = field(default_factory=dict)  # [n ...], one row per sample, for `after_step`
    carry: Tensors = field(default_factory=dict)  # for `after_step` as they are: equal on all processes
    embeddings: Sequence[Tensor] = ()  # [n D], one tensor per view, for the monitors

    def detached(self) -> Output:
        """The same without the graph of the step, which nothing may keep."""
        logs, rows, carry = (
            {name: x.detach() for name, x in part.items()} for part in (self.logs, self.rows, self.carry)
        )
        return Output(self.loss.detach(), logs, rows, carry, [z.detach() for z in self.embeddings])

    def carried(self, chunks: int = 1) -> dict[str, Tensor]:
        """What `after_step` is given: `carry`, and `rows` [N ...] of all N samples in the order of the global batch.

        `chunks` are the equal parts in which the batch went through the network.
        """
        return {**self.carry, **{name: in_batch_order(x.detach(), chunks) for name, x in self.rows.items()}}


Schedule = Callable[[Progress], float]


@dataclass
class Group:
    """Parameters that share schedules. `None` follows the run: `pretrain`'s warm-up and cosine, the set decay."""

    params: list[nn.Parameter]
    lr: Schedule | None = None
    decay: Schedule | None = None


class Task(nn.Module):
    """A method: one module whose `forward` returns the loss. Every hook but `views` and `forward` may stay as it is.

    A method whose loss mixes the samples of a batch gives `embed` and `loss` instead of `forward`, so that a batch can
    go through the network in chunks.

    Whatever a method carries from step to step (queue, centre, teacher) is a buffer or a parameter, so that model,
    optimiser and step number are the whole state.
    """

    about: ClassVar[About]  # the method's ABOUT
    backbone: Backbone

    def views(self, batch: Batch, draw: Draw) -> Any:
        """Batched views on the batch's device, without gradient; all randomness comes from `draw`."""
        raise NotImplementedError

    def forward(self, views: Any, progress: Progress) -> Output:
        """The loss of one step, a mean over samples. Changes no state but that of batch norm."""
        return self.loss(self.embed(views, progress), progress)

    def embed(self, views: Any, progress: Progress) -> Tensors:
        """All that the loss needs of the samples, by name: [n ...], one row per sample. All parameters act here."""
        raise NotImplementedError

    def loss(self, z: Tensors, progress: Progress) -> Output:
        """The loss of the whole batch, of which `z`, from `embed`, are this process's rows. No parameter acts here.

        Whatever in `z` is floating may ask for a gradient here, targets too: detach what the loss takes as constant.
        """
        raise NotImplementedError

    @property
    def mixes_batch(self) -> bool:
        """Whether the loss is one of the whole batch, and not the mean of the samples' own, as the method declares."""
        return self.about.couples_batch

    def start_epoch(self, progress: Progress, sweep: Callable[[], Tensor]) -> Sequence[nn.Parameter]:
        """Called before an epoch; `sweep()` gives the features of all samples in id order, on every process.

        Returns the parameters that were drawn anew, whose moments the optimiser forgets.
        """
        return ()

    def before_step(self, progress: Progress) -> None:
        """Called after unscaling and clipping: set gradients to None to freeze parameters."""

    def after_step(self, carry: Tensors, progress: Progress) -> None:
        """Called after an optimiser step that was taken: momentum encoders, queues, centres.

        `carry` is `Output.carried`: rows come in the order of the global batch, whatever its processes and chunks.
        """

    def groups(self) -> list[Group]:
        """Parameters and their schedules. By default biases, scales of norms, tokens and positions are not decayed."""
        return decayed_groups(self)

    def encoder(self) -> nn.Module:
        """What is exported and probed: plain views, such as images [B 3 H W] in 0..1 -> {"pooled": [B D], ...}."""
        return self.backbone


def decayed_groups(
    task: nn.Module, wanted: Callable[[str], bool] = lambda name: True, lr: Schedule | None = None
) -> list[Group]:
    """The trained parameters of the `wanted` names in two groups: weights, and those that are not decayed.

    Not decayed are parameters of fewer than two dimensions, such as biases, scales of norms and mask tokens, and those
    that a network of timm lists in its `no_weight_decay`: class and register tokens, positions.
    """
    spared = {
        f"{path}.{name}" for path, part in task.named_modules() for name in getattr(part, "no_weight_decay", set)()
    }
    named = [(name, p) for name, p in task.named_parameters() if p.requires_grad and wanted(name)]
    weights = [p for name, p in named if p.ndim >= 2 and name not in spared]
    others = [p for name, p in named if p.ndim < 2 or name in spared]
    return [Group(weights, lr), Group(others, lr, decay=lambda _: 0.0)]
