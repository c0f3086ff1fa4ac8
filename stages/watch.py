"""Write data/watched.txt, a digest of the images and tables that `data` names outside the project."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup import params
from selfsup.data.watch import watched
from selfsup.errors import one_line_errors
from selfsup.files import replaced


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    text = watched(params.load().data)
    with replaced(Path("data/watched.txt")) as new:
        new.write_text(text, encoding="utf-8")
    print(text, end="")


if __name__ == "__main__":
    with one_line_errors():
        main()
