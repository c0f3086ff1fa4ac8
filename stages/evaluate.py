"""Judge the frozen features and those of the baselines: metrics/evaluate/<protocol>.json, evaluations/<protocol>."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.evaluation import protocols
from selfsup.evaluation.run import evaluate, read_inputs, tracked
from selfsup.params import load
from selfsup.tracking import record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", help=", ".join(protocols.names()))
    name = protocols.find(parser.parse_args().protocol).name
    params = load()
    inputs = read_inputs(params)
    with record.nested(params, f"evaluate {name}", inputs.weights, inputs.computed_from(params)) as (parent, run):
        every, own = tracked(name, evaluate(name, params, inputs))
        run.metrics(every, 0)
        parent.metrics(own, 0)


if __name__ == "__main__":
    with one_line_errors():
        main()
