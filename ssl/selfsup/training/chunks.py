"""A step whose batch goes through the network chunk by chunk, with the gradient of the whole batch's loss.

Where the loss mixes the batch, its gradient with respect to the embeddings is taken first, from a pass that keeps no
graph; a second pass then carries it into the weights (Gao et al. 2021, "Scaling Deep Contrastive Learning Batch Size
under Memory Limited Setup", arXiv:2101.06983). Memory is that of a chunk, and time that of one more forward pass.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsup.task import Output, Progress, Task


class Step(nn.Module):
    """What is called in a step, and what `DistributedDataParallel` wraps: the loss, or a chunk's embeddings."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, views: Any, progress: Progress, whole: bool = True) -> Any:
        return self.task(views, progress) if whole else self.task.embed(views, progress)


def backward(
    accelerator: Any, model: nn.Module, task: Task, chunks: Sequence[Callable[[], Any]], progress: Progress
) -> Output:
    """Gradients of the loss of a batch whose views `chunks` make, chunk by chunk, twice each when the loss mixes them.

    A chunk's call seeds torch's generator, so that both passes drop the same units. Batch norm normalises a chunk by
    itself.
    """
    if len(chunks) == 1:
        output: Output = model(chunks[0](), progress)
        accelerator.backward(output.loss)
        return output
    if not task.mixes_batch:
        outputs = []
        for i, views in enumerate(chunks):
            with _alone(accelerator, model, i + 1 < len(chunks)):
                output = model(views(), progress)
                accelerator.backward(output.loss / len(chunks))
            outputs.append(output)
        return _joined(outputs)
    with torch.no_grad(), _still(task):
        parts = [model(views(), progress, whole=False) for views in chunks]
    whole = [torch.cat(part) for part in zip(*parts, strict=True)]
    leaves = [x.requires_grad_() for x in whole if x.is_floating_point()]
    with accelerator.autocast():
        output = task.loss(whole, progress)
    loss = output.loss if accelerator.scaler is None else accelerator.scaler.scale(output.loss)
    found = iter(torch.autograd.grad(loss, leaves, allow_unused=True))
    gradients = [next(found) if x.is_floating_point() else None for x in whole]
    sizes = [len(part[0]) for part in parts]
    pieces = [[None] * len(chunks) if g is None else g.split(sizes) for g in gradients]
    for i, views in enumerate(chunks):
        with _alone(accelerator, model, i + 1 < len(chunks)):
            embeddings: Sequence[Tensor] = model(views(), progress, whole=False)
            pairs = [(z, g[i]) for z, g in zip(embeddings, pieces, strict=True) if z.requires_grad and g[i] is not None]
            torch.autograd.backward(*zip(*pairs, strict=True))
    output.loss = output.loss.detach()
    # all embeddings were leaves: what a task keeps must not hold their graph
    output.logs = {name: x.detach() for name, x in output.logs.items()}
    output.carry = {name: x.detach() for name, x in output.carry.items()}
    output.embeddings = [z.detach() for z in output.embeddings]
    return output


def _alone(accelerator: Any, model: nn.Module, more: bool) -> Any:
    """Processes add their gradients up at the last chunk only."""
    return accelerator.no_sync(model) if more else nullcontext()


@contextmanager
def _still(task: Task) -> Iterator[None]:
    """Batch norms normalise, but leave their running statistics to the other pass."""
    norms = [module for module in task.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


def _joined(outputs: Sequence[Output]) -> Output:
    """What a step says of itself, from what its chunks say."""
    if outputs[0].carry:
        raise NotImplementedError("a method that carries tensors to `after_step` gives `embed` and `loss`")

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack([value.detach() for value in values]).mean()

    return Output(
        mean([output.loss for output in outputs]),
        logs={name: mean([output.logs[name] for output in outputs]) for name in outputs[0].logs},
        embeddings=[torch.cat(parts) for parts in zip(*(output.embeddings for output in outputs), strict=True)],
    )
