"""Features of every split from the pretrained backbone: features/pretrained, metrics/extract.json."""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

import launch
import record
from selfsup.data.index import verify
from selfsup.errors import UserError, missing, one_line_errors
from selfsup.params import load


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params, count = load(), launch.processes()
    worker = launch.inside()
    if count > 1 and not worker:
        verify("data/shards", params.data.verify)  # once, and not by every process
        launch.check_devices(count)
        launch.relaunch(count)
        return
    launch.stop_on_sigterm()
    with launch.quiet_when_left_alone():
        work(params, count, verified=worker)


def work(params, count: int, verified: bool) -> None:
    import numpy as np
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from selfsup.evaluation.extraction import write_feature_set
    from selfsup.evaluation.label_free import label_free
    from selfsup.files import replaced
    from selfsup.training.build import build_task, method_params
    from selfsup.training.loop import make_accelerator
    from selfsup.training.session import open_splits

    accelerator = make_accelerator("fp32")
    launch.assert_world(count)
    splits = open_splits(params.data, verified=verified)
    architecture = method_params(params, params.method).backbone
    task = build_task(params, params.method, architecture, splits["train"])
    weights = Path("models/pretrained/task.safetensors")
    try:
        task.load_state_dict(load_file(weights))
    except FileNotFoundError:
        raise missing(weights) from None
    except SafetensorError as error:
        raise UserError(f"{weights}: damaged ({error}); run `dvc repro --force --single-item pretrain`") from None
    encoder = task.encoder().to(accelerator.device)
    facts = {"method": params.method, "backbone": architecture, "epochs": params.pretrain.epochs}
    with record.nested(params, "extract", accelerator.is_main_process) as run, launch.quiet_when_left_alone():
        folder = Path("features/pretrained")
        meta = write_feature_set(encoder, splits, accelerator.device, params.data.image_size, folder, facts)
        if accelerator.is_main_process:
            test = np.load(folder / "test.npy", mmap_mode="r")
            metrics = {"images_per_second": meta["images_per_second"], "test": label_free(test, params.seed)}
            with replaced(Path("metrics/extract.json")) as new:
                new.write_text(json.dumps(metrics, indent=2) + "\n")
            run.metrics(metrics["test"], 0)
            print(f"features: {meta['width']} numbers an image, {meta['images_per_second']:.0f} images/s")


if __name__ == "__main__":
    with one_line_errors():
        main()
