"""Check params.yaml before any work is done, and write what the chosen method needs of it to data/needs."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import one_line_errors
from selfsup.params import load


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params = load()
    from selfsup.training.check import check  # late: errors in params.yaml are printed at once

    check(params)


if __name__ == "__main__":
    with one_line_errors():
        main()
