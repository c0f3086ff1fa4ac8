"""README's table of methods is what `make tables` writes from the declarations and the result files."""

import pytest

from selfsup import methods
from selfsup.errors import UserError
from selfsup.report import methods_table
from tests.helpers import ROOT


def first(row: str) -> str:
    return methods_table.cells(row)[0]


def test_readme_shows_what_make_tables_would_write():
    """A method that nobody has measured yet may be missing: its row is written with the next `make tables`."""
    _, shown, _ = methods_table.split((ROOT / "README.md").read_text(encoding="utf-8"), "README.md")
    listed = {first(row) for row in shown.splitlines()}
    written = methods_table.table().splitlines()
    due = [row for row in written if first(row) in listed or set(methods_table.cells(row)[4:]) != {"-"}]
    assert shown.splitlines() == due, "run `make tables`"


def test_a_figure_is_that_of_the_result_file():
    (row,) = [line for line in methods_table.table().splitlines() if line.startswith("| `byol` |")]
    text = (ROOT / "benchmarks/results/fashion-mnist-10k.md").read_text(encoding="utf-8")
    (measured,) = [line for line in text.splitlines() if line.startswith("| byol |")]
    assert row.split(" | ")[-1] == f"{measured.split(' | ')[1]} |"
    assert row.split(" | ")[1:3] == ["no negatives", "Grill et al. 2020"]


def test_what_was_not_measured_is_a_dash(monkeypatch):
    about = methods.find("byol")[1].about.model_copy(update={"title": "New", "idea": "a | b"})
    monkeypatch.setattr(methods, "declared", lambda: {"new": about})
    row = methods_table.table().splitlines()[2]
    assert row == r"| `new` | no negatives | Grill et al. 2020 | a \| b | - | - | - |"


def test_the_command_replaces_the_table_only(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text(f"before\n{methods_table.BEGIN}\nold\n{methods_table.END}\nafter\n")
    monkeypatch.setattr("sys.argv", ["methods_table", str(path)])
    methods_table.main()
    before, shown, after = methods_table.split(path.read_text(encoding="utf-8"), path)
    assert (before, shown, after) == ("before\n", methods_table.table(), "after\n")


def test_a_file_without_markers_is_left_alone(tmp_path, monkeypatch):
    path = tmp_path / "README.md"
    path.write_text("text\n")
    monkeypatch.setattr("sys.argv", ["methods_table", str(path)])
    with pytest.raises(UserError, match="the table of methods has no place; add the lines"):
        methods_table.main()
    assert path.read_text() == "text\n"
