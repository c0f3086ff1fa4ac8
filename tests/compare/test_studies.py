"""Studies ask for valid experiments, and their pages show what those found."""

import csv
import itertools
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from selfsup.compare import setup
from selfsup.compare.experiment import experiment
from selfsup.compare.study import Row, Study, load, plot, tolerance, write_page
from selfsup.config import parse
from selfsup.data.loader import open_splits
from selfsup.errors import UserError
from selfsup.params import Params
from selfsup.training.build import build_task, method_params
from tests.helpers import ROOT, values

STUDIES = sorted((ROOT / "studies").glob("*.yaml"))
PLAN = runpy.run_path(str(ROOT / "studies/run.py"))["plan"]
SMALL = {
    "title": "<b>Title</b>", "paper": "p", "expect": "e", "axis": "size", "show": ["knn", "spread"], "always": [],
    "series": {"one": ["a=1"], "two": []}, "settings": {"8": ["b=8"], "16": ["b=16"], "x": []},
}  # fmt: skip


def overridden(overrides: list[str]) -> Params:
    """`params.yaml` with overrides as `dvc exp run -S` takes them. Every key must be there already."""
    out = values()
    for override in overrides:
        path, _, value = override.partition("=")
        section = out
        *parents, last = path.split(".")
        for name in parents:
            section = section[name]
        assert last in section, override
        section[last] = YAML(typ="safe", pure=True).load(value)
    return parse(Params, out)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_is_a_valid_experiment_of_its_own(path):
    study = load(path)
    seen = []
    for _, overrides in PLAN(study, [0, 1], []):
        params = overridden(overrides)
        method_params(params, params.method)
        seen.append(params)
    assert all(a != b for a, b in itertools.combinations(seen, 2))
    settings = len(study.settings)
    assert len(seen) == 2 * len(study.series) * (settings * (settings + 1) // 2 if study.pairs else settings)


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_every_run_builds_its_method_on_the_digits(path, shards):
    for _, overrides in PLAN(load(path), [0], []):
        params = overridden([*overrides, "data.cache=memory"])
        split = open_splits(params.data, shards, verified=True)["train"]
        build_task(params, params.method, method_params(params, params.method).backbone, split)


def test_what_a_study_fixes_is_fixed_whatever_the_set_up():
    """Views that a set-up turns on must not come into the study of each alone."""
    set_up = list(setup.overrides(setup.base_of(ROOT), setup.read(ROOT, "fashion-mnist-10k")))
    set_up = [word for word in set_up if word.startswith("views.")]
    assert "views.flip=0.5" in set_up
    study = load(ROOT / "studies/augmentations.yaml")
    runs = {(row.setting, row.other): overrides for row, overrides in PLAN(study, [0], set_up)}
    views = overridden(runs["grey", "grey"]).views
    assert (views.flip, views.crop_scale, views.jitter.p, views.grey) == (0, [1.0, 1.0], 0, 0.2)


def test_pairs_have_both_settings_and_singles_stand_alone():
    study = parse(Study, SMALL | {"series": {"one": ["a=1"]}, "pairs": True, "always": ["z=0"]})
    runs = {(row.setting, row.other): overrides for row, overrides in PLAN(study, [3], ["y=2"])}
    always = ["baselines=[random]", "evaluation.protocols=[knn,linear]", "y=2", "z=0", "a=1"]
    assert runs == {
        ("8", "8"): [*always, "b=8", "seed=3"],
        ("16", "16"): [*always, "b=16", "seed=3"],
        ("x", "x"): [*always, "seed=3"],
        ("8", "16"): [*always, "b=8", "b=16", "seed=3"],
        ("8", "x"): [*always, "b=8", "seed=3"],
        ("16", "x"): [*always, "b=16", "seed=3"],
    }


def test_tolerance_equals_a_loop():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4)), rng.integers(-1, 3, 20)
    z = [row / np.linalg.norm(row) for row in features]
    pairs = [(i, j) for i, j in itertools.combinations(range(20), 2) if labels[i] == labels[j] != -1]
    assert tolerance(features, labels, 0) == pytest.approx(np.mean([z[i] @ z[j] for i, j in pairs]))
    assert np.isnan(tolerance(features, np.full(20, -1), 0))


def rows(study: Study) -> list[Row]:
    return [
        row.read({"knn": 50.0 + i, "knn of random": 40.0, "alarm": 0.0})
        for i, (row, _) in enumerate(PLAN(study, [0], []))
    ]


