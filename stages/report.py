"""Write report/index.html, one self-contained page of everything that was found."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.data.loader import open_splits
from selfsup.errors import one_line_errors
from selfsup.evaluation.run import read_inputs
from selfsup.params import load
from selfsup.report.page import write_report
from selfsup.report.sheet import views_sheet
from selfsup.tracking import record
from selfsup.training.build import build_task, method_params


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params, path = load(), Path("report/index.html")
    data = params.data.model_copy(update={"cache": "none"})  # only a few images are looked at
    split = open_splits(data, verified=True)["train"]
    task = build_task(params, params.method, method_params(params, params.method), split)
    inputs = read_inputs(params)
    with record.nested(params, "report", inputs.weights, inputs.computed_from(params)) as (_, run):
        write_report(params, inputs, path, views_sheet(task, split, params.seed))
        for file in sorted(path.parent.glob("*.html")):  # the page and the map beside it
            run.artifact(file)
    print(f"report: {path}")


if __name__ == "__main__":
    with one_line_errors():
        main()
