"""Studies ask for valid experiments, run them one by one, and their pages show what was found."""

import argparse
import csv
import itertools
import json
import logging
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from selfsup.compare import page, run, setup, study
from selfsup.compare.experiment import Outcome, experiment, of_features, outcome, tolerance
from selfsup.compare.study import Cell, Found, Study
from selfsup.config import parse
from selfsup.data.loader import open_splits
from selfsup.errors import UserError
from selfsup.params import Params
from selfsup.training.build import build_task, method_params
from tests.compare.test_setup import by_dvc
from tests.evaluation import workspace
from tests.helpers import METHODS, ROOT

BASE = setup.base_of(ROOT)
STUDIES = study.names(ROOT)
SETTINGS = {"8": {"pretrain": {"batch_size": 8}}, "16": {"pretrain": {"batch_size": 16}}, "x": {}}
SMALL = {
    "title": "<b>Title</b>",
    "expect": "e",
    "axis": "size",
    "show": {"kNN": "knn.top1", "spread": "embeddings.spread"},
    "series": {"one": {"views": {"flip": 0.5}}, "two": {}},
    "settings": SETTINGS,
}


@pytest.fixture
def project(tmp_path) -> Path:
    """A folder with parameters, a set-up and the study `s`, where `dvc` is never really called."""
    for folder in ("setups", "compare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "setups/photos.yaml").write_text("views: {flip: 0.3, grey: 0.3}\nseed: 9\n")
    (tmp_path / "compare/s.yaml").write_text(json.dumps(SMALL))
    (tmp_path / "dvc.yaml").touch()
    return tmp_path


def planned(name: str, seeds: list[int], root: Path = ROOT, **more) -> list[Cell]:
    return study.cells(root, name, study.of_methods(study.read(root, name), None), seeds, **more)


@pytest.mark.parametrize("name", STUDIES)
def test_every_run_is_a_valid_experiment_of_its_own(name, tmp_path):
    one = study.of_methods(study.read(ROOT, name), None)
    seen = [parse(Params, by_dvc(BASE, list(cell.overrides), tmp_path)) for cell in planned(name, [0, 1])]
    for params in seen:
        method_params(params, params.method)
    assert all(a != b for a, b in itertools.combinations(seen, 2))
    settings = len(one.settings)
    assert len(seen) == 2 * len(one.series) * (settings * (settings + 1) // 2 if one.pairs else settings)


@pytest.mark.parametrize("name", [name for name in STUDIES if not study.read(ROOT, name).methods])
def test_every_run_builds_its_method_on_the_digits(name, shards, tmp_path):
    for cell in planned(name, [0], more=["data.cache=memory"]):
        params = parse(Params, by_dvc(BASE, list(cell.overrides), tmp_path))
        split = open_splits(params.data, shards, verified=True)["train"]
        build_task(params, params.method, method_params(params, params.method), split)


def test_what_a_study_fixes_is_fixed_whatever_the_set_up(tmp_path):
    """Views that a set-up turns on must not come into the study of each alone."""
    assert setup.read(ROOT, "fashion-mnist-10k", BASE)["views"]["flip"] == 0.5
    runs = {(cell.setting, cell.other): cell for cell in planned("augmentations", [0], set_up="fashion-mnist-10k")}
    params = parse(Params, by_dvc(BASE, list(runs["grey", "grey"].overrides), tmp_path))
    assert (params.views.flip, params.views.crop_scale, params.views.jitter.p) == (0, [1.0, 1.0], 0)
    assert params.views.grey == 0.2 and params.pretrain.epochs == 20


def test_defaults_give_way_to_a_set_up_and_its_values_to_the_users_and_all_to_the_study(project):
    own = {"defaults": {"baselines": []}, "always": {"views": {"grey": 0.1}}, "series": {"one": {}}, "pairs": True}
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | own))
    found = {
        (cell.setting, cell.other): cell.overrides
        for cell in planned("s", [3], project, set_up="photos", more=["baselines=[random]"])
    }
    before = ("baselines=[]", "views.flip=0.3", "views.grey=0.3", "seed=9", "baselines=[random]", "views.grey=0.1")
    assert found == {
        ("8", "8"): (*before, "pretrain.batch_size=8", "seed=3"),
        ("16", "16"): (*before, "pretrain.batch_size=16", "seed=3"),
        ("x", "x"): (*before, "seed=3"),
        ("8", "16"): (*before, "pretrain.batch_size=8", "pretrain.batch_size=16", "seed=3"),
        ("8", "x"): (*before, "pretrain.batch_size=8", "seed=3"),
        ("16", "x"): (*before, "pretrain.batch_size=16", "seed=3"),
    }


