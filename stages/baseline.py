"""What a method is held against, independent of the method: raw samples, random weights and supervised training.

`baseline.py pixels` writes features/baselines/pixels. `baseline.py backbone` writes features/baselines/random and
features/baselines/supervised of the architecture in data/needs/backbone.json, the supervised network's weights to
models/baselines, and metrics/baseline.json. Equal trainings leave equal files, except for metrics/times.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup import needs
from selfsup.errors import one_line_errors
from selfsup.params import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("baseline", choices=["pixels", "backbone"])
    chosen = parser.parse_args().baseline
    params = load()
    from selfsup.training.baselines import baseline, pixels  # late: errors in params.yaml are printed at once

    if chosen == "pixels":
        pixels(params)
    else:
        baseline(params, needs.architecture())


if __name__ == "__main__":
    with one_line_errors():
        main()
