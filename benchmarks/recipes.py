"""How well settings of a method do on images held out of training: how the recipes were chosen. No test split is read.

    python benchmarks/recipes.py digits --methods simclr byol --vary optimizer.lr 0.4 1.6 4
    python benchmarks/recipes.py digits --methods swav --vary optimizer.lr 0.6 2 --vary eps 0.05 0.03 -S ...

Half of the training images are held out and take the place of the validation split; epochs and warm-up are stretched,
so that there are as many steps as with all of them. Each setting of the grid is trained once a seed, and its reading is
the kNN accuracy (k = 20) of the held-out images among the others, after the last step. Readings are kept in
`.cache/recipes`: a grid that was stopped continues, and a larger one trains only what is new.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import common

from selfsup.compare import setup
from selfsup.data.loader import Split, open_splits
from selfsup.data.shards import write
from selfsup.errors import one_line_errors
from selfsup.evaluation.neighbours import knn_accuracy
from selfsup.params import Params, load
from selfsup.processes.accelerator import make_accelerator
from selfsup.training import probe, session
from selfsup.training.build import build_task, method_params

KEPT = common.ROOT / ".cache" / "recipes"
HELD_OUT = 0.49  # of the training images; `data.validation` ends below a half


def overrides_of(name: str, more: list[str]) -> list[str]:
    """A set-up in the words of `dvc exp run -S`, and `more` after it."""
    base = setup.base_of(common.ROOT)
    return [*setup.overrides(base, setup.read(common.ROOT, name, base)), *more]


def parameters(overrides: list[str]) -> Params:
    """`params.yaml` with overrides in the words of `dvc exp run -S`."""
    from dvc.utils.hydra import apply_overrides

    with tempfile.TemporaryDirectory() as folder:
        file = shutil.copy(common.ROOT / "params.yaml", folder)
        apply_overrides(file, overrides)
        return load(file)


def key(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()[:24]


def half(params: Params) -> tuple[Params, dict[str, Split], Path]:
    """The set-up on half of its training images, with as many steps as on all of them."""
    data = params.data
    params = params.model_copy(update={"data": data.model_copy(update={"validation": HELD_OUT})})
    folder = KEPT / key(params.data.model_dump(), params.seed)
    if not (folder / "shards").exists():
        write(params.data.of("image"), params.seed, folder / "shards")
    splits = open_splits(params.data, folder / "shards", verified=True)
    batch, trained = params.pretrain.batch_size, splits["train"].samples
    whole = int((trained + splits["validation"].samples) * (1 - data.validation))
    longer = (whole // batch) / (trained // batch)
    epochs = {"epochs": round(params.pretrain.epochs * longer), "warmup_epochs": params.pretrain.warmup_epochs * longer}
    pretrain = params.pretrain.model_copy(update={**epochs, "knn_every": 0})
    return params.model_copy(update={"pretrain": pretrain}), splits, folder


def accuracy(splits: Mapping[str, Split], encoder: Any) -> float:
    from selfsup.features.encode import embed

    device = next(encoder.parameters()).device
    bank, queries = (embed(encoder, splits[name], device, probe.BANK) for name in ("train", "validation"))
    return knn_accuracy(*bank, *queries)


def reading(overrides: list[str], method: str, seed: int) -> dict[str, float]:
    """kNN accuracy before and after training, the loss at both ends and images/s; kept once it was taken."""
    params = parameters([*overrides, f"method={method}", f"seed={seed}"])
    shared = params.model_dump(include={"seed", "data", "backbones", "views", "pretrain"})
    file = KEPT / f"{key(shared, method, params.methods[method], session.code_checksum(method))}.json"
    if file.exists():
        return json.loads(file.read_text())
    params, splits, folder = half(params)
    block, accelerator = method_params(params, method), make_accelerator(params.pretrain.precision)
    os.environ["DVC_ROOT"] = str(folder)  # where decoded images are kept
    fresh = build_task(params, method, block, splits["train"]).eval()
    before = accuracy(splits, fresh.encoder())
    with tempfile.TemporaryDirectory() as resume:
        quiet: Any = lambda row, step: None  # noqa: E731 - no tracker listens
        task, result = session.run(params, method, block, splits, Path(resume), method, quiet, accelerator)
    found = {
        "random": before,
        "knn": accuracy(splits, task.eval().encoder()),
        "first": result.rows[0]["loss"],
        "last": result.rows[-1]["loss"],
        "speed": result.images_per_second,
    }
    file.write_text(json.dumps(found))
    return found


def row(method: str, setting: list[str], runs: list[dict[str, float]]) -> list[str]:
    def mean(name: str) -> float:
        return statistics.mean(run[name] for run in runs)

    each = " ".join(f"{100 * run['knn']:.1f}" for run in runs)
    gain = f"{100 * (mean('knn') - mean('random')):+.1f}"
    losses = f"{mean('first'):.3g} to {mean('last'):.3g}"
    return [method, ", ".join(setting) or "as it is", f"{100 * mean('knn'):.1f}", each, gain, losses]


def main() -> None:
    parser = common.arguments(__doc__, "recipes-<set-up>.md")
    parser.add_argument("setup", choices=setup.names(common.ROOT))
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--vary", nargs="+", action="append", default=[], metavar=("KNOB", "VALUE"),
                        help="a knob of the method's block and its values; several: all combinations")  # fmt: skip
    parser.add_argument("-S", "--set-param", action="append", default=[], help="an override, as of dvc exp run")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    args = parser.parse_args()
    common_part = overrides_of(args.setup, args.set_param)
    rows = []
    for method in args.methods:
        knobs = [[f"{name}={value}" for value in values] for name, *values in args.vary]
        for setting in itertools.product(*knobs):
            overrides = [*common_part, *(f"methods.{method}.{word}" for word in setting)]
            rows.append(row(method, list(setting), [reading(overrides, method, seed) for seed in args.seeds]))
            print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    rows.sort(key=lambda cells: (args.methods.index(cells[0]), -float(cells[2])))
    head = ["method", "setting", "kNN, %", "seed by seed", "over random weights", "loss"]
    text = f"kNN accuracy of held-out training images, seeds {args.seeds}; each method's best setting first."
    out = args.out or common.RESULTS / f"recipes-{args.setup}.md"
    common.write(out, f"Recipes for {args.setup}", text, common.conditions("torch", "timm"), common.table(head, rows))


if __name__ == "__main__":
    with one_line_errors():
        main()
