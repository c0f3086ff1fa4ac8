"""Benchmarks start, and the figures they write are those of what they measured."""

import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import common

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


def test_spread_is_median_and_extremes():
    assert common.spread([3, 1, 2000]) == "3 (1 to 2,000)"
    assert common.spread([1.0, 2.0], digits=1) == "1.5 (1.0 to 2.0)"
    assert common.spread([7.25], digits=2) == "7.25"


def test_ratios_are_of_the_same_round():
    assert common.ratios([1.0, 9.0], [2.0, 3.0]) == [0.5, 3.0]
    with pytest.raises(ValueError, match="argument 2"):
        common.ratios([1.0, 9.0], [2.0])


def test_arms_take_turns():
    order: list[str] = []

    def arm(name: str):
        return lambda: order.append(name) or float(len(order))

    assert common.alternate({"a": arm("a"), "b": arm("b")}, 2) == {"a": [1, 3], "b": [2, 4]}
    assert order == ["a", "b", "a", "b"]


def test_a_table_has_a_line_a_row():
    assert common.table(["x", "y"], [[1, "2"]]).splitlines() == ["| x | y |", "| --- | --- |", "| 1 | 2 |"]


def held(megabytes: int) -> tuple[float, float]:
    """Peak memory before and after taking so much."""
    before, _ = common.peak_memory(), bytearray(megabytes * 10**6)
    return before, common.peak_memory()


def test_a_child_counts_its_own_memory():
    block = bytearray(300 * 10**6)  # of the parent
    before, after = common.in_child(held, 50)
    assert before < len(block) / 1e6
    assert 45 < after - before < 100


def test_conditions_say_command_and_versions(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/somewhere/step.py", "--out", "/somewhere/a.md", "--rounds", "3"])
    text = common.conditions("pytest", "no-such-package")
    assert "`python benchmarks/step.py --rounds 3`" in text
    assert f"pytest {pytest.__version__}" in text
    assert "somewhere" not in text
    assert "no-such-package" not in text


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_benchmark_is_documented(script):
    assert f"benchmarks/{script}" in (BENCHMARKS / "README.md").read_text()


@pytest.mark.parametrize("script", [name for name in SCRIPTS if "parse_args" in (BENCHMARKS / name).read_text()])
def test_every_benchmark_says_how_to_use_it(script, monkeypatch, capsys):
    """Without the peers it is measured against, which tests do without."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    monkeypatch.setattr(sys, "path", list(sys.path))  # scripts add to it
    monkeypatch.setitem(sys.modules, "lightly", None)
    with pytest.raises(SystemExit) as end:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    assert end.value.code == 0
    assert "--out" in capsys.readouterr().out


@pytest.mark.parametrize("method", ["simclr", "byol"])
def test_a_step_is_timed(method, monkeypatch, tmp_path):
    """Ours and the bare network; the peer is not installed here."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    import step
    import workload

    images = workload.make_images(tmp_path / "images", 60, 16)
    data = workload.image_folder(images, 16) | {"validation": 0.1, "test": 0.1}
    params = workload.parameters(data, method, batch_size=8, epochs=2)
    step.write(params.data.of("image"), 0, tmp_path / "shards", 1)
    for arm in (step.ours, step.bare):
        assert step.speed(arm, 8, 0.0, 1, params, tmp_path) > 0
