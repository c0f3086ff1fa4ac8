"""The table of methods has means, spreads and gains seed by seed, and its picture a row per method."""

import pytest
from matplotlib.figure import Figure

from selfsup.compare import summary
from selfsup.compare.experiment import Outcome
from selfsup.compare.study import Cell, Found, Study
from selfsup.config import parse
from tests.helpers import ROOT

SHOW = {"kNN": "knn.top1", "linear": "linear.top1", "seconds": "run.seconds"}
STUDY = parse(Study, {"title": "t", "expect": "e", "axis": "method", "show": SHOW, "methods": True})


def one(method: float, random: float | None = 80.0, seconds: float = 1.0, backbone: str = "conv") -> Outcome:
    knn = {"method": {"top1": method}, "pixels": {"top1": 70.0}, "majority": {"top1": 10.0}}
    knn |= {} if random is None else {"random": {"top1": random}}
    return Outcome({"knn": knn, "run": {"method": {"seconds": seconds}}}, backbone)


def rows(text: str) -> dict[str, dict[str, str]]:
    head, _, *lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    return {cells[0]: dict(zip(head, cells, strict=True)) for cells in lines}


def test_the_table_has_means_spreads_and_gains_seed_by_seed():
    runs = {"a": [one(90, 80, 1), one(80, 90, 9), one(70, 50, 2)], "b": [one(60, 40, 3, "vit")], "c": [one(50, None)]}
    found = rows(summary.table(STUDY, runs))
    assert found["a"]["kNN"] == "80.0 ± 10.0" and found["a"]["linear"] == "-"
    assert found["a"]["kNN over random weights"] == "+6.7 (+10.0, -10.0, +20.0)"
    assert (found["a"]["backbone"], found["a"]["seconds"]) == ("conv", "2")
    assert found["b"]["kNN"] == "60.0" and found["c"]["kNN over random weights"] == "-"
    assert found["random, conv"]["kNN"] == "73.3 ± 20.8" and found["random, conv"]["seconds"] == ""
    assert found["random, vit"]["kNN"] == "40.0"
    assert found["majority"]["kNN"].startswith("10.0") and found["majority"]["backbone"] == ""
    assert list(found)[:3] == ["a", "b", "c"]


def test_alarms_are_named():
    cell = Cell("", "byol", "byol", 1, "", ())
    assert "- byol, seed 1: collapsed" in summary.alarms([Found(cell, Outcome({}, "conv", "collapsed"))])
    assert summary.alarms([Found(cell, one(90))]) == "No run raised an alarm of collapse."


def test_the_picture_has_a_row_per_method_the_best_on_top(monkeypatch, tmp_path):
    kept: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: kept.append(figure))
    runs = {"a": [one(95)] * 2, "b": [one(90)] * 2, "c": [one(70, 80, 1, "vit")] * 2, "d": [one(99, None)]}
    summary.picture(STUDY, runs, tmp_path / "x.png")
    conv, vit = kept[0].axes
    assert [tick.get_text() for tick in conv.get_yticklabels()] == ["b", "a"]  # the last is on top
    assert conv.lines[1].get_xdata().tolist() == pytest.approx([80, 95])
    assert [tick.get_text() for tick in vit.get_yticklabels()] == ["c"]
    assert vit.lines[0].get_color() != conv.lines[0].get_color()  # below random weights
    summary.picture(STUDY, {"d": [one(99, None)]}, tmp_path)
    assert len(kept) == 1  # nothing to draw without the baseline


@pytest.mark.parametrize("name", ["digits", "fashion-mnist-10k"])
def test_tables_that_were_measured_have_the_columns_of_todays_description(name):
    from selfsup.compare.study import read

    today = read(ROOT, "accuracy")
    lines = (ROOT / f"benchmarks/results/{name}.md").read_text().splitlines()
    head = next(line for line in lines if line.startswith("| "))
    columns = [cell.strip() for cell in head.split("|")[1:-1]]
    assert set(columns) == {"", *today.show, summary.gain_title(today), "backbone"}
