"""Run a study: one DVC experiment per setting and seed, then a page with their plot or a table of the methods.

    python -m selfsup.compare.run temperature                              # on the data and budget of params.yaml
    python -m selfsup.compare.run temperature --seeds 0 1 2 -S pretrain.epochs=100
    python -m selfsup.compare.run batch-size --setup cifar10
    python -m selfsup.compare.run accuracy --methods simclr byol --seeds 0 1 2

What is varied is written in compare/<name>.yaml. Every experiment is one `dvc exp run evaluate -S ...`, whose results
DVC keeps: a study that was stopped continues where it stopped. After each run compare/pages/<name>.html and <name>.csv
are written, or for a study of methods <name>.md and <name>.png.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from selfsup.compare import page, setup, study, summary
from selfsup.errors import UserError, one_line_errors


def options(parser: argparse.ArgumentParser) -> None:
    """What every command that runs a study can be asked for."""
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="of a study of methods; default: all methods")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("-S", "--set-param", action="append", default=[], help="a further override, as of dvc exp run")


def collect(root: Path, name: str, args: argparse.Namespace, out: Path, title: str, conditions: str) -> None:
    """Run the study `name` with the parsed `options` and `args.setup`, and write what it found to `out`."""
    plan = study.of_methods(study.read(root, name), args.methods)
    cells = study.cells(root, name, plan, args.seeds, args.setup, args.set_param)
    sources = [reading.partition(".")[0] for reading in plan.show.values()]

    def write(found: Sequence[study.Found]) -> None:
        if out.suffix == ".html":
            page.write(plan, found, out, conditions)
        else:
            summary.write(plan, found, out, title, conditions)

    study.run(root, name, cells, sources, write)


def main() -> None:
    root = Path()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"a file of {study.FOLDER}/: {', '.join(study.names(root))}")
    parser.add_argument("--setup", metavar="NAME", help=f"a file of {setup.FOLDER}/: {', '.join(setup.names(root))}")
    options(parser)
    args = parser.parse_args()
    if not Path("dvc.yaml").exists():
        raise UserError("dvc.yaml: not found; run from the project's root")
    ending = "md" if study.read(root, args.name).methods else "html"
    out = Path(study.FOLDER, "pages", f"{args.name}.{ending}")
    command = shlex.join(["python", "-m", "selfsup.compare.run", *sys.argv[1:]])
    collect(root, args.name, args, out, args.name, f"`{command}`" if ending == "md" else command)
    print(f"study: {out}")


if __name__ == "__main__":
    with one_line_errors():
        main()
