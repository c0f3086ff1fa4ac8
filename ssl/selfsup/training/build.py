"""From `params.yaml` and the data to a task ready to train, with weights that depend on the seed alone."""

from typing import Any

import torch

from selfsup import methods, nets
from selfsup.about import ANY
from selfsup.config import choose, parse
from selfsup.data.loader import Split
from selfsup.epochs import fitted, shortened
from selfsup.errors import UserError
from selfsup.params import MethodParams, Params
from selfsup.task import Facts, Task
from selfsup.training.schedule import peak_lr


def method_params(params: Params, name: str) -> MethodParams:
    """The block `methods.<name>`, validated by the method's own `Params`."""
    model, _ = methods.find(name)
    if name not in params.methods:
        raise UserError(f"params.yaml: methods.{name}: missing block; add it")
    block = parse(model, params.methods[name], prefix=f"methods.{name}")
    try:
        choose(f"methods.{name}.backbone", block.backbone, sorted(params.backbones))
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    return block


def short_run(params: Params, name: str, block: MethodParams) -> str | None:
    """The note that a run of `pretrain.epochs` shortens what counts epochs; None where nothing is too long."""
    epochs, method = params.pretrain.epochs, f"methods.{name}"
    sections = {"pretrain": params.pretrain, method: block}
    changes = [
        f"{where}.{knob} from {getattr(section, knob):g} to {value:g}"
        for where, section in sections.items()
        for knob, value in shortened(section, epochs).items()
    ]
    return f"note: pretrain.epochs: {epochs} shortens {', '.join(changes)}" if changes else None


def fresh_backbone(params: Params, architecture: str, split: Split) -> Any:
    """The backbone `backbones.<architecture>` with new weights from torch's generator."""
    return nets.find(split.kind).build_backbone(params.backbones[architecture], split.data, split.facts)


def build_task(params: Params, name: str, block: MethodParams, split: Split) -> Task:
    """The method `name` with the knobs of `block`; `split` is the training split. Seeds torch's generator."""
    block = fitted(block, params.pretrain.epochs)
    if (kind := methods.find(name)[1].about.kind) not in (split.kind, ANY):
        raise UserError(f"data/shards: of the kind {split.kind}, but {name} needs {kind}; run dvc repro shard")
    facts = Facts(
        samples=split.samples,
        classes=len(split.classes),
        data=split.data,
        found=split.facts,
        batch_size=params.pretrain.batch_size,
        peak_lr=peak_lr(block.optimizer, params.pretrain),
        views=params.views,
        backbone=lambda: fresh_backbone(params, block.backbone, split),
    )
    torch.manual_seed(params.seed)
    return methods.build(name, block, facts)
