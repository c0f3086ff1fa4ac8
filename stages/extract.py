"""Features of every split from the pretrained backbone: features/pretrained, metrics/extract.json."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.params import load


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = load()
    from selfsup.training.extraction import extract  # late: errors in params.yaml are printed at once

    extract(params)


if __name__ == "__main__":
    with one_line_errors():
        main()
