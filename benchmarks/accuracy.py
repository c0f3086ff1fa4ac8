"""Accuracy over methods and seeds through the pipeline itself, as a table with mean and standard deviation.

    python benchmarks/accuracy.py fashion-mnist --methods simclr byol --seeds 0 1 2 \\
        -S data.limit=10000 -S backbones.conv.options={width:8} -S pretrain.epochs=30

Each cell is one `dvc exp run evaluate $(cat setups/<set-up>) -S method=... -S seed=...`; what DVC has cached is not run
again, so a stopped benchmark goes on where it was. The seed moves everything: weights, order, views, the training
images that `data.limit` draws, the validation split and the label draws. The test split is read once a run, from the
last epoch. Beside the table goes a picture of its first column. Several copies of the project with one cache of DVC can
share the work: `--methods` or `--seeds` for each, then the whole command in one of them collects what all have done.
"""

import argparse
import json
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

from selfsup.compare import setup
from selfsup.compare.experiment import experiment
from selfsup.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
METHODS = sorted(path.stem for path in (ROOT / "ssl/selfsup/methods").glob("*.py") if path.stem != "__init__")
COLUMNS = {
    "kNN": ("knn", "top1"),
    "linear": ("linear", "top1"),
    "1 label a class": ("few_label", "per_class_1"),
    "1 % of labels": ("few_label", "percent_1"),
    "10 % of labels": ("few_label", "percent_10"),
}
SHARED = ("pixels", "majority")  # baselines that no architecture changes
GAIN = "kNN over random weights"


def run(overrides: list[str], method: str, seed: int) -> dict:
    """One experiment in this workspace; its metrics."""
    with experiment(ROOT, [*overrides, f"method={method}", f"seed={seed}"], f"{method}, seed {seed}"):
        scores = {path.stem: json.loads(path.read_text())[path.stem] for path in ROOT.glob("metrics/evaluate/*.json")}
        files = [ROOT / "metrics/pretrain.json", ROOT / "metrics/times/pretrain.json"]
        pretrain = {key: value for path in files for key, value in json.loads(path.read_text()).items()}
    return {"scores": scores, "pretrain": pretrain, "seed": seed}


def cell(values: list[float]) -> str:
    """Mean and standard deviation in per cent."""
    spread = f" ± {100 * statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * statistics.mean(values):.1f}{spread}" if values else "-"


def gain(scores: list[dict]) -> str:
    """Points over random weights, mean of the seeds' own differences and each of them; "-" without that baseline."""
    each = [100 * (one["method"]["top1"] - one["random"]["top1"]) for one in scores if "random" in one]
    return f"{statistics.mean(each):+.1f} ({', '.join(f'{value:+.1f}' for value in each)})" if each else "-"


def table(done: dict[str, list[dict]]) -> str:
    """A row per method, and below the baselines of each architecture, from the first method's runs that has it.

    What a method adds to the kNN of random weights is the mean over seeds of the differences, in points.
    """
    head = ["", *COLUMNS, GAIN, "backbone", "seconds", "images/s"]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]

    def line(name: str, row: str, runs: list[dict], timed: bool) -> str:
        cells = []
        for protocol, metric in COLUMNS.values():
            found = [one["scores"].get(protocol, {}).get(row, {}).get(metric) for one in runs]
            cells.append(cell([value for value in found if value is not None]))
        cells.append(gain([one["scores"]["knn"] for one in runs]) if timed else "")
        cells.append(runs[0]["pretrain"]["backbone"] if row not in SHARED else "")
        for key in ("seconds", "images_per_second"):
            cells.append(f"{statistics.median(one['pretrain'][key] for one in runs):.0f}" if timed else "")
        return "| " + " | ".join([name, *cells]) + " |"

    lines += [line(method, "method", runs, True) for method, runs in done.items()]
    first = {runs[0]["pretrain"]["backbone"]: runs for runs in reversed(done.values())}
    for backbone, runs in first.items():
        baselines = [row for row in ("random", *SHARED, "supervised") if row in runs[0]["scores"]["knn"]]
        lines += [line(f"{row}, {backbone}" if row not in SHARED else row, row, runs, False) for row in baselines]
    return "\n".join(dict.fromkeys(lines))


