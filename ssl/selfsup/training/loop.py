"""The training loop: the same for every method, on one process or many.

The state of a run is model + optimiser + step; everything random is a function of (seed, epoch or step, sample). A run
that is killed and started again therefore ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from tqdm import tqdm

from selfsup.data.loader import Split, train_batches
from selfsup.draw import Draw, splitmix64
from selfsup.epochs import fitted
from selfsup.errors import UserError
from selfsup.features.encode import encode
from selfsup.nn.batchnorm import globalise
from selfsup.nn.distributed import in_batch_order, mean_over_ranks, rank, world
from selfsup.params import LARS, SGD, AdamW, Pretrain
from selfsup.processes.accelerator import make_accelerator, rank_timeout
from selfsup.processes.interruption import Interruption
from selfsup.task import Batch, Output, Progress, Task
from selfsup.training import checkpoint, chunks, monitors
from selfsup.training.curves import Curves
from selfsup.training.health import finite, layer_norms, stop_if_not_finite
from selfsup.training.optimizers import apply_schedules, build_optimizer
from selfsup.training.schedule import peak_lr, planned_steps, warmup_cosine

_log = logging.getLogger(__name__)


@dataclass
class Plan:
    """Everything the loop needs beside the method and the data."""

    seed: int
    pretrain: Pretrain
    optimizer: SGD | LARS | AdamW
    resume: Path  # folder of the checkpoints of exactly this run
    title: str = "pretrain"
    log: Callable[[Mapping[str, float], int], None] = lambda row, step: None  # such as a tracker's
    probe: Callable[[nn.Module], Mapping[str, float]] | None = None  # every `knn_every` epochs, on the first process


@dataclass
class Result:
    """What a run leaves beside its weights."""

    steps: int
    seconds: float  # of training, over all restarts
    images_per_second: float
    rows: list[dict[str, float]] = field(default_factory=list)  # the curves
    alarm: str | None = None
    skipped: int = 0  # steps skipped for fp16 overflow


def reseed(seed: int, step: int, chunk: int = 0) -> None:
    """Torch's own generator (dropout) becomes a function of seed, step, chunk and rank."""
    key = splitmix64(splitmix64(torch.tensor([seed])) + (step << 30) + (chunk << 15) + rank())
    torch.manual_seed(int(key) & (2**63 - 1))


def sweep(task: Task, split: Split, device: torch.device, size: int) -> Tensor:
    """Pooled features of all training samples in id order, on every process. [N D]"""
    return encode(task.encoder(), split, device, size)


