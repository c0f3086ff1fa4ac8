"""kNN of held-out training images layer by layer, before and after training: where a method puts what it learns.

    python benchmarks/layers.py digits --methods rotation simclr
    python benchmarks/layers.py digits --methods cpc --patches 8      # also patch by patch, as CPC sees images

The layers' maps are averaged over their places. Half of the training images are held out, and a training has as many
steps as with all of them; no test split is read. A last layer that falls behind an earlier one, or behind random
weights, has been bent to the pretext task.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch

from selfsup.compare import plan, setup, tune
from selfsup.config import parse
from selfsup.data.loader import Split
from selfsup.errors import UserError, one_line_errors
from selfsup.evaluation.neighbours import knn_accuracy
from selfsup.methods.cpc import patches_of
from selfsup.params import Params
from selfsup.processes.accelerator import make_accelerator
from selfsup.training import session
from selfsup.training.build import build_task, method_params
from selfsup.views.image.recipe import centre_view

HELD_OUT = 0.49  # of the training images; `data.validation` ends below a half


def blocks(net: Any) -> list[torch.nn.Module]:
    """The layers one after another: of ResNet-9, of a vision transformer, of timm's ResNets."""
    for name in ("layers", "blocks"):
        if hasattr(net, name):
            return list(getattr(net, name))
    return [module for name, module in net.named_children() if name.startswith("layer")]


@torch.no_grad()
def features(encoder: Any, split: Split, size: int, patches: int | None) -> list[np.ndarray]:
    """Mean of every layer's map, [n D] each; then the patches' features averaged and side by side."""
    found: list[list[torch.Tensor]] = []
    for ids in np.array_split(np.arange(split.samples), max(1, split.samples // 256)):
        images, batch = centre_view(split.gather(ids), size), []

        def keep(_module: Any, _inputs: Any, output: torch.Tensor, batch: list = batch) -> None:
            batch.append(output.mean((2, 3) if output.ndim == 4 else 1))

        hooks = [block.register_forward_hook(keep) for block in blocks(encoder.net)]
        encoder(images)
        for hook in hooks:
            hook.remove()
        if patches:
            tiles = patches_of(images, patches)
            codes = encoder(tiles.flatten(0, 2))["pooled"].unflatten(0, tiles.shape[:3]).flatten(1, 2)  # [B L D]
            batch += [codes.mean(1), codes.flatten(1)]
        found.append(batch)
    return [torch.cat(parts).numpy() for parts in zip(*found, strict=True)]


def accuracies(encoder: Any, splits: Any, size: int, patches: int | None) -> list[str]:
    bank, queries = (features(encoder.eval(), splits[name], size, patches) for name in ("train", "validation"))
    labels = splits["train"].labels, splits["validation"].labels
    pairs = zip(bank, queries, strict=True)
    return [f"{100 * knn_accuracy(a, labels[0], b, labels[1]):.1f}" for a, b in pairs]


def rows(method: str, params: Params, patches: int | None) -> list[list[str]]:
    splits = tune.held_out(params, "image", HELD_OUT, common.ROOT / tune.PLACE)
    params = tune.budget(params, splits, HELD_OUT, None)
    block, size = method_params(params, method), params.data.of("image").image_size
    fresh = build_task(params, method, block, splits["train"]).encoder()
    before = accuracies(fresh, splits, size, patches)
    with tempfile.TemporaryDirectory() as resume:
        quiet: Any = lambda row, step: None  # noqa: E731 - no tracker listens
        task, _ = session.run(
            params, method, block, splits, Path(resume), method, quiet, make_accelerator(params.pretrain.precision)
        )
    return [["random weights", *before], [method, *accuracies(task.encoder(), splits, size, patches)]]


def main() -> None:
    parser = common.arguments(__doc__, "layers-<method>.md")
    parser.add_argument("setup", choices=setup.names(common.ROOT))
    parser.add_argument("--methods", nargs="+", required=True, help="of one backbone: conv or vit")
    parser.add_argument("--patches", type=int, help="side of patches that overlap by half, pixels")
    parser.add_argument("-S", "--set-param", action="append", default=[], help="an override, as of dvc exp run")
    args = parser.parse_args()
    base = setup.base_of(common.ROOT)
    values = setup.merged(base, setup.read(common.ROOT, args.setup, base))
    params = parse(Params, plan.overridden(values, args.set_param))
    found = [row for method in args.methods for row in rows(method, params, args.patches)]
    if len({len(row) for row in found}) > 1:
        raise UserError("--methods: networks of different depth do not fit one table; give those of one backbone")
    found = [list(row) for row in dict.fromkeys(map(tuple, found))]  # random weights are the same for all
    own = ["patches, mean", "patches, side by side"] if args.patches else []
    head = ["", *(f"layer {i}" for i in range(1, len(found[0]) - len(own))), *own]
    out = args.out or common.RESULTS / f"layers-{'-'.join(args.methods)}.md"
    text = "kNN accuracy of held-out training images, %, by the features of each layer."
    common.write(out, f"Layers, {args.setup}", text, common.conditions("torch", "timm"), common.table(head, found))
    print(out.read_text(), file=sys.stderr)


if __name__ == "__main__":
    with one_line_errors():
        main()