def alarms(done: dict[str, list[dict]]) -> str:
    """The runs that raised an alarm of collapse."""
    lines = [
        f"- {method}, seed {one['seed']}: {one['pretrain']['alarm']}"
        for method, runs in done.items()
        for one in runs
        if one["pretrain"]["alarm"]
    ]
    return "\n".join(["Alarms of collapse:", *lines]) if lines else "No run raised an alarm of collapse."


def picture(done: dict[str, list[dict]], path: Path) -> None:
    """kNN accuracy of methods, best first, beside random weights: a dot a seed, a bar between means; by backbone."""
    from matplotlib.figure import Figure

    panels: dict[str, dict[str, list[np.ndarray]]] = {}
    for method, runs in done.items():
        scores = [one["scores"]["knn"] for one in runs]
        if all("random" in one for one in scores):
            own = [np.array([100 * one[row]["top1"] for one in scores]) for row in ("random", "method")]
            panels.setdefault(runs[0]["pretrain"]["backbone"], {})[method] = own
    if not panels:
        return
    heights = [len(panel) + 1 for panel in panels.values()]
    figure = Figure(figsize=(7, 1 + 0.24 * sum(heights)), layout="constrained")
    grid = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (backbone, panel) in zip(grid, panels.items(), strict=True):
        panel = dict(sorted(panel.items(), key=lambda row: row[1][1].mean()))
        for place, (random, own) in enumerate(panel.values()):
            colour = "#2f7fd6" if own.mean() > random.mean() else "#c8452f"
            axis.plot([random.mean(), own.mean()], [place, place], color=colour, alpha=0.35, linewidth=3)
            axis.scatter(random, np.full(len(random), place), color="#8b929c", s=10, label="random weights")
            axis.scatter(own, np.full(len(own), place), color=colour, s=20, label="trained (red: not better)")
        axis.set_title(f"backbones.{backbone}", loc="left", fontsize=9)
        axis.set_yticks(range(len(panel)), list(panel), fontsize=8)
        axis.set_ylim(-0.7, len(panel) - 0.3)
        axis.tick_params(length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.grid(axis="x", linewidth=0.4)
    grid[-1].set_xlabel("kNN accuracy on the test split, %; the axes do not start at 0")
    handles, labels = grid[0].get_legend_handles_labels()
    figure.legend(handles[-2:], labels[-2:], frameon=False, fontsize=8, loc="outside upper right", ncols=2)
    figure.savefig(path, dpi=110)


def conditions(args: argparse.Namespace) -> str:
    from importlib.metadata import version

    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True).stdout
    command = " ".join(["python benchmarks/accuracy.py", *(shlex.quote(word) for word in args.command)])
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "scikit-learn"))
    return f"`{command}`\n\n{device}, {platform.machine()}, {versions}, commit {commit.strip()}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setup", choices=setup.names(ROOT))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="default: all")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("-S", "--set-param", action="append", default=[], help="a further override, as of dvc exp run")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/<set-up>.md")
    args = parser.parse_args()
    args.command = sys.argv[1:]
    common = [*setup.overrides(setup.base_of(ROOT), setup.read(ROOT, args.setup)), *args.set_param]
    out = args.out or ROOT / f"benchmarks/results/{args.setup}.md"
    done: dict[str, list[dict]] = {}
    for seed in args.seeds:
        for method in args.methods:
            done.setdefault(method, []).append(run(common, method, seed))
            seeds = (
                f"Accuracy on the test split, %, mean ± standard deviation over seeds {args.seeds[: len(done[method])]}"
            )
            timed = "Seconds and images/s: pretraining, median over seeds, whatever else the machine did."
            parts = [f"# {args.setup}", f"{seeds}. {timed}", table(done), alarms(done), conditions(args)]
            text = "\n\n".join(parts) + "\n"
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(text)
            picture(done, out.with_suffix(".png"))
    print(out.read_text())


if __name__ == "__main__":
    with one_line_errors():
        main()
