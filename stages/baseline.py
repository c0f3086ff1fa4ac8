"""What a method is held against, independent of the method: pixels, random weights and supervised training.

`baseline.py pixels` writes features/baselines/pixels; `baseline.py conv` and `baseline.py vit` train the supervised
baseline of that architecture under pretraining's budget and write features/baselines/<architecture>/{random,supervised}
and metrics/baselines/<architecture>.json. Equal trainings leave equal files, but for metrics/times/.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.params import load
from selfsup.processes import launch
from selfsup.tracking import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", choices=["pixels", "conv", "vit"])
    chosen = parser.parse_args().baseline
    params = load()
    if chosen == "pixels":
        pixels(params)
        return
    from selfsup.training import stage
    from selfsup.training.build import method_params

    method_params(params, "supervised")
    stage.alone(f"baseline-{chosen}", params, "supervised", partial(work, params, chosen))


def skipped(folder: Path, reason: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "meta.json").write_text(json.dumps({"skipped": reason}) + "\n")
    print(f"{folder}: skipped, {reason}")


def pixels(params) -> None:
    import torch

    from selfsup.data.loader import open_splits
    from selfsup.features.writer import write_feature_set
    from selfsup.nets.image import Pixels

    folder = Path("features/baselines/pixels")
    if "pixels" not in params.baselines:
        skipped(folder, "not in params.yaml's baselines")
        return
    splits = open_splits(params.data)
    write_feature_set(Pixels(), splits, torch.device("cpu"), params.data.image_size, folder, {"method": "pixels"})


def work(params, architecture: str, splits, resume: Path, count: int) -> None:
    import torch

    from selfsup.features.writer import write_feature_set
    from selfsup.files import write_json
    from selfsup.processes.accelerator import make_accelerator
    from selfsup.training import session
    from selfsup.training.build import fresh_backbone
    from selfsup.training.curves import write_csv

    accelerator = make_accelerator(params.pretrain.precision)
    launch.assert_world(count)
    device, size, chief = accelerator.device, params.data.image_size, accelerator.is_main_process
    folder, rows = Path("features/baselines") / architecture, []
    metrics: dict = {"method": "supervised", "seed": params.seed, "computed_from": {"images": splits["train"].checksum}}
    times, features = {}, {}
    if "random" in params.baselines:
        torch.manual_seed(params.seed)
        encoder = fresh_backbone(params, architecture, splits["train"]).to(device)
        facts = {"method": "random", "backbone": architecture}
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
            task, result = session.run(params, "supervised", architecture, splits, resume, title, run.metrics)
            facts = {"method": "supervised", "backbone": architecture, "epochs": params.pretrain.epochs}
            encoder = task.eval().encoder().to(device)
            written = write_feature_set(encoder, splits, device, size, folder / "supervised", facts)
            features["supervised"] = written["digest"]
        metrics = session.summary(task, result, "supervised", architecture, params, splits["train"].checksum)
        times, rows = session.times(result), result.rows
    elif chief:
        skipped(folder / "supervised", reason)
    if chief:
        write_csv(rows, Path(f"plots/baselines/{architecture}.csv"))
        write_json(Path(f"metrics/baselines/{architecture}.json"), metrics | {"features": features})
        write_json(Path(f"metrics/times/baselines/{architecture}.json"), times)


if __name__ == "__main__":
    with one_line_errors():
        main()
