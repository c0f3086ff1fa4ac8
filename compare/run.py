"""Compare methods over seeds: `python compare/run.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.compare.run import command

if __name__ == "__main__":
    command()
