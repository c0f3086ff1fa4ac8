"""README's table of methods, from their declarations and the result files; `make tables` writes it.

python -m selfsup.report.methods_table README.md
"""

import argparse
from collections.abc import Iterable
from pathlib import Path

from selfsup import methods
from selfsup.errors import ROOT, UserError, one_line_errors

BEGIN, END = "<!-- make tables writes this table -->", "<!-- end of the table -->"
FIGURES = {  # heading: result file in benchmarks/results, its column
    "digits, kNN": ("digits", "kNN"),
    "digits, 1 label per class": ("digits", "1 label per class"),
    "Fashion-MNIST, kNN": ("fashion-mnist-10k", "kNN"),
}
BASELINES = {  # row of the result files: the name in the table
    "random, conv": "random weights, ResNet-9",
    "random, vit": "random weights, vision transformer",
    "pixels": "raw pixels",
}


def measured(results: str) -> dict[str, dict[str, str]]:
    """The cells of benchmarks/results/<results>.md: by row, then by column."""
    text = (ROOT / f"benchmarks/results/{results}.md").read_text(encoding="utf-8")
    head, _, *rows = [cells(line) for line in text.splitlines() if line.startswith("|")]
    return {row[0]: dict(zip(head, row, strict=True)) for row in rows}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def table() -> str:
    """One row per method, by family and year, then the baselines; "-" where nothing was measured."""
    rows = {
        f"`{name}`": [about.family, about.paper.cited if about.paper else "", about.idea, *figures(name)]
        for name, about in methods.declared().items()
    }
    rows |= {label: ["baseline", "", "", *figures(row)] for row, label in BASELINES.items()}
    return markdown(["method", "family", "paper", "idea", *FIGURES], ([label, *row] for label, row in rows.items()))


def figures(row: str) -> list[str]:
    return [measured(results).get(row, {}).get(column) or "-" for results, column in FIGURES.values()]


def markdown(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A table in Markdown, one line per row."""
    lines = [[cell.replace("|", r"\|") for cell in row] for row in (head, *rows)]
    text = [f"| {' | '.join(line)} |\n" for line in lines]
    return "".join([text[0], f"{'|---' * len(lines[0])}|\n", *text[1:]])


def split(text: str, path: Path | str) -> tuple[str, str, str]:
    """The text before the table, the table, and the text after it. Raises `UserError` where the markers are missing."""
    before, begin, rest = text.partition(f"{BEGIN}\n")
    shown, end, after = rest.partition(f"{END}\n")
    if not begin or not end:
        raise UserError(f"{path}: the table of methods has no place; add the lines {BEGIN} and {END}")
    return before, shown, after


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="the Markdown file with the two marker lines")
    path = parser.parse_args().file
    before, _, after = split(path.read_text(encoding="utf-8"), path)
    path.write_text(f"{before}{BEGIN}\n{table()}{END}\n{after}", encoding="utf-8")


if __name__ == "__main__":
    with one_line_errors():
        main()
