"""The training loop: the same for every method, on one process or many.

The state of a run is model + optimiser + step; everything random is a function of (seed, epoch or step, sample). A run
that is killed and started again therefore ends with the same bits as one that was not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
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
from selfsup.processes.accelerator import rank_timeout
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


def sweep(task: Task, split: Split, device: torch.device) -> Tensor:
    """Pooled features of all training samples in id order, on every process. [N D]"""
    return encode(task.encoder(), split, device)


def train(task: Task, split: Split, plan: Plan, accelerator: Any) -> Result:
    """Train `task` on `split`, resuming from the newest checkpoint in `plan.resume`.

    Raises `UserError` when the loss is not finite, the batch does not divide among processes and chunks, or there are
    fewer samples than a batch. SIGTERM and SIGINT end the process with a checkpoint of the step under way.
    """
    run = _Run(task, split, plan, accelerator)
    batches, bar = run.batches(), run.bar()
    with Interruption(rank_timeout()) as interruption:
        for step, batch in enumerate(batches, start=run.first):
            interruption.exchange()
            progress, due = Progress(step, run.steps, run.per_epoch), run.due(step)
            if step % run.per_epoch == 0:
                run.start_epoch(progress)
            output = chunks.backward(accelerator, run.model, task, run.views(batch, progress), progress)
            layers = run.gradients(output, step, due)
            lr = run.update(output, progress)
            stopping = interruption.agreed()
            saving = (step + 1) % run.settings.checkpoint_every == 0 or due.end_of_epoch or bool(stopping)
            run.check(step, due.logging, saving)
            row = reading(output, layers, run.parts) | {"lr": lr} if due.logging else {}
            run.record(row, step + 1, due, bar)
            if saving:
                run.save(step + 1)
            if stopping:
                interruption.leave(stopping, step + 1)
            bar.update(run.settings.batch_size)
    bar.close()
    return run.result()


@dataclass(frozen=True)
class _Due:
    """What a step does beside its update."""

    logging: bool  # a row of the curves
    probing: bool
    end_of_epoch: bool


class _Run:
    """A training under way on this process: what its steps share, resumed from the newest checkpoint."""

    def __init__(self, task: Task, split: Split, plan: Plan, accelerator: Any):
        self.task, self.split, self.plan, self.accelerator = task, split, plan, accelerator
        self.settings = settings = fitted(plan.pretrain, plan.pretrain.epochs)
        self.per_epoch = split.samples // settings.batch_size
        self.steps = planned_steps(split.samples, settings)
        self.parts = settings.batch_size // (settings.chunk_size or settings.batch_size)
        globalise(task, accelerator.device).to(accelerator.device)
        if settings.channels_last:
            task.to(memory_format=torch.channels_last)
        schedule = warmup_cosine(peak_lr(plan.optimizer, settings), settings.warmup_epochs * self.per_epoch)
        optimizer = build_optimizer(task.groups(), plan.optimizer, schedule)
        state = checkpoint.load(plan.resume) or {"step": 0, "seconds": 0.0, "skipped": 0}
        if state["step"]:
            task.load_state_dict(state["task"])
            optimizer.load_state_dict(with_schedules(state["optimizer"], optimizer))
        if settings.compile:
            task.backbone.compile()
        self.model, self.optimizer = accelerator.prepare(chunks.Step(task), optimizer)
        if accelerator.scaler is not None and "scaler" in state:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.curves = Curves(plan.resume / "curves.jsonl", state["step"]) if rank() == 0 else None
        self.first, self.skipped, self.earlier = state["step"], state["skipped"], state["seconds"]
        self.bad = torch.full((), -1, device=accelerator.device)  # the first step that was not finite
        task.train()
        self.start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Of training so far, over all restarts."""
        return self.earlier + time.monotonic() - self.start

    def batches(self) -> Iterator[Batch]:
        """This process's batches of the steps left. Raises `UserError`."""
        settings = self.settings
        normalised = any(isinstance(module, _BatchNorm) for module in self.task.modules())
        if settings.chunk_size == 1 and normalised:
            raise UserError("pretrain.chunk_size: 1 leaves batch norm no other sample to compare with; raise it")
        if self.parts > 1 and rank() == 0 and normalised:
            _log.info("note: with pretrain.chunk_size, batch norm normalises each chunk by itself")
        return train_batches(
            self.split,
            seed=self.plan.seed,
            batch_size=settings.batch_size,
            chunks=self.parts,
            start_step=self.first,
            steps=self.steps,
            rank=rank(),
            world=world(),
        )

    def bar(self) -> tqdm:
        """The progress bar, on the first process."""
        batch = self.settings.batch_size
        initial, total = self.first * batch, self.steps * batch
        title, unit, silent = self.plan.title, f" {self.split.data.noun}", rank() != 0
        return tqdm(total=total, initial=initial, unit=unit, unit_scale=True, desc=title, disable=silent)

    def due(self, step: int) -> _Due:
        """What the step does beside its update."""
        settings, done = self.settings, Progress(step + 1, self.steps, self.per_epoch)
        end = done.step % self.per_epoch == 0
        probing = bool(self.plan.probe and settings.knn_every and end and done.epoch % settings.knn_every == 0)
        return _Due(step % settings.log_every == 0 or done.step == self.steps or probing, probing, end)

    def start_epoch(self, progress: Progress) -> None:
        """Tell the task, and forget the moments of parameters that it drew anew."""
        device = self.accelerator.device
        for parameter in self.task.start_epoch(progress, lambda: sweep(self.task, self.split, device)):
            self.optimizer.state.pop(parameter, None)

    def views(self, batch: Batch, progress: Progress) -> list[Callable[[], Any]]:
        """A call for the views of each chunk of the batch."""
        parts = enumerate(split_batch(batch, self.parts))
        seed, device = self.plan.seed, self.accelerator.device
        return [partial(make_views, self.task, part, seed, progress, i, device) for i, part in parts]

    def gradients(self, output: Output, step: int, due: _Due) -> dict[str, Tensor]:
        """Unscale the gradients, clip them, and return their norms before that where they are logged."""
        self.bad = torch.where((self.bad < 0) & ~output.loss.isfinite(), step, self.bad)
        self.accelerator.unscale_gradients()
        layers = layer_norms(self.task) if due.logging else {}
        if self.settings.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.task.parameters(), self.settings.clip_grad_norm)  # unscaled above
        return layers

    def update(self, output: Output, progress: Progress) -> float:
        """Take the optimiser's step, and tell the task before and after; return the learning rate."""
        self.task.before_step(progress)
        lr = apply_schedules(self.optimizer, self.plan.optimizer, progress)
        self.optimizer.step()
        if self.accelerator.optimizer_step_was_skipped:
            self.skipped += 1
        else:
            self.task.after_step(output.carried(self.parts), progress)
        self.optimizer.zero_grad(set_to_none=True)
        return lr

    def check(self, step: int, logging: bool, saving: bool) -> None:
        """Raise `UserError` where the loss, or a weight that is to be saved, is not finite."""
        if saving:  # a gradient may be NaN where the loss is not
            self.bad = torch.where((self.bad < 0) & ~finite(self.task), step, self.bad)
        if logging or saving:
            stop_if_not_finite(self.bad, self.split, self.plan.seed, self.settings, self.plan.resume)

    def record(self, row: dict[str, float], step: int, due: _Due, bar: tqdm) -> None:
        """Add a row to the curves, with the probe's reading where it is due; `step` counts the steps done."""
        if due.logging:
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
        if due.probing and self.plan.probe:
            row |= in_eval_mode(self.task, self.plan.probe, self.accelerator)
        if self.curves is not None and row:
            self.curves.add({"step": step, "epoch": step / self.per_epoch} | row)
            self.plan.log(row, step)

    def save(self, step: int) -> None:
        """Write a checkpoint on the first process; the others wait, so that none runs ahead of what is on disk."""
        if rank() == 0:
            plain = self.optimizer.state_dict()
            for group in plain["param_groups"]:
                del group["lr_schedule"], group["decay_schedule"]
            scaler = self.accelerator.scaler
            state = {"task": self.task.state_dict(), "optimizer": plain}
            state |= {} if scaler is None else {"scaler": scaler.state_dict()}
            state |= {"step": step, "seconds": self.seconds, "skipped": self.skipped}
            checkpoint.save(self.plan.resume, step, state)
        self.accelerator.wait_for_everyone()

    def result(self) -> Result:
        """What the run leaves, after its last step."""
        rows = self.curves.close() if self.curves is not None else []
        images = self.steps * self.settings.batch_size
        speed, alarm = images / max(self.seconds, 1e-9), monitors.alarm(rows)
        return Result(self.steps, self.seconds, speed, rows, alarm, self.skipped)


def split_batch(batch: Batch, parts: int) -> list[Batch]:
    """The rows of a batch in `parts` equal chunks."""
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


def with_schedules(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A saved optimiser state with this run's schedules, which are functions and were not saved."""
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        group["lr_schedule"], group["decay_schedule"] = own["lr_schedule"], own["decay_schedule"]
    return saved