def test_what_a_set_up_replaces_is_not_removed_twice(project, tmp_path):
    net = {"backbones": {"conv": {"options": {"depth": 3}}}}
    (project / "setups/photos.yaml").write_text(json.dumps({"backbones": {"conv": {"options": {"layers": 2}}}}))
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | {"always": net}))
    cell = planned("s", [0], project, set_up="photos")[0]
    values = by_dvc(BASE, list(cell.overrides), tmp_path)
    assert values["backbones"]["conv"]["options"] == {"depth": 3}


def test_a_study_of_methods_has_those_that_are_asked_for():
    one = study.read(ROOT, "accuracy")
    assert list(study.of_methods(one, None).settings) == METHODS
    few = study.of_methods(one, ["moco", "byol", "moco"])
    assert [cell.overrides for cell in study.cells(ROOT, "accuracy", few, [1, 0])] == [
        ("method=moco", "seed=1"), ("method=byol", "seed=1"), ("method=moco", "seed=0"), ("method=byol", "seed=0"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"^--methods: unknown 'mocco'; did you mean moco\?"):
        study.of_methods(one, ["mocco"])
    with pytest.raises(UserError, match=r"^--methods: the settings of this study are temperature, not methods; leave"):
        study.of_methods(study.read(ROOT, "temperature"), ["moco"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"show": {"a": "knnn.top1"}}, "compare/s.yaml: show: unknown 'knnn'; did you mean knn?"),
        ({"show": {"a": "run.second"}}, "compare/s.yaml: show: run: unknown 'second'; did you mean seconds?"),
        ({"show": {}}, "compare/s.yaml: show: "),
        ({"pairs": True}, "compare/s.yaml: pairs: a study of pairs has one series"),
        ({"settings": {}}, "compare/s.yaml: settings: name some, or have `methods: true` instead"),
        ({"methods": True}, "compare/s.yaml: settings: name some, or have `methods: true` instead"),
        ({"serie": {}}, "compare/s.yaml: serie: unknown parameter; did you mean series?"),
        ({"settings": {"8": "b=8"}}, "compare/s.yaml: settings.8: must be a section"),
        ({"settings": {"8": {"pretrian": {"epochs": 8}}}}, "compare/s.yaml: pretrian: unknown parameter; did you mean"),
        (
            {"settings": {"8": {}, "9": {"pretrain": {"epochs": -1}}}},
            "compare/s.yaml: pretrain.epochs: input should be",
        ),
        ({"always": {"methods": {"byol": {"tau": 1}}}}, "compare/s.yaml: methods.byol.tau: unknown parameter"),
    ],
)
def test_a_bad_study_is_refused_in_one_line_before_anything_is_run(change, message, project, monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("nothing is run"))
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | change))
    with pytest.raises(UserError) as error:
        planned("s", [0], project)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_an_unknown_study_is_refused_with_the_nearest():
    with pytest.raises(
        UserError, match=r"^compare/: unknown 'temprature'; did you mean temperature\? Known: accuracy, "
    ):
        study.read(ROOT, "temprature")


def test_tolerance_equals_a_loop():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(20, 4)), rng.integers(-1, 3, 20)
    z = [row / np.linalg.norm(row) for row in features]
    pairs = [(i, j) for i, j in itertools.combinations(range(20), 2) if labels[i] == labels[j] != -1]
    assert tolerance(features, labels, 0) == pytest.approx(np.mean([z[i] @ z[j] for i, j in pairs]))
    assert np.isnan(tolerance(features, np.full(20, -1), 0))


