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

from selfsup.task import Output, Progress, Task, Tensors


class Step(nn.Module):
    """What is called in a step, and what `DistributedDataParallel` wraps: the loss, or a chunk's embeddings."""

    def __init__(self, task: Task):
        super().__init__()
        self.task = task

    def forward(self, views: Any, progress: Progress, whole: bool = True) -> Any:
        if not self.task.mixes_batch:
            return self.task(views, progress)
        z = self.task.embed(views, progress)
        return self.task.loss(z, progress) if whole else z


def backward(
    accelerator: Any, model: nn.Module, task: Task, chunks: Sequence[Callable[[], Any]], progress: Progress
) -> Output:
    """Gradients of the loss of a batch whose views `chunks` make, chunk by chunk, twice each when the loss mixes them.

    A chunk's call seeds torch's generator, so that both passes drop the same units. Batch norm normalises a chunk by
    itself. What is returned holds no graph.
    """
    if len(chunks) == 1:
        output: Output = model(chunks[0](), progress)
        accelerator.backward(output.loss)
        return output.detached()
    if task.mixes_batch:
        return _mixed(accelerator, model, task, chunks, progress)
    return _separate(accelerator, model, chunks, progress)


def _separate(accelerator: Any, model: nn.Module, chunks: Sequence[Callable[[], Any]], progress: Progress) -> Output:
    """`backward` of a loss that is the mean of the chunks' own."""
    outputs = []
    for i, views in enumerate(chunks):
        with _alone(accelerator, model, i + 1 < len(chunks)):
            output: Output = model(views(), progress)
            accelerator.backward(output.loss / len(chunks))
        outputs.append(output.detached())
    return _joined(outputs)


def _mixed(
    accelerator: Any, model: nn.Module, task: Task, chunks: Sequence[Callable[[], Any]], progress: Progress
) -> Output:
    """`backward` of a loss of the whole batch."""
    with torch.no_grad(), _still(task):
        parts: list[Tensors] = [model(views(), progress, whole=False) for views in chunks]
    whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    leaves = {name: x.requires_grad_() for name, x in whole.items() if x.is_floating_point()}
    with accelerator.autocast():
        output = task.loss(whole, progress)
    loss = output.loss if accelerator.scaler is None else accelerator.scaler.scale(output.loss)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {name: g.chunk(len(chunks)) for name, g in zip(leaves, found, strict=True) if g is not None}
    for i, views in enumerate(chunks):
        with _alone(accelerator, model, i + 1 < len(chunks)):
            z: Tensors = model(views(), progress, whole=False)
            live = [name for name in gradients if z[name].requires_grad]  # targets are not
            torch.autograd.backward([z[name] for name in live], [gradients[name][i] for name in live])
    return output.detached()  # what was joined were leaves: nothing may keep their graph


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
    """The output of a step, joined from those of its chunks."""
    if outputs[0].carry:
        raise NotImplementedError("a method that carries tensors of the whole batch gives `embed` and `loss`")

    def mean(values: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(values)).mean()

    return Output(
        mean([output.loss for output in outputs]),
        logs={name: mean([output.logs[name] for output in outputs]) for name in outputs[0].logs},
        rows={name: torch.cat([output.rows[name] for output in outputs]) for name in outputs[0].rows},
        embeddings=[torch.cat(parts) for parts in zip(*(output.embeddings for output in outputs), strict=True)],
    )
