"""Training runs that the contract tests start in processes of their own."""

import os
import signal
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from selfsup.data.loader import open_splits
from selfsup.params import SGD
from selfsup.processes.accelerator import make_accelerator
from selfsup.task import Task
from selfsup.training.build import build_task, method_params
from selfsup.training.loop import Plan, Result, train
from tests.helpers import processes, small


def doubled(value: Any) -> Any:
    """Views in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(doubled(part) for part in value) if isinstance(value, list | tuple) else value


def build(method: str, shards: Path, double: bool, **overrides: Any) -> tuple[Task, Any, Any]:
    params = small(method=method, **overrides)
    split = open_splits(params.data, shards, verified=True)["train"]
    task = build_task(params, method, method_params(params, method), split)
    if double:
        task = task.double()
        views = task.views
        task.views = lambda batch, draw: doubled(views(batch, draw))
    return task, split, params


@torch.no_grad()
def moved(*modules: nn.Module) -> None:
    """Take momentum networks away from those they were copied from: who looks at the wrong one is found out."""
    generator = torch.Generator().manual_seed(0)
    for module in modules:
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def state(task: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone().contiguous() for name, x in task.state_dict().items()}


class Steps(NamedTuple):
    """Weights before and after some steps; the state after them has the losses, too."""

    start: dict[str, Tensor]
    end: dict[str, Tensor]


def steps_in_float64(
    method: str, shards: Path, resume: Path, sabotage: str = "", overrides: dict[str, Any] | None = None
) -> Steps:
    """Two epochs of two optimiser steps with momentum, through the real loop, in float64."""
    if sabotage == "gather":
        import selfsup.methods.simclr as simclr
        from selfsup.nn.distributed import gather

        real = gather
        simclr.gather = lambda x: real(x.detach()) + 0 * x.sum()
    if sabotage == "sum":
        from selfsup.nn import distributed

        distributed._Sum.backward = staticmethod(lambda ctx, gradient: gradient)
    settings = {"pretrain__epochs": 2, "pretrain__batch_size": 48} | (overrides or {})
    task, split, params = build(method, shards, double=True, **settings)
    if sabotage == "no norm":
        without_batch_norm(task)
    start = {name: p.detach().clone() for name, p in task.named_parameters() if p.requires_grad}
    optimizer = SGD(name="sgd", lr=0.5, momentum=0.9, weight_decay=1e-4)
    plan = Plan(params.seed, params.pretrain, optimizer, resume)
    accelerator = make_accelerator(params.pretrain.precision)
    result = train(task, split, plan, accelerator)
    held = [name for name, x in task.named_buffers() if x.requires_grad]
    assert not held, f"buffers that hold the steps' graphs: {held}"
    losses = torch.tensor([row["loss"] for row in result.rows], dtype=torch.float64)
    return Steps(start, state(task) | {"loss": losses})


def without_batch_norm(task: nn.Module) -> None:
    """Replace batch norms by nothing: they alone see the other images of a chunk."""
    for path, module in list(task.named_modules()):
        if isinstance(module, _BatchNorm):
            task.set_submodule(path, nn.Identity())


def in_chunks(
    method: str, shards: Path, resume: Path, batch: int, sizes: list[int], knobs: dict[str, Any] | None = None
) -> list[dict[str, Tensor]]:
    """The ends of `steps_in_float64` without batch norm, each with the batch in chunks of another size."""
    settings = {"pretrain__batch_size": batch, "pretrain__epochs": 1}
    settings |= {f"methods__{method}__{name}": value for name, value in {"backbone": "vit", **(knobs or {})}.items()}
    return [
        steps_in_float64(method, shards, resume / str(n), "no norm", settings | {"pretrain__chunk_size": n}).end
        for n in sizes
    ]


def largest_difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> tuple[str, float]:
    """Over all tensors of `a`, relative to each one's largest value: the name and the difference of the worst."""
    worst = {}
    for name, x in a.items():
        y = b[name]
        worst[name] = (
            ((x - y).abs().max() / x.abs().max().clamp(min=1e-6)).item()  # some means are 0
            if x.is_floating_point()
            else float(not torch.equal(x, y))
        )
    return max(worst.items(), key=lambda item: item[1])


TOLERANCE = 1e-9  # of `largest_difference`, in float64


def two_equal_one(method: str, shards: Path, folder: Path, **knobs: Any) -> Steps:
    """Assert that two processes, with different halves of every batch, train the weights that one process trains."""
    overrides = {f"methods__{method}__{name}": value for name, value in knobs.items()}
    one, two = (
        processes(world, steps_in_float64, method, shards, folder / str(world), "", overrides) for world in (1, 2)
    )
    name, difference = largest_difference(one.end, two.end)
    print(f"{method}: largest relative difference {difference:.1e} ({name})")
    assert difference < TOLERANCE, name
    return one


def run(
    method: str, shards: Path, resume: Path, kill_at: int | None = None, **overrides: Any
) -> dict[str, Tensor] | None:
    """A whole run, or one that dies by SIGKILL while step `kill_at` is under way."""
    task, split, params = build(method, shards, double=False, pretrain__checkpoint_every=2, **overrides)

    def after(carry: Any, progress: Any, own: Any = task.after_step) -> None:
        own(carry, progress)
        if progress.step == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    task.after_step = after
    plan = Plan(params.seed, params.pretrain, method_params(params, method).optimizer, resume)
    train(task, split, plan, make_accelerator(params.pretrain.precision))
    return state(task)


