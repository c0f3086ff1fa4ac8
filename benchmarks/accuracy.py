"""Accuracy on the test split, %, over methods and seeds through the pipeline itself, as a table and a picture.

    python benchmarks/accuracy.py fashion-mnist --methods simclr byol --seeds 0 1 2 \\
        -S data.limit=10000 -S backbones.conv.options={width:8} -S pretrain.epochs=30

It is the study compare/accuracy.yaml with a set-up: mean and standard deviation over seeds, and the gain over random
weights in points. Finished runs are in DVC's cache, so that a stopped benchmark continues where it stopped. The seed
decides everything: weights, order, views, the training images that `data.limit` draws, the validation split and the
draws of labels. The test split is read once per run, from the last epoch. Several copies of the project with one DVC
cache can share the work: give each some of the `--methods` or `--seeds`, then the whole command to one of them.
"""

import common

from selfsup.compare import setup
from selfsup.compare.run import collect, options
from selfsup.errors import one_line_errors


def main() -> None:
    parser = common.arguments(__doc__, "<set-up>.md")
    parser.add_argument("setup", choices=setup.names(common.ROOT))
    options(parser)
    parser.set_defaults(seeds=[0, 1, 2])
    args = parser.parse_args()
    out = args.out or common.RESULTS / f"{args.setup}.md"
    conditions = common.conditions("torch", "timm", "scikit-learn")
    collect(common.ROOT, "accuracy", args, out, args.setup, conditions)
    print(out.read_text())


if __name__ == "__main__":
    with one_line_errors():
        main()
