"""The stage `pretrain`: from the chosen method to weights, an exported backbone, metrics and curves."""

import json
import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from selfsup import nets
from selfsup.data.loader import Split
from selfsup.features.store import WEIGHTS
from selfsup.files import replaced, write_json
from selfsup.params import MethodParams, Params
from selfsup.processes import launch
from selfsup.processes.accelerator import make_accelerator
from selfsup.tracking import record
from selfsup.training import session, stage
from selfsup.training.build import method_params
from selfsup.training.curves import write_csv
from selfsup.training.encoders import save_weights

_log = logging.getLogger("selfsup.pretrain")


def pretrain(params: Params) -> None:
    """Train `params.method` on NPROC processes and write models/pretrained, models/backbone, metrics and curves.

    Equal trainings leave equal files, except for metrics/times/pretrain.json. Raises `UserError`.
    """
    block = method_params(params, params.method)
    stage.alone("pretrain", params, params.method, block.backbone, partial(work, params, block))


def work(params: Params, block: MethodParams, splits: Mapping[str, Split], resume: Path, count: int) -> None:
    """Train the chosen method on the splits and write its outputs; checkpoints go to the folder `resume`."""
    accelerator = make_accelerator(params.pretrain.precision)
    launch.assert_world(count)
    chief, architecture = accelerator.is_main_process, block.backbone
    checksum = splits["train"].checksum
    with record.training(params, chief, checksum, resume) as (parent, run), launch.quiet_when_left_alone():
        own = (params.method, run.metrics, accelerator)
        task, result = session.run(params, params.method, block, splits, resume, *own)
        if not chief:
            return
        metrics = session.summary(task, result, params.method, architecture, params, checksum)
        times = session.times(result)
        task = task.eval().cpu()
        with replaced(WEIGHTS.parent) as folder, replaced(Path("models/backbone")) as exported:
            weights = save_weights(task, folder / WEIGHTS.name)
            split, chosen = splits["train"], params.backbones[architecture]
            nets.find(split.kind).export_backbone(task.encoder(), chosen, split.data, exported)
        write_csv(result.rows, Path("plots/pretrain.csv"))
        write_json(Path("metrics/pretrain.json"), metrics | {"weights": weights})
        write_json(Path("metrics/times/pretrain.json"), times)
        put_away(weights)
        record.trained(params, parent, weights)
        run.artifact("models/backbone", "backbone")
    if result.alarm:
        _log.warning("ALARM: %s", result.alarm)
    speed = f"{times['images_per_second']:.0f} {splits['train'].data.noun}/s"
    print(f"{params.method}: {metrics['steps']} steps, loss {metrics['loss']:.4f}, {speed}")


def put_away(weights: str) -> None:
    """Remove figures of other weights, which would be read as those of this training; DVC keeps them in its cache."""
    extracted = Path("metrics/extract.json")
    found = json.loads(extracted.read_text()) if extracted.exists() else {}
    if found.get("computed_from", {}).get("weights") != weights:  # an earlier version did not note it
        for path in (extracted, *Path("metrics/evaluate").glob("*.json")):
            path.unlink(missing_ok=True)
