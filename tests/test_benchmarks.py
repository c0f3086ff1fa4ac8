"""Benchmarks start, and the figures they write are those of what they measured."""

import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import common, equal

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
    assert f"python benchmarks/{script}" in capsys.readouterr().out


def test_differences_name_the_place_and_both_values():
    before = {"a": {"x": 1, "gone": None}, "curve": ["step,loss", "0,1.5"], "same": [1]}
    after = {"a": {"x": 2}, "curve": ["step,loss", "0,1.25"], "same": [1], "new": 3}
    assert equal.differences(before, after) == [
        "/a/gone: None != nothing",
        "/a/x: 1 != 2",
        "/curve/1: 0,1.5 != 0,1.25",
        "/new: nothing != 3",
    ]
    assert equal.differences(before, before) == []
    assert equal.differences([1], [1, 2], "/s") == ["/s: [1] != [1, 2]"]
    assert equal.differences({"a": 0.1 + 0.2}, {"a": 0.3}) == ["/a: 0.30000000000000004 != 0.3"]


def test_figures_are_the_metrics_without_digests():
    written = {
        "seed": 0,
        "computed_from": {"images": "1f"},
        "weights": "2e",
        "knn": {"features": "z", "method": {"top1": 0.5}},
    }
    assert equal.figures(written) == {"seed": 0, "knn": {"method": {"top1": 0.5}}}


def test_figures_that_changed_their_name_are_compared(tmp_path, capsys):
    files = {name: tmp_path / f"{name}.json" for name in ("before", "after")}
    files["before"].write_text('{"moco": {"last": {"rank_me": 2.0}, "curves": ["step,rank_me", "0,2.0"]}, "demo": {}}')
    files["after"].write_text('{"moco": {"last": {"rankme": 2.0}, "curves": ["step,rankme", "0,2.0"]}}')
    assert equal.compare(*files.values(), {"rank_me": "rankme"}) == 0
    assert capsys.readouterr().out == f"only in {files['before']}, not compared: demo\nequal: moco\n"
    assert equal.compare(*files.values(), {}) == 1
    assert "/moco/curves/0: step,rank_me != step,rankme\n" in capsys.readouterr().out
    files["after"].write_text("{")
    with pytest.raises(SystemExit, match=r"^error: .*after.json: not a file that `run` wrote"):
        equal.compare(*files.values(), {})


PARAMS = (
    "method: a\npretrain: {epochs: 50, knn_every: 10}  # budget\nmethods: {a: {}, b: {}}\ntracking: {enabled: true}\n"
)
STAGE = """#!{python}
import json, numpy, pathlib, sys
from ruamel.yaml import YAML
from safetensors.numpy import save_file
params = YAML(typ="safe").load(pathlib.Path("params.yaml"))
if params["method"] == "b" and pathlib.Path("broken").exists():
    sys.exit("Traceback ...\\nerror: it is broken")
for folder in ("metrics/times", "plots", "models/pretrained", "features/pretrained"):
    pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
numpy.save("features/pretrained/test.npy", numpy.zeros(2))
save_file({{"w": numpy.full(2, params["pretrain"]["epochs"], "f4")}}, "models/pretrained/task.safetensors")
pathlib.Path("metrics/pretrain.json").write_text(json.dumps({{"method": params["method"], "weights": "1f"}}))
pathlib.Path("metrics/times/pretrain.json").write_text(json.dumps({{"seconds": 1.0}}))
pathlib.Path("plots/pretrain.csv").write_text(f"step,loss\\n0,{{params['tracking']['enabled']}}\\n")
"""


@pytest.fixture
def clone(tmp_path) -> Path:
    """A folder whose `dvc` and `python` write what the pipeline would."""
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for name in ("dvc", "python"):
        command = tmp_path / ".venv/bin" / name
        command.write_text(STAGE.format(python=sys.executable))
        command.chmod(0o755)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


def test_a_clone_is_described_by_the_demo_and_a_short_run_of_every_method(clone):
    found = equal.run(clone, None, with_demo=True)
    assert list(found) == ["demo", "a", "b"]
    assert found["demo"]["metrics"] == {"metrics/pretrain.json": {"method": "a"}}
    assert list(found["demo"]["features"]) == ["features/pretrained/test.npy"]
    assert found["b"]["metrics"] == {"method": "b"} and found["b"]["curves"] == ["step,loss", "0,False"]
    assert found["a"]["weights"] == found["b"]["weights"] != found["demo"]["weights"], "two epochs, not 50"
    assert list(equal.run(clone, ["b"], with_demo=False)) == ["b"]
    assert (clone / "params.yaml").read_text() == PARAMS


def test_a_stage_that_fails_is_one_line_and_the_parameters_are_put_back(clone):
    (clone / "broken").touch()
    with pytest.raises(SystemExit, match=r"^error: python stages/pretrain.py failed in .*: error: it is broken$"):
        equal.run(clone, None, with_demo=False)
    assert (clone / "params.yaml").read_text() == PARAMS
    with pytest.raises(SystemExit, match=r"^error: --methods: .* has no c; known: a, b$"):
        equal.run(clone, ["a", "c"], with_demo=False)


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