def test_the_page_shows_every_run_escapes_names_and_leaves_out_what_was_not_read(tmp_path):
    study = parse(Study, SMALL)
    found = rows(study)
    found[1] = found[1].read({"knn": 12.5, "alarm": 1.0})
    path = write_page(study, found, tmp_path / "pages/s.html", ["s", "-S", "a=b c"])
    text = path.read_text()
    assert "&lt;b&gt;Title" in text and "<b>Title" not in text
    assert "python studies/run.py s -S &#39;a=b c&#39;" in text
    assert text.count("<tr><th>") == 1 + 6
    assert "Alarm of collapse:</strong> one, size 16, seed 0" in text
    with path.with_suffix(".csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["knn"] for row in table] == ["50.0", "12.5", "52.0", "53.0", "54.0", "55.0"]
    assert table[1]["knn of random"] == ""


def test_random_weights_are_one_line_for_each_network():
    from matplotlib.figure import Figure

    from selfsup.compare.study import COLOURS, lines
    from selfsup.report import charts

    study = parse(Study, SMALL)
    for of_random, expected in (([40.0, 40.0], {40.0: charts.COLOURS["random"]}),
                                ([40.0, 60.0], {40.0: COLOURS[0], 60.0: COLOURS[1]})):  # fmt: skip
        levels = dict(zip(study.series, of_random, strict=True))
        axis = Figure().subplots()
        lines(axis, study, [row.read({"knn": 50.0, "knn of random": levels[row.series]}) for row in rows(study)], "knn")
        broken = {line.get_ydata()[0]: line.get_color() for line in axis.lines if line.is_dashed()}
        assert broken == expected


def test_a_study_of_pairs_is_a_heat_map():
    study = parse(Study, SMALL | {"series": {"one": []}, "pairs": True, "show": ["knn"]})
    drawing = plot(study, rows(study))
    for i in range(6):
        assert f"{50 + i:.1f}" in drawing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"show": ["knnn"]}, r"studies/s\.yaml: show: unknown \['knnn'\]"),
        ({"pairs": True}, r"studies/s\.yaml: series: a study of pairs has one"),
        ({"serie": {}}, r"studies/s\.yaml: serie: unknown parameter; did you mean series\?"),
        ({"settings": {"8": "b=8"}}, r"studies/s\.yaml: settings\.8: "),
    ],
)
def test_bad_files_are_refused_in_one_line(tmp_path, change, message):
    path = tmp_path / "s.yaml"
    YAML().dump(SMALL | change, path)
    with pytest.raises(UserError, match=message) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_the_command_runs_every_setting_and_stops_at_one_that_fails(tmp_path, monkeypatch, capsys):
    script = runpy.run_path(str(ROOT / "studies/run.py"))
    called, space = [], script["main"].__globals__

    def fake(words: list[str], cwd: Path) -> subprocess.CompletedProcess:
        """As DVC does: overrides stay in params.yaml."""
        assert (cwd / "params.yaml").read_text() == "a: 0\n"
        (cwd / "params.yaml").write_text("a: 1\n")
        called.append((words, cwd))
        return subprocess.CompletedProcess(words, int(len(called) == 3))

    def readings() -> dict[str, float]:
        assert (tmp_path / "params.yaml").read_text() == "a: 1\n"
        return {"knn": 10.0, "spread": 0.5}

    (tmp_path / "params.yaml").write_text("a: 0\n")
    monkeypatch.setitem(space, "ROOT", tmp_path)
    (tmp_path / "s.yaml").write_text(json.dumps(SMALL))
    monkeypatch.setitem(space, "STUDIES", tmp_path)
    monkeypatch.setitem(space, "readings", readings)
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(sys, "argv", ["run.py", "s", "--seeds", "4", "-S", "pretrain.epochs=1"])
    with pytest.raises(UserError, match=r"one, size x, seed 4 failed; fix the error above"):
        script["main"]()
    assert [words[:3] for words, _ in called] == [["dvc", "exp", "run"]] * 3
    assert called[0][0][-4:] == ["-S", "b=8", "-S", "seed=4"] and "pretrain.epochs=1" in called[0][0]
    assert all(cwd == tmp_path for _, cwd in called)
    assert (tmp_path / "params.yaml").read_text() == "a: 0\n", "after a failure too"
    assert not (tmp_path / "params.before.yaml").exists()
    assert (tmp_path / "pages/s.csv").read_text().count("\n") == 3
    assert "s, run 3 of 6: one, size x, seed 4" in capsys.readouterr().err


def test_without_dvc_on_path_the_remedy_is_said_and_the_parameters_stay(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "params.yaml").write_text("seed: 0\n")
    with pytest.raises(UserError, match=r"^dvc is not on PATH: activate"), experiment(tmp_path, [], "x"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_what_a_killed_experiment_left_in_the_parameters_is_not_taken_for_the_users(tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / "params.before.yaml").write_text("a: 0\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is run"))
    message = r"^params.yaml may hold .* params.before.yaml: move that .*, or remove it$"
    with pytest.raises(UserError, match=message), experiment(tmp_path, [], "x"):
        pass
    assert (tmp_path / "params.before.yaml").read_text() == "a: 0\n" and (tmp_path / "params.yaml").exists()
