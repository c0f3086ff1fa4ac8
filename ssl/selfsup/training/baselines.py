"""The baselines: raw samples, and random weights and supervised training of the backbone that the method has."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from selfsup import nets
from selfsup.data.loader import Split, open_splits
from selfsup.features.writer import write_feature_set
from selfsup.files import replaced, write_json
from selfsup.params import MethodParams, Params
from selfsup.processes import launch
from selfsup.processes.accelerator import make_accelerator
from selfsup.tracking import record
from selfsup.training import session, stage
from selfsup.training.curves import write_csv
from selfsup.training.encoders import SUPERVISED, random_encoder, save_weights, supervised_params

FOLDER = Path("features/baselines")


def baseline(params: Params, architecture: str) -> None:
    """Write features/baselines/{random,supervised}, models/baselines and metrics on NPROC processes.

    Equal trainings leave equal files, except for metrics/times. Raises `UserError`.
    """
    block = supervised_params(params, architecture)
    stage.alone("baseline", params, "supervised", architecture, partial(work, params, block))


def skipped(folder: Path, reason: str) -> None:
    """Write in place of a folder's files why there are none."""
    with replaced(folder) as new:
        new.mkdir()
        (new / "meta.json").write_text(json.dumps({"skipped": reason}) + "\n")
    print(f"{folder}: skipped, {reason}")


def pixels(params: Params) -> None:
    """The raw samples as features/baselines/pixels."""
    if "pixels" not in params.baselines:
        skipped(FOLDER / "pixels", "not in params.yaml's baselines")
        return
    splits = open_splits(params.data)
    resume = session.raw_folder(stage.ROOT, splits["train"])
    with session.owned(resume):
        raw, facts = nets.find(splits["train"].kind).Raw(), {"method": "pixels"}
        write_feature_set(raw, splits, torch.device("cpu"), FOLDER / "pixels", facts, resume)
        session.finished(resume)


def work(params: Params, block: MethodParams, splits: dict[str, Split], resume: Path, count: int) -> None:
    """Features of random weights, then a supervised training and its features."""
    accelerator = make_accelerator(params.pretrain.precision)
    launch.assert_world(count)
    device, chief = accelerator.device, accelerator.is_main_process
    metrics: dict = {"method": "supervised", "seed": params.seed, "computed_from": {"images": splits["train"].checksum}}
    times, features, rows = {}, {}, []
    if "random" in params.baselines:
        encoder = random_encoder(params, block.backbone, splits["train"]).to(device)
        facts = {"method": "random", "backbone": block.backbone}
        features["random"] = write_feature_set(encoder, splits, device, FOLDER / "random", facts, resume)["digest"]
    elif chief:
        skipped(FOLDER / "random", "not in params.yaml's baselines")
    reason = None
    if "supervised" not in params.baselines:
        reason = "not in params.yaml's baselines"
    elif not splits["train"].classes:
        reason = "the data has no labels"
    if reason is None:
        metrics, result, features["supervised"] = supervised(params, block, splits, resume, accelerator)
        times, rows = session.times(result), result.rows
    elif chief:
        skipped(FOLDER / "supervised", reason)
        skipped(SUPERVISED.parent, reason)
    if chief:
        write_csv(rows, Path("plots/baseline.csv"))
        write_json(Path("metrics/baseline.json"), metrics | {"features": features})
        write_json(Path("metrics/times/baseline.json"), times)


def supervised(
    params: Params, block: MethodParams, splits: Mapping[str, Split], resume: Path, accelerator: Any
) -> tuple[dict[str, Any], session.Result, str]:
    """Train with labels; write the weights and the features. Returns metrics, result and the features' digest."""
    architecture, checksum, chief = block.backbone, splits["train"].checksum, accelerator.is_main_process
    values = params.model_dump(include={"seed", "data", "backbones", "views", "pretrain"})
    values["methods"] = {"supervised": params.methods["supervised"]}
    title = f"supervised {architecture}"
    single = record.single(params, f"baseline {architecture}", chief, values, checksum, resume)
    with single as run, launch.quiet_when_left_alone():
        task, result = session.run(params, "supervised", block, splits, resume, title, run.metrics, accelerator)
        facts = {"method": "supervised", "backbone": architecture, "epochs": params.pretrain.epochs}
        if chief:
            with replaced(SUPERVISED.parent) as new:
                facts["weights"] = save_weights(task, new / SUPERVISED.name)
        encoder, device = task.eval().encoder().to(accelerator.device), accelerator.device
        digest = write_feature_set(encoder, splits, device, FOLDER / "supervised", facts, resume)["digest"]
    return session.summary(task, result, "supervised", architecture, params, checksum), result, digest
