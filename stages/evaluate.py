"""DVC stage `evaluate@<protocol>`: judge the frozen features and those of the baselines by one protocol."""

import argparse
import difflib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

from selfsup.errors import UserError, one_line_errors
from selfsup.evaluation.run import PROTOCOLS, evaluate
from selfsup.params import load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("protocol", help=", ".join(PROTOCOLS))
    name = parser.parse_args().protocol
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"protocol: unknown {name!r}{hint} Known: {', '.join(PROTOCOLS)}")
    evaluate(name, load())


if __name__ == "__main__":
    with one_line_errors():
        main()
