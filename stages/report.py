"""Write report/index.html, one self-contained page of everything that was found."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "ssl"))

import record
from selfsup.errors import one_line_errors
from selfsup.params import load
from selfsup.report.page import write_report


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    params, path = load(), Path("report/index.html")
    with record.nested(params, "report") as run:
        write_report(params, path)
        run.artifact(path)
    print(f"report: {path}")


if __name__ == "__main__":
    with one_line_errors():
        main()