def test_readings_of_features_are_of_what_images_do_not_share(tmp_path, shards):
    workspace.make(tmp_path, shards)
    x = np.load(tmp_path / "features/pretrained/test.npy").astype(np.float64)
    z = x - x.mean(0)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    labels = open_splits(parse(Params, BASE).data, shards, verified=True)["test"].labels
    pairs = list(itertools.combinations(range(len(z)), 2))
    found = of_features(tmp_path)
    potential = [np.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i, j in pairs]
    assert found["uniformity"] == pytest.approx(np.log(np.mean(potential)), abs=1e-4)
    alike = [z[i] @ z[j] for i, j in pairs if labels[i] == labels[j]]
    assert found["tolerance"] == pytest.approx(np.mean(alike), abs=1e-4)


def results(one: Study) -> list[Found]:
    """kNN of 50, 51, ... beside random weights of 40, in the order of `cells`."""
    pairs = [(name, name) for name in one.settings] + list(itertools.combinations(one.settings, 2)) * one.pairs
    plan = [Cell(series, *pair, 0, f"{series}, size {pair[0]}, seed 0", ()) for series in one.series for pair in pairs]
    return [
        Found(cell, Outcome({"knn": {"method": {"top1": 50.0 + i}, "random": {"top1": 40.0}}}))
        for i, cell in enumerate(plan)
    ]