def whole_and_again(method: str, shards: Path, whole: Path, killed: Path) -> list[dict[str, Tensor] | None]:
    """The ends of a run that nothing disturbs, and of one that resumes what another process left in `killed`."""
    return [run(method, shards, folder) for folder in (whole, killed)]


def stale(resume: Path) -> None:
    """Pretend that the newest checkpoint is one step further than its weights."""
    from selfsup.training import checkpoint

    newest = checkpoint.load(resume)
    assert newest is not None
    for path in resume.glob("step-*.pt"):
        path.unlink()
    checkpoint.save(resume, newest["step"] + 1, newest | {"step": newest["step"] + 1})


def trained(method: str, shards: Path, resume: Path, overrides: dict[str, Any]) -> Result:
    """The result of a whole run."""
    task, split, params = build(method, shards, double=False, **overrides)
    plan = Plan(params.seed, params.pretrain, method_params(params, method).optimizer, resume)
    return train(task, split, plan, make_accelerator(params.pretrain.precision))


def precisions(method: str, shards: Path, resume: Path) -> tuple[float, float]:
    """The mean loss over the steps of a short run, in float32 and under bfloat16 autocast."""
    from accelerate.state import AcceleratorState

    def mean(precision: str) -> float:
        AcceleratorState._reset_state(reset_partial_state=True)
        result = trained(method, shards, resume / precision, {"pretrain__precision": precision})
        return statistics.mean(row["loss"] for row in result.rows)

    return mean("fp32"), mean("bf16")


def swept(shards: Path) -> tuple[Tensor, Tensor]:
    """What `start_epoch` is given, and the features of all samples in id order, one by one."""
    from selfsup.training.loop import sweep
    from selfsup.views.image import plain

    make_accelerator("fp32")
    task, split, _ = build("simclr", shards, double=False)
    found = sweep(task, split, torch.device("cpu"))
    task.eval()
    with torch.no_grad():
        single = [task.encoder()(plain(split.gather([i]), split.data))["pooled"] for i in range(split.samples)]
    return found, torch.cat(single)


def dropped(shards: Path, chunk: int) -> tuple[Tensor, Tensor]:
    """A patch embedding's gradient after one SimCLR step in chunks with dropout, and by one graph of all chunks."""
    from selfsup.task import Progress
    from selfsup.training.chunks import Step, backward
    from selfsup.training.loop import make_views, split_batch
    from tests.helpers import SMALL

    vit = SMALL["backbones__vit__options"] | {"proj_drop_rate": 0.3}
    task, split, _ = build("simclr", shards, double=True, methods__simclr__backbone="vit",
        backbones__vit__options=vit, methods__simclr__projector={"layers": 1, "hidden": 32, "out": 16})  # fmt: skip
    task.train()
    progress, batch = Progress(0, 10, 5), split.gather(torch.arange(8))
    parts = split_batch(batch, 8 // chunk)
    cpu = torch.device("cpu")
    views = [lambda i=i, part=part: make_views(task, part, 0, progress, i, cpu) for i, part in enumerate(parts)]
    weight = task.backbone.net.patch_embed.proj.weight
    together = [task.embed(view(), progress) for view in views]
    whole = {name: torch.cat([part[name] for part in together]) for name in together[0]}
    task.loss(whole, progress).loss.backward()
    expected, weight.grad = weight.grad.clone(), None
    backward(make_accelerator("fp32"), Step(task), task, views, progress)
    return weight.grad, expected


def apart(method: str, shards: Path, chunk: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Gradients of one step in chunks; of independent forwards of each view and chunk; of views in one batch norm."""
    import copy

    from selfsup.task import Progress
    from selfsup.training.chunks import Step, backward
    from selfsup.training.loop import make_views, split_batch

    task, split, _ = build(method, shards, double=True)
    task.train()
    progress, batch, cpu = Progress(0, 10, 5), split.gather(torch.arange(16)), torch.device("cpu")
    parts = split_batch(batch, 16 // chunk)
    views = [lambda i=i, part=part: make_views(task, part, 0, progress, i, cpu) for i, part in enumerate(parts)]

    def of(module: nn.Module) -> dict[str, Tensor]:
        return {name: p.grad for name, p in module.named_parameters()}

    def reference(together: bool) -> dict[str, Tensor]:
        plain = copy.deepcopy(task)
        halves: dict[str, list[Tensor]] = {"a": [], "b": []}
        for view in views:
            pair = view()
            images = [torch.cat(pair)] if together else list(pair)
            z = torch.cat([plain.projector(plain.backbone(x)["pooled"]) for x in images])
            for half, rows in zip(halves.values(), z.chunk(2), strict=True):
                half.append(rows)
        plain.loss({name: torch.cat(half) for name, half in halves.items()}, progress).loss.backward()
        return of(plain)

    expected, joint = reference(together=False), reference(together=True)
    backward(make_accelerator("fp32"), Step(task), task, views, progress)
    counts = {x.item() for name, x in task.state_dict().items() if name.endswith("num_batches_tracked")}
    assert counts == {2 * len(parts)}, "each view of each chunk has statistics of its own"
    return of(task), expected, joint
