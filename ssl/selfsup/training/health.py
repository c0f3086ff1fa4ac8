"""Whether a run's numbers are still numbers, and how large its gradients are."""

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from selfsup import views
from selfsup.data.loader import Split, train_ids
from selfsup.errors import UserError
from selfsup.nn.distributed import rank, world
from selfsup.params import Pretrain
from selfsup.processes import signals
from selfsup.task import Task

NEVER = 2**62


@torch.no_grad()
def finite(task: Task) -> Tensor:
    """Whether all parameters are finite, bool []."""
    return torch.stack([parameter.isfinite().all() for parameter in task.parameters()]).all()


@torch.no_grad()
def layer_norms(task: Task) -> dict[str, Tensor]:
    """Gradient norms of the whole and of the backbone's first and last layer's weight."""
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    layers = [module.weight for module in task.backbone.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    weights = [weight.grad for weight in layers if weight.grad is not None]  # no class token, no positions
    out = {"grad_norm": torch.stack([g.norm() for g in gradients]).norm()} if gradients else {}
    return out | ({"grad_norm_first": weights[0].norm(), "grad_norm_last": weights[-1].norm()} if weights else {})


def stop_if_not_finite(bad: Tensor, split: Split, seed: int, settings: Pretrain, resume: Path) -> None:
    """Stop before a bad state is saved. Reading `bad` is the only synchronisation with the device.

    `bad` int64 [] is the first step of this process whose loss or weights were not finite, -1: none. Raises `UserError`
    that names step, samples, the last good checkpoint and the likely reason, which is first looked for in the data.
    """
    worst = torch.where(bad < 0, NEVER, bad)  # the first bad step of any process
    if world() > 1:
        torch.distributed.all_reduce(worst, torch.distributed.ReduceOp.MIN)
    if worst == NEVER:
        return
    if rank():
        signals.wait_to_be_stopped()  # rank 0 prints the error
    step = int(worst)
    (ids,) = train_ids(split.samples, seed, settings.batch_size, range(step, step + 1))
    listed = resume / "not-finite.json"
    listed.parent.mkdir(parents=True, exist_ok=True)
    names = {int(i): split.names[i] for i in ids}
    noun = split.data.noun
    listed.write_text(json.dumps({"step": step, noun: names}, indent=1) + "\n")
    kept = max((path.name for path in resume.glob("step-*.pt")), default="none")
    raise UserError(
        f"the loss is not finite at step {step} ({noun} {ids[:4].tolist()}..., all in {listed}); last good checkpoint: "
        f"{kept}. {suspicious(split, ids) or advice(settings, noun)}"
    )


def suspicious(split: Split, ids: Tensor) -> str:
    """What is wrong with the data that makes a loss infinite whatever the learning rate is; empty: nothing."""
    batch, noun = split.gather(ids), split.data.noun
    if all((x == x[:1]).all() for name, x in batch.items() if name not in ("id", "label")):
        return f"All {len(ids)} {noun} of the step are equal; check the {noun} of data.{split.kind}"
    return views.find(split.kind).suspicious(batch)


def advice(settings: Pretrain, noun: str) -> str:
    """What steadies a run whose data are sound, as far as it has not been done."""
    steps = ["lower the method's optimizer.lr"]
    steps += ["set pretrain.clip_grad_norm"] if settings.clip_grad_norm is None else []
    steps += ["set pretrain.precision: fp32"] if settings.precision != "fp32" else []
    return f"The {noun} and their statistics are sound: {', or '.join(steps)}"
