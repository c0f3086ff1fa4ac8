"""The stage `extract`: from pretrained weights to the features of all splits."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

import numpy as np

from selfsup import digests
from selfsup.data.loader import Split
from selfsup.features.measures import label_free
from selfsup.features.store import WEIGHTS
from selfsup.features.writer import write_feature_set
from selfsup.files import write_json
from selfsup.params import MethodParams, Params
from selfsup.processes import launch
from selfsup.processes.accelerator import make_accelerator
from selfsup.tracking import record
from selfsup.training import session, stage
from selfsup.training.build import method_params
from selfsup.training.encoders import trained


def extract(params: Params) -> None:
    """Write features/pretrained and metrics/extract.json on NPROC processes. Raises `UserError`."""
    block = method_params(params, params.method)
    stage.alone("extract", params, params.method, block.backbone, partial(work, params, block))


def work(params: Params, block: MethodParams, splits: Mapping[str, Split], resume: Path, count: int) -> None:
    """Extract on this process's share of the samples; what is not whole yet is kept in the folder `resume`."""
    accelerator = make_accelerator("fp32")
    launch.assert_world(count)
    task = trained(params, params.method, block, splits["train"], WEIGHTS)
    encoder = task.encoder().to(accelerator.device)
    weights = digests.of_files(WEIGHTS)
    facts = {"method": params.method, "backbone": block.backbone, "epochs": params.pretrain.epochs, "weights": weights}
    chief = accelerator.is_main_process
    with record.nested(params, "extract", weights, chief=chief) as (_, run), launch.quiet_when_left_alone():
        folder = Path("features/pretrained")
        session.begin(resume, params, params.method, block.backbone, splits["train"].checksum)
        meta = write_feature_set(encoder, splits, accelerator.device, folder, facts, resume)
        if chief:
            test = np.load(folder / "test.npy", mmap_mode="r")
            found = label_free(test, params.seed)
            origin = {"images": splits["train"].checksum, "weights": weights}
            metrics = {"method": params.method, "seed": params.seed, "computed_from": origin}
            write_json(Path("metrics/extract.json"), metrics | {"features": meta["digest"], "test": found})
            write_json(Path("metrics/times/extract.json"), {"images_per_second": meta["images_per_second"]})
            run.metrics(found, 0)
            speed = f"{meta['images_per_second']:.0f} {splits['train'].data.noun}/s"
            print(f"features: {meta['width']} numbers per sample, {speed}")
