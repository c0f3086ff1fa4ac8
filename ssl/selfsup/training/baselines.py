"""The baselines: raw samples, and random weights and supervised training of the backbone that the method has."""

import json
from functools import partial
from pathlib import Path

import torch

from selfsup.data.loader import Split, open_splits
from selfsup.features.writer import write_feature_set
from selfsup.files import write_json
from selfsup.nets.image import Pixels
from selfsup.params import MethodParams, Params
from selfsup.processes import launch
from selfsup.processes.accelerator import make_accelerator
from selfsup.tracking import record
from selfsup.training import session, stage
from selfsup.training.build import fresh_backbone, method_params
from selfsup.training.curves import write_csv


def baseline(params: Params, architecture: str) -> None:
    """Write features/baselines/{random,supervised} and their metrics on NPROC processes. Raises `UserError`.

    Equal trainings leave equal files, except for metrics/times.
    """
    block = method_params(params, "supervised").model_copy(update={"backbone": architecture})
    stage.alone("baseline", params, "supervised", architecture, partial(work, params, block))


def skipped(folder: Path, reason: str) -> None:
    """Say in place of features why there are none."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"skipped": reason}) + "\n")
    print(f"{folder}: skipped, {reason}")


def pixels(params: Params) -> None:
    """The raw images as features/baselines/pixels."""
    folder = Path("features/baselines/pixels")
    if "pixels" not in params.baselines:
        skipped(folder, "not in params.yaml's baselines")
        return
    splits = open_splits(params.data)
    write_feature_set(
        Pixels(), splits, torch.device("cpu"), splits["train"].data.image_size, folder, {"method": "pixels"}
    )


def work(params: Params, block: MethodParams, splits: dict[str, Split], resume: Path, count: int) -> None:
    """Features of random weights, then a supervised training and its features."""
    architecture = block.backbone
    accelerator = make_accelerator(params.pretrain.precision)
    launch.assert_world(count)
    device, size, chief = accelerator.device, splits["train"].data.image_size, accelerator.is_main_process
    folder, rows = Path("features/baselines"), []
    metrics: dict = {"method": "supervised", "seed": params.seed, "computed_from": {"images": splits["train"].checksum}}
    times, features = {}, {}
    if "random" in params.baselines:
        torch.manual_seed(params.seed)
        encoder: torch.nn.Module = fresh_backbone(params, architecture, splits["train"]).to(device)
        facts: dict = {"method": "random", "backbone": architecture}
        features["random"] = write_feature_set(encoder, splits, device, size, folder / "random", facts)["digest"]
    elif chief:
        skipped(folder / "random", "not in params.yaml's baselines")
    reason = None
    if "supervised" not in params.baselines:
        reason = "not in params.yaml's baselines"
    elif not splits["train"].classes:
        reason = "the data has no labels"
    if reason is None:
        title = f"supervised {architecture}"
        values = params.model_dump(include={"seed", "data", "backbones", "views", "pretrain"})
        values["methods"] = {"supervised": params.methods["supervised"]}
        checksum = splits["train"].checksum
        single = record.single(params, f"baseline {architecture}", chief, values, checksum, resume)
        with single as run, launch.quiet_when_left_alone():
            task, result = session.run(params, "supervised", block, splits, resume, title, run.metrics, accelerator)
            facts = {"method": "supervised", "backbone": architecture, "epochs": params.pretrain.epochs}
            encoder = task.eval().encoder().to(device)
            written = write_feature_set(encoder, splits, device, size, folder / "supervised", facts)
            features["supervised"] = written["digest"]
        metrics = session.summary(task, result, "supervised", architecture, params, splits["train"].checksum)
        times, rows = session.times(result), result.rows
    elif chief:
        skipped(folder / "supervised", reason)
    if chief:
        write_csv(rows, Path("plots/baseline.csv"))
        write_json(Path("metrics/baseline.json"), metrics | {"features": features})
        write_json(Path("metrics/times/baseline.json"), times)
