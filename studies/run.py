"""Run one of the textbooks' experiments: a set of DVC experiments, then a page with their plot and table.

    python studies/run.py temperature                                   # on the data and budget of params.yaml
    python studies/run.py temperature --seeds 0 1 2 -S pretrain.epochs=100
    python studies/run.py batch-size $(python -m selfsup.compare.setup cifar10)

What is varied stands in studies/<name>.yaml. Each run is one `dvc exp run evaluate -S ...`, whose results DVC
keeps: a study that was stopped goes on where it was. After every run studies/pages/<name>.html is written, and
<name>.csv beside it.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "ssl"))

from selfsup.compare.experiment import experiment  # noqa: E402
from selfsup.compare.study import Row, Study, load, write_page  # noqa: E402
from selfsup.errors import one_line_errors  # noqa: E402

STUDIES = ROOT / "studies"


def plan(study: Study, seeds: list[int], more: list[str]) -> list[tuple[Row, list[str]]]:
    """Every run: where it stands in the study, and what it overrides."""
    settings = [((name, name), own) for name, own in study.settings.items()]
    if study.pairs:
        both = itertools.combinations(study.settings.items(), 2)
        settings += [((a, b), [*first, *second]) for (a, first), (b, second) in both]
    always = [
        "baselines=[random]",
        "evaluation.protocols=[knn,linear]",
        *more,
        *study.always,
    ]  # the study's word is last
    return [
        (Row(series, *names, seed), [*always, *of_series, *own, f"seed={seed}"])
        for seed in seeds
        for series, of_series in study.series.items()
        for names, own in settings
    ]


def readings() -> dict[str, float]:
    """What the last run of the pipeline found."""
    from selfsup.compare.study import tolerance
    from selfsup.data.loader import open_splits
    from selfsup.features.measures import label_free
    from selfsup.features.store import find
    from selfsup.params import load as parameters

    params = parameters(ROOT / "params.yaml")
    run = json.loads((ROOT / "metrics/pretrain.json").read_text())
    times = json.loads((ROOT / "metrics/times/pretrain.json").read_text())
    out = {"loss": run["loss"], "seconds": times["seconds"], "alarm": float(bool(run["alarm"]))}
    out |= {name: run["last"][name] for name in ("spread", "rankme") if name in run["last"]}  # of the embeddings
    for path in (ROOT / "metrics/evaluate").glob("*.json"):
        for row, scores in json.loads(path.read_text())[path.stem].items():
            if "top1" in scores:
                out[path.stem if row == "method" else f"{path.stem} of {row}"] = 100 * scores["top1"]
    features = find(ROOT / "features", [])[0][0].load("test")
    features = features - features.mean(0)  # what all images have in common, after a ReLU most of it, tells nothing
    labels = open_splits(params.data.model_copy(update={"verify": "size"}), ROOT / "data/shards")["test"].labels
    out["uniformity"] = label_free(features, params.seed)["uniformity"]
    return out | {"tolerance": tolerance(features, labels, params.seed)}


def main() -> None:
    names = sorted(path.stem for path in STUDIES.glob("*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=names)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("-S", "--set-param", action="append", default=[], help="a further override, as of dvc exp run")
    args = parser.parse_args()
    study = load(STUDIES / f"{args.name}.yaml")
    rows: list[Row] = []
    runs = plan(study, args.seeds, args.set_param)
    for i, (row, overrides) in enumerate(runs, start=1):
        print(f"{args.name}, run {i} of {len(runs)}: {row.title(study)}", file=sys.stderr, flush=True)
        with experiment(ROOT, overrides, f"studies/{args.name}.yaml: {row.title(study)}"):
            rows.append(row.read(readings()))
        page = write_page(study, rows, STUDIES / "pages" / f"{args.name}.html", sys.argv[1:])
    print(f"study: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    with one_line_errors():
        main()
