"""The curves of a run: rows of numbers that survive a kill, and the CSV file that `dvc plots` draws."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from selfsup.files import replaced


class Curves:
    """Rows on disk, one JSON object per line. Rows after `step`, from which the run resumes, are dropped."""

    def __init__(self, path: Path, step: int):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: list[dict[str, float]] = []
        if step and path.exists():
            lines = [
                line for line in path.read_text().splitlines() if line.endswith("}")
            ]  # the last line may be incomplete
            self.rows = [row for row in map(json.loads, lines) if row["step"] <= step]
        part = path.with_suffix(".part")  # a kill here loses nothing
        part.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        part.replace(path)
        self._file = path.open("a", buffering=1)

    def add(self, row: Mapping[str, float]) -> None:
        self.rows.append(dict(row))
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._file.name) from error

    def close(self) -> list[dict[str, float]]:
        self._file.close()
        return self.rows


def write_csv(rows: Sequence[Mapping[str, float]], path: Path) -> None:
    """Write rows as CSV with the union of their columns in order of appearance; a missing value is an empty cell."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with replaced(path) as new, new.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
