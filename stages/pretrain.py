"""Pretrain with the chosen method: models/pretrained, models/backbone, metrics/pretrain.json, plots/pretrain.csv.

Equal trainings leave equal files, but for metrics/times/pretrain.json.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.params import load


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = load()
    from selfsup.training.pretraining import pretrain  # late: errors in params.yaml are printed at once

    pretrain(params)


if __name__ == "__main__":
    with one_line_errors():
        main()