def test_the_page_shows_every_run_escapes_names_and_leaves_out_what_was_not_read(tmp_path):
    one = parse(Study, SMALL)
    found = results(one)
    found[1] = Found(found[1].cell, Outcome({"knn": {"method": {"top1": 12.5}}}, alarm="collapsed"))
    page.write(one, found, tmp_path / "pages/s.html", "python -m selfsup.compare.run s -S 'a=b c'")
    text = (tmp_path / "pages/s.html").read_text()
    assert "&lt;b&gt;Title" in text and "<b>Title" not in text
    assert "selfsup.compare.run s -S &#39;a=b c&#39;" in text
    assert text.count("<tr><th>") == 1 + 6
    assert "<td>12.5</td><td>–</td>" in text
    assert "Alarm of collapse:</strong> one, size 16, seed 0" in text
    with (tmp_path / "pages/s.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["knn.top1"] for row in table] == ["50.0", "12.5", "52.0", "53.0", "54.0", "55.0"]
    assert [row["knn.top1 of random"] for row in table[:2]] == ["40.0", ""]


def test_random_weights_are_one_line_for_each_network():
    from matplotlib.figure import Figure

    from selfsup.report import charts

    one = parse(Study, SMALL)
    for of_random, expected in (([40.0, 40.0], {40.0: charts.COLOURS["random"]}),
                                ([40.0, 60.0], {40.0: page.COLOURS[0], 60.0: page.COLOURS[1]})):  # fmt: skip
        levels = dict(zip(one.series, of_random, strict=True))
        axis = Figure().subplots()
        found = [
            Found(two.cell, Outcome({"knn": {"method": {"top1": 50.0}, "random": {"top1": levels[two.cell.series]}}}))
            for two in results(one)
        ]
        page.lines(axis, one, found, "knn.top1")
        broken = {line.get_ydata()[0]: line.get_color() for line in axis.lines if line.is_dashed()}
        assert broken == expected


def test_a_study_of_pairs_is_a_heat_map():
    one = parse(Study, SMALL | {"series": {"one": {}}, "pairs": True, "show": {"kNN": "knn.top1"}})
    drawing = page.plot(one, results(one))
    for i in range(6):
        assert f"{50 + i:.1f}" in drawing


def test_an_outcome_is_read_in_percent_where_the_file_notes_no_other_unit(tmp_path):
    written = {
        "metrics/pretrain.json": {"loss": 1.5, "backbone": "conv", "alarm": None, "last": {"spread": 0.5, "lr": 1}},
        "metrics/times/pretrain.json": {"seconds": 9.0, "device": "cpu"},
        "metrics/evaluate/knn.json":
            {"seed": 0, "knn": {"features": "x", "method": {"top1": 0.5, "se": None}, "random": {"top1": 0.25}}},
        "metrics/evaluate/nmi.json":
            {"units": {"nmi": "lower is better", "gap": "points"}, "nmi": {"method": {"nmi": 0.5, "gap": 0.5}}},
        "metrics/evaluate/skip.json": {"skip": {"skipped": "needs labels"}},
    }  # fmt: skip
    for name, values in written.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(json.dumps(values))
    found = outcome(tmp_path)
    assert found.flat() == {
        "knn.top1": 50.0, "knn.top1 of random": 25.0, "nmi.nmi": 0.5, "nmi.gap": 50.0,
        "run.loss": 1.5, "run.seconds": 9.0, "embeddings.spread": 0.5,
    }  # fmt: skip
    assert found.backbone == "conv" and found.rows("knn.top1") == ["method", "random"]
    assert found.value("knn.top5") is found.value("skip.top1") is found.value("linear.top1", "random") is None


def test_the_command_runs_every_setting_and_stops_at_one_that_fails(project, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "selfsup")
    before, called = (project / "params.yaml").read_text(), []

    def fake(words: list[str], cwd: Path) -> subprocess.CompletedProcess:
        """As DVC does: overrides stay in params.yaml."""
        assert (cwd / "params.yaml").read_text() == before
        (cwd / "params.yaml").write_text("a: 1\n")
        called.append(words)
        return subprocess.CompletedProcess(words, int(len(called) == 3))

    def found(root: Path, sources: list[str]) -> Outcome:
        assert (root / "params.yaml").read_text() == "a: 1\n" and sources == ["knn", "embeddings"]
        return Outcome({"knn": {"method": {"top1": 10.0}}})

    monkeypatch.chdir(project)
    monkeypatch.setattr(study, "outcome", found)
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(sys, "argv", ["run", "s", "--seeds", "4", "-S", "pretrain.epochs=1"])
    with pytest.raises(UserError, match=r"^compare/s.yaml: one, size x, seed 4 failed; fix the error above"):
        run.main()
    assert [words[:4] for words in called] == [["dvc", "exp", "run", "evaluate"]] * 3
    assert called[0][-4:] == ["-S", "pretrain.batch_size=8", "-S", "seed=4"] and "pretrain.epochs=1" in called[0]
    assert (project / "params.yaml").read_text() == before, "after a failure too"
    assert not (project / "params.before.yaml").exists()
    assert (project / "compare/pages/s.csv").read_text().count("\n") == 3
    assert "s, run 3 of 6: one, size x, seed 4" in caplog.text


def test_a_study_of_methods_writes_a_table(project, monkeypatch):
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | {"settings": {}, "methods": True, "series": {"": {}}}))
    args = argparse.Namespace(methods=["byol"], seeds=[2], setup=None, set_param=[])
    monkeypatch.setattr(subprocess, "run", lambda words, cwd: subprocess.CompletedProcess(words, 0))
    monkeypatch.setattr(study, "outcome", lambda *_: Outcome({"knn": {"method": {"top1": 10.0}}}, "conv"))
    run.collect(project, "s", args, project / "out/s.md", "The title", "the conditions")
    text = (project / "out/s.md").read_text()
    assert text.startswith("# The title\n") and text.endswith("\n\nthe conditions\n")
    assert "| byol | 10.0 | - | - | conv |" in text and "seeds [2]" in text


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
    message = r"^params.yaml may hold .* params.before.yaml is the file as it was before: move it to .*, or delete it$"
    with pytest.raises(UserError, match=message), experiment(tmp_path, [], "x"):
        pass
    assert (tmp_path / "params.before.yaml").read_text() == "a: 0\n" and (tmp_path / "params.yaml").exists()
