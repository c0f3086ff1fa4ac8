"""Write data/watched.txt, a digest of the files and tables that `data` names outside the project."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup import needs
from selfsup.data.watch import watch
from selfsup.errors import one_line_errors


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(watch(needs.data()), end="")


if __name__ == "__main__":
    with one_line_errors():
        main()
