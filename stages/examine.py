"""Look inside the frozen networks of all rows: metrics/evaluate/<protocol>.json, evaluations/<protocol>."""

import argparse
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup import nets, views
from selfsup.data.loader import open_splits
from selfsup.errors import one_line_errors
from selfsup.evaluation import protocols
from selfsup.evaluation.kept import code_digest
from selfsup.evaluation.networks import Images, ImageSplits, Networks
from selfsup.evaluation.run import evaluate, read_inputs, tracked
from selfsup.imports import PACKAGE
from selfsup.params import Params, load
from selfsup.processes.accelerator import make_accelerator
from selfsup.tracking import record
from selfsup.training.encoders import encoder_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", help=", ".join(name for name in protocols.names() if protocols.find(name).inside))
    name = protocols.find(parser.parse_args().protocol).name
    params = load()
    inputs = read_inputs(params)
    with record.nested(params, f"examine {name}", inputs.weights, inputs.computed_from(params)) as (parent, run):
        every, own = tracked(name, evaluate(name, params, inputs, networks(params)))
        run.metrics(every, 0)
        parent.metrics(own, 0)


def networks(params: Params) -> Networks:
    """The encoders of all rows and the images, on the GPU where there is one."""
    splits, device = open_splits(params.data), make_accelerator("fp32").device
    train = splits["train"]
    view = partial(views.find(train.kind).plain, data=train.data)

    def encoder(row: str):
        return nets.find(train.kind).Raw() if row == "pixels" else encoder_of(row, params, train).to(device)

    def code(row: str) -> str:
        files = [PACKAGE / "training/encoders.py", PACKAGE / "views/__init__.py", PACKAGE / "nets/__init__.py"]
        own = {"methods": [params.method if row == "method" else "supervised"], "views": [train.kind]}
        return code_digest(*files, nets=[train.kind], **own)

    return Networks(encoder, ImageSplits(**{name: Images(split, view, device) for name, split in splits.items()}), code)


if __name__ == "__main__":
    with one_line_errors():
        main()