def train(task: Task, split: Split, size: int, plan: Plan) -> Result:
    """Train `task` on `split`, going on from the newest checkpoint in `plan.resume`.

    Raises `UserError` when the loss is not finite, the batch does not divide among processes and chunks, or there are
    fewer images than a batch. SIGTERM and SIGINT end the process with a checkpoint of the step under way.
    """
    settings = fitted(plan.pretrain, plan.pretrain.epochs)
    accelerator = make_accelerator(settings.precision)
    device = accelerator.device
    globalise(task, device).to(device)
    if settings.channels_last:
        task.to(memory_format=torch.channels_last)
    per_epoch = split.samples // settings.batch_size
    steps = planned_steps(split.samples, settings)
    schedule = warmup_cosine(peak_lr(plan.optimizer, settings), settings.warmup_epochs * per_epoch)
    optimizer = build_optimizer(task.groups(), plan.optimizer, schedule)
    state = checkpoint.load(plan.resume) or {"step": 0, "seconds": 0.0, "skipped": 0}
    if state["step"]:
        task.load_state_dict(state["task"])
        optimizer.load_state_dict(with_schedules(state["optimizer"], optimizer))
    if settings.compile:
        task.backbone.compile()
    model, optimizer = accelerator.prepare(chunks.Step(task), optimizer)
    if accelerator.scaler is not None and "scaler" in state:
        accelerator.scaler.load_state_dict(state["scaler"])
    curves = Curves(plan.resume / "curves.jsonl", state["step"]) if rank() == 0 else None
    first, skipped, bad = state["step"], state["skipped"], torch.full((), -1, device=device)
    task.train()
    start = time.monotonic()

    def seconds_so_far() -> float:
        return state["seconds"] + time.monotonic() - start

    parts = settings.batch_size // (settings.chunk_size or settings.batch_size)
    normalised = any(isinstance(module, _BatchNorm) for module in task.modules())
    if settings.chunk_size == 1 and normalised:
        raise UserError("pretrain.chunk_size: 1 leaves batch norm no other image to compare with; raise it")
    if parts > 1 and rank() == 0 and normalised:
        _log.info("note: with pretrain.chunk_size, batch norm normalises each chunk by itself")
    batches = train_batches(
        split,
        seed=plan.seed,
        batch_size=settings.batch_size,
        chunks=parts,
        start_step=first,
        steps=steps,
        rank=rank(),
        world=world(),
    )
    bar = tqdm(
        total=steps * settings.batch_size,
        initial=first * settings.batch_size,
        unit="img",
        unit_scale=True,
        desc=plan.title,
        disable=rank() != 0,
    )
    with Interruption(rank_timeout()) as interruption:
        for step, batch in enumerate(batches, start=first):
            interruption.exchange()
            progress = Progress(step, steps, per_epoch)
            if step % per_epoch == 0:
                for parameter in task.start_epoch(progress, lambda: sweep(task, split, device, size)):
                    optimizer.state.pop(parameter, None)
            views = [
                partial(make_views, task, part, plan.seed, progress, i, device)
                for i, part in enumerate(split_batch(batch, parts))
            ]
            output = chunks.backward(accelerator, model, task, views, progress)
            bad = torch.where((bad < 0) & ~output.loss.isfinite(), step, bad)
            accelerator.unscale_gradients()
            done = Progress(step + 1, steps, per_epoch)
            end_of_epoch = done.step % per_epoch == 0
            probing = plan.probe and settings.knn_every and end_of_epoch and done.epoch % settings.knn_every == 0
            logging = step % settings.log_every == 0 or step + 1 == steps or probing
            layers = layer_norms(task) if logging else {}
            if settings.clip_grad_norm is not None:
                nn.utils.clip_grad_norm_(task.parameters(), settings.clip_grad_norm)  # unscaled above
            task.before_step(progress)
            lr = apply_schedules(optimizer, plan.optimizer, progress)
            optimizer.step()
            if accelerator.optimizer_step_was_skipped:
                skipped += 1
            else:
                task.after_step(output.carried(parts), progress)
            optimizer.zero_grad(set_to_none=True)

            stopping = interruption.agreed()
            saving = done.step % settings.checkpoint_every == 0 or end_of_epoch or stopping
            if saving:  # a gradient may be NaN where the loss is not
                bad = torch.where((bad < 0) & ~finite(task), step, bad)
            if logging or saving:
                stop_if_not_finite(bad, split, plan.seed, settings, plan.resume)
            row: dict[str, float] = {}
            if logging:
                row = reading(output, layers, parts) | {"lr": lr}
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            if probing and plan.probe:
                row |= in_eval_mode(task, plan.probe, accelerator)
            if curves is not None and row:
                curves.add({"step": done.step, "epoch": done.step / per_epoch} | row)
                plan.log(row, done.step)
            if saving:
                numbers = {"step": done.step, "seconds": seconds_so_far(), "skipped": skipped}
                save(plan.resume, task, optimizer, accelerator, numbers)
            if stopping:
                interruption.leave(stopping, done.step)
            bar.update(settings.batch_size)
    bar.close()
    rows = curves.close() if curves is not None else []
    return Result(
        steps=steps,
        seconds=seconds_so_far(),
        images_per_second=steps * settings.batch_size / max(seconds_so_far(), 1e-9),
        rows=rows,
        alarm=monitors.alarm(rows),
        skipped=skipped,
    )


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """Its rows in so many equal chunks."""
    if parts == 1:
        return [batch]
    chunks = {name: x.chunk(parts) for name, x in batch.items()}
    return [{name: x[i] for name, x in chunks.items()} for i in range(parts)]


@torch.no_grad()
def make_views(task: Task, batch: Batch, seed: int, progress: Progress, chunk: int, device: torch.device) -> Any:
    """The views of a chunk, and torch's generator as it is to be while they go through the network."""
    draw = Draw(seed, progress.epoch, batch["id"])  # on the CPU, so that the device's queue never waits
    views = task.views({name: x.to(device, non_blocking=True) for name, x in batch.items()}, draw)
    reseed(seed, progress.step, chunk)
    return views


def reading(output: Output, layers: Mapping[str, Tensor], parts: int) -> dict[str, float]:
    """One row of the curves. Losses and logs are means over processes; monitors read the embeddings of all."""
    local = {"loss": output.loss, **output.logs}
    shared = mean_over_ranks(torch.stack([value.double() for value in local.values()]))
    row = dict(zip(local, shared.tolist(), strict=True))
    readings = dict(layers) | monitors.read([in_batch_order(z, parts) for z in output.embeddings])
    return row | {name: value.item() for name, value in readings.items()}


def in_eval_mode(task: Task, probe: Callable, accelerator: Any) -> dict[str, float]:
    """The probe's reading on the first process, while the others wait."""
    task.eval()
    values = dict(probe(task.encoder())) if rank() == 0 else {}
    task.train()
    accelerator.wait_for_everyone()
    return values


def save(folder: Path, task: Task, optimizer: Optimizer, accelerator: Any, numbers: dict[str, Any]) -> None:
    """Write a checkpoint on the first process; the others wait, so that none runs ahead of what is on disk."""
    if rank() == 0:
        plain = optimizer.state_dict()
        for group in plain["param_groups"]:
            del group["lr_schedule"], group["decay_schedule"]
        scaler = {} if accelerator.scaler is None else {"scaler": accelerator.scaler.state_dict()}
        checkpoint.save(folder, numbers["step"], {"task": task.state_dict(), "optimizer": plain, **scaler, **numbers})
    accelerator.wait_for_everyone()


def with_schedules(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A saved optimiser state with this run's schedules, which are functions and were not saved."""
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        group["lr_schedule"], group["decay_schedule"] = own["lr_schedule"], own["decay_schedule"]
    return saved
