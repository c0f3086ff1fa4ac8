"""The network of each row of a table: from saved weights, or from the seed where its weights are random."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from selfsup import digests
from selfsup.data.loader import Split
from selfsup.errors import UserError, missing
from selfsup.features.store import WEIGHTS
from selfsup.params import MethodParams, Params
from selfsup.task import Task
from selfsup.training.build import build_task, fresh_backbone, method_params

SUPERVISED = Path("models/baselines/supervised.safetensors")


def encoder_of(row: str, params: Params, split: Split) -> nn.Module | None:
    """The encoder of a row, in evaluation mode on the CPU; None for rows without a network.

    `row` is one of `features.store.ROWS`, `split` the training split. Raises `UserError` where weights are missing,
    damaged or of another network.
    """
    block = method_params(params, params.method)
    if row == "random":
        return random_encoder(params, block.backbone, split).eval()
    if row == "supervised":
        return trained(params, row, supervised_params(params, block.backbone), split, SUPERVISED).encoder().eval()
    return trained(params, params.method, block, split, WEIGHTS).encoder().eval() if row == "method" else None


def supervised_params(params: Params, architecture: str) -> MethodParams:
    """The block of the supervised baseline with the backbone of the method that it is held against."""
    return method_params(params, "supervised").model_copy(update={"backbone": architecture})


def random_encoder(params: Params, architecture: str, split: Split) -> nn.Module:
    """The backbone with the weights that the seed gives. Seeds torch's generator."""
    torch.manual_seed(params.seed)
    return fresh_backbone(params, architecture, split)


def trained(params: Params, method: str, block: MethodParams, split: Split, path: Path) -> Task:
    """The task with the weights in `path`. Raises `UserError`: no such file, damaged, or of another network."""
    stage = "pretrain" if path == WEIGHTS else "baseline"
    again = f"run `dvc repro --force --single-item {stage}`"
    task = build_task(params, method, block, split)
    try:
        task.load_state_dict(load_file(path))
    except FileNotFoundError:
        raise missing(path) from None
    except SafetensorError as error:
        raise UserError(f"{path}: damaged ({error}); {again}") from None
    except RuntimeError:  # torch's error has one line per tensor
        network = f"{method} with the backbone {block.backbone}"
        raise UserError(f"{path}: not of {network}; run `dvc repro {stage}`") from None
    return task


def save_weights(task: nn.Module, path: Path) -> str:
    """Write all weights and buffers to a new file; return its digest."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: x.cpu().contiguous() for name, x in task.state_dict().items()}, path)
    return digests.of_files(path)
