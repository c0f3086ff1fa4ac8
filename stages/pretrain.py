"""Pretrain with the chosen method: models/pretrained, models/backbone, metrics/pretrain.json, plots/pretrain.csv.

Equal trainings leave equal files, but for metrics/times/pretrain.json.
"""

import argparse
import json
import logging
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.params import load
from selfsup.processes import launch
from selfsup.tracking import record

WEIGHTS = Path("models/pretrained/task.safetensors")


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = load()
    from selfsup.training import stage
    from selfsup.training.build import method_params

    method_params(params, params.method)
    stage.alone("pretrain", params, params.method, partial(work, params))


def work(params, splits, resume: Path, count: int) -> None:
    from safetensors.torch import save_file

    from selfsup import digests
    from selfsup.files import replaced, write_json
    from selfsup.nets.export import export_backbone
    from selfsup.processes.accelerator import make_accelerator
    from selfsup.training import session
    from selfsup.training.build import method_params
    from selfsup.training.curves import write_csv

    accelerator = make_accelerator(params.pretrain.precision)
    launch.assert_world(count)
    chief, architecture = accelerator.is_main_process, method_params(params, params.method).backbone
    checksum = splits["train"].checksum
    with record.training(params, chief, checksum, resume) as (parent, run), launch.quiet_when_left_alone():
        task, result = session.run(params, params.method, architecture, splits, resume, params.method, run.metrics)
        if not chief:
            return
        metrics = session.summary(task, result, params.method, architecture, params, checksum)
        times = session.times(result)
        task = task.eval().cpu()
        with replaced(WEIGHTS.parent) as folder, replaced(Path("models/backbone")) as exported:
            folder.mkdir()
            save_file({name: x.contiguous() for name, x in task.state_dict().items()}, folder / WEIGHTS.name)
            weights = digests.of_files(folder / WEIGHTS.name)
            export_backbone(task.encoder(), getattr(params.backbones, architecture), params.data.image_size, exported)
        write_csv(result.rows, Path("plots/pretrain.csv"))
        write_json(Path("metrics/pretrain.json"), metrics | {"weights": weights})
        write_json(Path("metrics/times/pretrain.json"), times)
        put_away(weights)
        record.trained(params, parent, weights)
        run.artifact("models/backbone", "backbone")
    if result.alarm:
        logging.getLogger("selfsup.pretrain").warning("ALARM: %s", result.alarm)
    speed = f"{times['images_per_second']:.0f} images/s"
    print(f"{params.method}: {metrics['steps']} steps, loss {metrics['loss']:.4f}, {speed}")


def put_away(weights: str) -> None:
    """Remove figures of other weights, which would be read as those of this training; DVC keeps them in its cache."""
    extracted = Path("metrics/extract.json")
    found = json.loads(extracted.read_text()) if extracted.exists() else {}
    if found.get("computed_from", {}).get("weights") != weights:  # an earlier version did not note it
        for path in (extracted, *Path("metrics/evaluate").glob("*.json")):
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    with one_line_errors():
        main()
