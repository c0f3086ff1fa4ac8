"""The stage `extract`: from pretrained weights to the features of all splits."""

from pathlib import Path

import numpy as np

from selfsup import digests
from selfsup.data.index import verify
from selfsup.data.loader import open_splits
from selfsup.features.measures import label_free
from selfsup.features.store import WEIGHTS
from selfsup.features.writer import write_feature_set
from selfsup.files import write_json
from selfsup.params import Params
from selfsup.processes import launch, signals
from selfsup.processes.accelerator import make_accelerator
from selfsup.tracking import record
from selfsup.training.build import method_params
from selfsup.training.encoders import trained


def extract(params: Params) -> None:
    """Write features/pretrained and metrics/extract.json on NPROC processes. Raises `UserError`."""
    count, worker = launch.processes(), launch.inside()
    if count > 1 and not worker:
        verify("data/shards", params.data.verify)  # once, and not by every process
        launch.check_devices(count)
        launch.relaunch(count)
        return
    signals.stop_on_sigterm()
    with launch.quiet_when_left_alone():
        work(params, count, verified=worker)


def work(params: Params, count: int, verified: bool) -> None:
    """Extract on this process's share of the images; `verified`: the shards have just been checked."""
    accelerator = make_accelerator("fp32")
    launch.assert_world(count)
    splits = open_splits(params.data, verified=verified)
    block = method_params(params, params.method)
    task = trained(params, params.method, block, splits["train"], WEIGHTS)
    encoder = task.encoder().to(accelerator.device)
    weights = digests.of_files(WEIGHTS)
    facts = {"method": params.method, "backbone": block.backbone, "epochs": params.pretrain.epochs, "weights": weights}
    chief = accelerator.is_main_process
    with record.nested(params, "extract", weights, chief=chief) as (_, run), launch.quiet_when_left_alone():
        folder = Path("features/pretrained")
        meta = write_feature_set(encoder, splits, accelerator.device, splits["train"].data.image_size, folder, facts)
        if chief:
            test = np.load(folder / "test.npy", mmap_mode="r")
            found = label_free(test, params.seed)
            origin = {"images": splits["train"].checksum, "weights": weights}
            metrics = {"method": params.method, "seed": params.seed, "computed_from": origin}
            write_json(Path("metrics/extract.json"), metrics | {"features": meta["digest"], "test": found})
            write_json(Path("metrics/times/extract.json"), {"images_per_second": meta["images_per_second"]})
            run.metrics(found, 0)
            print(f"features: {meta['width']} numbers per image, {meta['images_per_second']:.0f} images/s")
