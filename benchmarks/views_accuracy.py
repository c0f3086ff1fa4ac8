"""Whether the faster colour mode costs accuracy: kNN of SimCLR trained with either, over seeds.

    python benchmarks/views_accuracy.py --images /path/of/class/folders  # writes benchmarks/results/views-accuracy.md

Readings are on images held out of training, from the last weights. Seeds take turns between the modes and share their
first weights, order of images, crops and factors; nothing but the colours' arithmetic differs.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import common
from workload import NETWORKS, image_folder, parameters

from selfsup.data.loader import open_splits
from selfsup.data.shards import write
from selfsup.training.session import run

MODES = ("exact", "matrix")


def trained(params, folder: Path, colour: str, seed: int) -> float:
    """kNN accuracy on the validation split after the last epoch, %."""
    views = params.views.model_copy(update={"colour": colour})
    params = params.model_copy(update={"views": views, "seed": seed})
    splits = open_splits(params.data, folder / "shards", verified=True)
    with tempfile.TemporaryDirectory() as resume:
        _, result = run(params, params.method, "conv", splits, Path(resume), f"{colour} {seed}", lambda *_: None)
    return 100 * result.rows[-1]["knn_validation"]


def main() -> None:
    parser = common.arguments(__doc__, "views-accuracy.md")
    parser.add_argument("--images", type=Path, required=True, help="class folders")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--limit", type=int, default=10_000, help="training images")
    parser.add_argument("--network", choices=NETWORKS, default="ResNet-9 w8")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    args = parser.parse_args()
    data = image_folder(args.images, args.size) | {"limit": args.limit, "validation": 0.1}
    settings = {"epochs": args.epochs, "warmup_epochs": 1, "knn_every": args.epochs}
    params = parameters(data, "simclr", NETWORKS[args.network], **settings)
    found: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write(params.data.of("image"), 0, folder / "shards")
        for seed in args.seeds:
            for mode in MODES:
                found[mode].append(trained(params, folder, mode, seed))
    rows = [
        [seed, *(f"{found[mode][i]:.1f}" for mode in MODES), f"{found['matrix'][i] - found['exact'][i]:+.1f}"]
        for i, seed in enumerate(args.seeds)
    ]
    difference = [b - a for a, b in zip(found["exact"], found["matrix"], strict=True)]
    means = [f"{statistics.mean(found[mode]):.1f}" for mode in MODES]
    rows.append(["mean", *means, f"{statistics.mean(difference):+.1f}"])
    text = (
        f"SimCLR, {args.network}, {args.limit:,} images of {args.size} px, {args.epochs} epochs of batch "
        f"{params.pretrain.batch_size}; kNN (k = 20) on held-out training images, %."
    )
    where = common.conditions("torch")
    common.write(args.out, "Accuracy by colour mode", text, where, common.table(["seed", *MODES, "difference"], rows))


if __name__ == "__main__":
    main()
