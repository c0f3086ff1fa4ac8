"""Comparisons ask for valid experiments that differ, and refuse everything else before anything is run."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from selfsup.compare import plan, setup
from selfsup.compare.plan import Cell
from selfsup.compare.readings import of_features, tolerance
from selfsup.config import parse
from selfsup.data.loader import open_splits
from selfsup.errors import UserError
from selfsup.params import Params
from selfsup.training.build import build_task, method_params
from tests.compare.test_setup import by_dvc
from tests.evaluation import workspace
from tests.helpers import METHODS, ROOT

BASE = setup.base_of(ROOT)
COMPARISONS = plan.names(ROOT)
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
    """A folder with parameters, a set-up and the comparison `s`."""
    for folder in ("setups", "compare"):
        (tmp_path / folder).mkdir()
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (tmp_path / "setups/photos.yaml").write_text("views: {flip: 0.3, grey: 0.3}\nseed: 9\n")
    (tmp_path / "compare/s.yaml").write_text(json.dumps(SMALL))
    return tmp_path


def planned(name: str, seeds: list[int], root: Path = ROOT, more: tuple[str, ...] = (), **changes) -> list[Cell]:
    one = plan.read(root, name).model_copy(update={"seeds": seeds} | changes)
    return plan.cells(root, name, plan.of_methods(one, None) if one.methods else one, more)


@pytest.mark.parametrize("name", COMPARISONS)
def test_every_run_is_a_valid_experiment_of_its_own(name):
    one = plan.read(ROOT, name)
    more = ("data.image.path=photos",) if "image_folder" in str(one.overrides) else ()
    seen = [parse(Params, cell.values) for cell in planned(name, [0, 1], more=more)]
    for params in seen:
        method_params(params, params.method)
    assert all(a != b for a, b in itertools.combinations(seen, 2))
    settings = len(METHODS) - 1 if one.methods is True else len(one.settings)  # not the supervised one
    assert len(seen) == 2 * len(one.series) * (settings * (settings + 1) // 2 if one.pairs else settings)


@pytest.mark.parametrize("name", [name for name in COMPARISONS if not plan.read(ROOT, name).methods])
def test_every_run_of_a_study_builds_its_method_on_the_digits(name, shards):
    for cell in planned(name, [0], more=("data.cache=memory",)):
        params = parse(Params, cell.values)
        split = open_splits(params.data, shards, verified=True)["train"]
        build_task(params, params.method, method_params(params, params.method), split)


def test_what_a_study_fixes_is_fixed_whatever_the_set_up():
    """Views that a set-up turns on must not come into the study of each alone."""
    assert setup.read(ROOT, "fashion-mnist-10k", BASE)["views"]["flip"] == 0.5
    runs = {(cell.setting, cell.other): cell for cell in planned("augmentations", [0], setup="fashion-mnist-10k")}
    params = parse(Params, runs["grey", "grey"].values)
    assert (params.views.flip, params.views.crop_scale, params.views.jitter.p) == (0, [1.0, 1.0], 0)
    assert params.views.grey == 0.2 and params.pretrain.epochs == 20


def test_what_comes_later_replaces_what_came_before(project):
    """Defaults, the set-up, the file's overrides, the user's, what is always so, and the setting."""
    own = {
        "defaults": {"baselines": ["random"], "views": {"flip": 0.1, "grey": 0.1}},
        "overrides": {"views": {"flip": 0.4}, "seed": 5, "pretrain": {"epochs": 7}},
        "always": {"views": {"flip": 0.6}, "pretrain": {"batch_size": 64}},
        "series": {"one": {}},
        "pairs": True,
        "settings": {"8": {"pretrain": {"batch_size": 8}}, "c": {"pretrain": {"log_every": 3}}, "x": {"baselines": []}},
    }
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | own))
    more = ("views.flip=0.5", "pretrain.epochs=8", "pretrain.warmup_epochs=1")
    found = {cell.row: cell for cell in planned("s", [3], project, more, setup="photos")}
    assert list(found) == ["one, 8", "one, c", "one, x", "one, 8 and c", "one, 8 and x", "one, c and x"]
    values = found["one, c"].values
    assert (values["baselines"], values["views"]["grey"], values["views"]["flip"]) == (["random"], 0.3, 0.6)
    assert (values["seed"], values["pretrain"]["epochs"], values["pretrain"]["warmup_epochs"]) == (3, 8, 1)
    assert [cell.values["pretrain"]["batch_size"] for cell in found.values()] == [8, 64, 64, 8, 8, 64]


def test_what_a_set_up_replaces_is_replaced_again(project):
    net = {"backbones": {"conv": {"options": {"depth": 3}}}}
    (project / "setups/photos.yaml").write_text(json.dumps({"backbones": {"conv": {"options": {"layers": 2}}}}))
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | {"always": net}))
    cell = planned("s", [0], project, setup="photos")[0]
    assert cell.values["backbones"]["conv"]["options"] == {"depth": 3}


@pytest.mark.parametrize("values", [{}, {"views": {"flip": 0.5}, "seed": 4}, {"backbones": {"conv": {"options": {}}}}])
def test_the_changes_that_an_experiment_is_run_with_give_its_parameters(values, tmp_path):
    wanted = setup.merged(BASE, values)
    assert by_dvc(BASE, list(setup.changes(BASE, wanted)), tmp_path) == wanted
    assert len(list(setup.changes(BASE, wanted))) == len(values)


def test_rows_are_the_methods_that_are_asked_for(project):
    one = plan.read(ROOT, "methods")
    assert list(plan.of_methods(one, None).settings) == [name for name in METHODS if name != "supervised"]
    assert list(plan.of_methods(one, ["supervised"]).settings) == ["supervised"], "only where it is asked for"
    few = plan.of_methods(one, ["moco", "byol"]).model_copy(update={"seeds": [1, 0]})
    assert [(cell.row, cell.method, cell.seed) for cell in plan.cells(ROOT, "methods", few)] == [
        *(("moco", "moco", 1), ("byol", "byol", 1), ("moco", "moco", 0), ("byol", "byol", 0)),
    ]
    assert plan.cells(ROOT, "methods", plan.of_protocols(few, ["knn"]))[0].values["evaluation"]["protocols"] == ["knn"]
    (project / "compare/s.yaml").write_text(
        json.dumps(SMALL | {"settings": {}, "series": {"": {}}, "methods": ["moco"]})
    )
    named = plan.read(project, "s")
    assert list(plan.of_methods(named, None).settings) == ["moco"]
    assert list(plan.of_methods(named, ["byol"]).settings) == ["byol"]
    assert plan.design(named) is None and next(iter(plan.design(plan.read(ROOT, "temperature")).cells)) == "0.02"


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda one: plan.of_methods(one, ["mocco"]), "--methods: unknown 'mocco'; did you mean moco? Known: "),
        (lambda one: plan.of_methods(one, ["moco", "byol", "moco"]), "--methods: names moco twice; remove one"),
        (lambda one: plan.of_protocols(one, ["kn"]), "--protocols: unknown 'kn'; did you mean knn? Known: "),
        (lambda one: plan.of_protocols(one, ["knn", "knn"]), "--protocols: names knn twice; remove one"),
        (lambda _: planned("methods", [0, 1, 0]), "--seeds: names a seed twice, got 0 1 0; remove one"),
        (lambda _: planned("methods", [0], setup="digts"), "setups/: unknown 'digts'; did you mean digits? Known: "),
        (lambda _: planned("methods", [0], more=("views.flop=1",)), "-S views.flop=1: params.yaml has no views.flop; "),
        (lambda _: planned("methods", [0], more=("seed=3",)), "-S seed=3: a comparison sets this for each run; use"),
        (lambda _: planned("methods", [0], more=("method=mae",)), "-S method=mae: a comparison sets this for each "),
        (lambda _: planned("methods", [0], more=("views.flip=[",)), "-S views.flip=[: Invalid `--set-param` value; "),
        (lambda _: planned("methods", [0], more=("views.flip=2",)), "-S: views.flip: input should be less than or"),
        (lambda _: plan.of_methods(plan.read(ROOT, "temperature"), ["moco"]), "--methods: the rows of this comparison"),
        (lambda _: plan.read(ROOT, "temprature"), "compare/: unknown 'temprature'; did you mean temperature? Known: "),
    ],
)
def test_what_is_not_known_or_named_twice_is_refused_with_the_nearest(ask, message):
    with pytest.raises(UserError) as error:
        ask(plan.read(ROOT, "methods"))
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


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
        ({"settings": {"8": {}, "9": {"seed": 4}}}, "compare/s.yaml: one, 8 and one, 9 are the same experiment; "),
        # a knob of a method that is not trained
        ({"settings": {"8": {}, "9": {"methods": {"byol": {"momentum": [0.5, 1.0]}}}}}, "compare/s.yaml: one, 8 and"),
        ({"seeds": [-1]}, "compare/s.yaml: seeds.0: input should be greater than or equal to 0"),
    ],
)
def test_a_bad_study_is_refused_in_one_line_before_anything_is_run(change, message, project):
    (project / "compare/s.yaml").write_text(json.dumps(SMALL | change))
    with pytest.raises(UserError) as error:
        planned("s", [0], project)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


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
    found = of_features(tmp_path, parse(Params, BASE))
    potential = [np.exp(-2 * ((z[i] - z[j]) ** 2).sum()) for i, j in pairs]
    assert found["uniformity"] == pytest.approx(np.log(np.mean(potential)), abs=1e-4)
    alike = [z[i] @ z[j] for i, j in pairs if labels[i] == labels[j]]
    assert found["tolerance"] == pytest.approx(np.mean(alike), abs=1e-4)
