"""An experiment is the one that is asked for if its dvc.lock says so. dvc.yaml is read as DVC reads it."""

import copy
import hashlib
import json

import pytest
from dvc.repo import Repo

from selfsup.compare import git, locks, run, setup
from selfsup.compare.locks import Project, differs, of_folder
from tests.helpers import ROOT

VALUES = setup.merged(setup.base_of(ROOT), {"evaluation": {"protocols": ["knn", "linear"]}})
FILES = {"shards": {"index.json": "1" * 32, "train/0.tar": "2" * 32}}


@pytest.fixture(scope="module")
def project() -> Project:
    return Project(ROOT, git.snapshot(ROOT))


@pytest.fixture(scope="module")
def wanted(project):
    return project.wanted(VALUES)


def test_stages_are_those_that_dvc_reads(project):
    """The whole of dvc.yaml with the values of params.yaml: commands, inputs, outputs and names of parameters."""
    values = setup.base_of(ROOT)
    own = locks.stages(project.pipeline, values, project.given(values)[1])
    with Repo(str(ROOT)) as repo:
        theirs = {stage.addressing: stage for stage in repo.index.stages}
    assert set(own) == set(theirs)
    for name, stage in own.items():
        whole = theirs[name]
        deps = {dep.def_path for dep in whole.deps if not getattr(dep, "params", None)}
        params = {dep.def_path: set(dep.params) for dep in whole.deps if getattr(dep, "params", None)}
        assert stage.cmd == whole.cmd, name
        assert set(stage.deps) == deps, name
        assert set(stage.outs) == {out.def_path for out in whole.outs}, name
        assert {file: set(keys) for file, keys in stage.params.items()} == params, name


@pytest.mark.parametrize("method", ["mae", "supervised"])
def test_what_a_method_of_another_backbone_or_of_any_kind_asks_for_is_known(project, method):
    asked = project.wanted(setup.merged(VALUES, {"method": method}))
    assert {**asked.stages["pretrain"].params["params.yaml"]}["method"] == method
    assert asked.given["data/needs/shards.json"] == project.wanted(VALUES).given["data/needs/shards.json"]


def test_the_checksum_of_a_folder_is_that_of_dvc(project):
    files = {"b/c.py": "0" * 32, "a.py": "1" * 32, "b.py": "2" * 32, "ä b": "3" * 32}
    assert of_folder(files) == "58c71574465a892cc30c3f19818f0bd9.dir"  # DVC computes the same: dvc_data.hashfile.tree
    one = "ssl/selfsup/views/image/recipe.py"
    assert project.checksum(one) == hashlib.md5((ROOT / one).read_bytes()).hexdigest()
    assert project.checksum("ssl/selfsup/views").endswith(".dir")
    assert project.checksum("data/shards") is None


def listing(total: str) -> dict[str, str] | None:
    return {of_folder(files): files for files in FILES.values()}.get(total)


def lock_of(wanted) -> dict:
    """A dvc.lock of the experiment that is wanted, with made-up outputs."""
    made = {}
    for stage in wanted.stages.values():
        for out in stage.outs:
            made[out] = of_folder(FILES["shards"]) if "." not in out.rpartition("/")[2] else "5" * 32
    made |= dict(wanted.given)

    def total(path: str) -> str:
        known = wanted.given.get(path) or wanted.code.get(path) or made.get(path)
        inside = {out.removeprefix(f"{path}/"): one for out, one in made.items() if out.startswith(f"{path}/")}
        files = {f"{out}/{name}": md5 for out, one in inside.items() for name, md5 in (listing(one) or {}).items()}
        return known or of_folder(files)

    found = {
        name: {
            "cmd": stage.cmd,
            "deps": [{"path": path, "md5": total(path)} for path in stage.deps],
            "params": copy.deepcopy(stage.params),
            "outs": [{"path": path, "md5": made[path]} for path in stage.outs],
        }
        for name, stage in wanted.stages.items()
    }
    return found | {"check": {"outs": [{"path": path, "md5": md5} for path, md5 in wanted.given.items()]}}


def dep(lock: dict, stage: str, path: str) -> dict:
    return next(one for one in lock[stage]["deps"] if one["path"] == path)


def out(lock: dict, stage: str, path: str) -> dict:
    return next(one for one in lock[stage]["outs"] if one["path"] == path)


def changed(change, wanted) -> str | None:
    lock = lock_of(wanted)
    change(lock)
    return differs(json.loads(json.dumps(lock)), wanted, listing)


def test_the_experiment_that_is_asked_for_is_found(wanted):
    assert changed(lambda lock: None, wanted) is None
    assert {"shard", "pretrain", "extract", "pixels", "baseline", "evaluate@knn", "evaluate@linear"} == set(
        wanted.stages
    )


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda lock: lock.pop("evaluate@knn"), "evaluate@knn was not run"),
        (lambda lock: lock["pretrain"].update(cmd="python other.py"), "pretrain had another command"),
        (lambda lock: lock["pretrain"]["params"]["params.yaml"].update(seed=1), "pretrain had other parameters"),
        (
            lambda lock: lock["pretrain"]["params"]["params.yaml"]["pretrain"].update(epochs=51),
            "pretrain had other par",
        ),
        (lambda lock: lock["pretrain"]["params"]["params.yaml"].pop("views"), "pretrain had other parameters"),
        (lambda lock: lock["baseline"]["params"]["params.yaml"].update(baselines=[]), "baseline had other parameters"),
        (lambda lock: lock["pretrain"]["deps"].pop(), "pretrain had other inputs"),
        (lambda lock: dep(lock, "pretrain", "ssl/selfsup/nets").update(md5="0.dir"), "ssl/selfsup/nets has changed"),
        (lambda lock: dep(lock, "shard", "data/watched.txt").update(md5="0"), "shard had other data"),
        (lambda lock: dep(lock, "pretrain", "data/needs/backbone.json").update(md5="0"), "pretrain had other data"),
        (
            lambda lock: dep(lock, "pretrain", "data/shards").update(md5="0"),
            "pretrain was run on data/shards of another",
        ),
        (
            lambda lock: out(lock, "shard", "data/shards").update(md5="0"),
            "pretrain was run on data/shards of another run",
        ),
        (
            lambda lock: out(lock, "pretrain", "models/pretrained").update(md5="0"),
            "extract was run on models/pretrained",
        ),
        (
            lambda lock: out(lock, "extract", "features/pretrained").update(md5="0.dir"),
            "evaluate@knn was run on features",
        ),
        (
            lambda lock: dep(lock, "evaluate@knn", "features").update(md5="0.dir"),
            "evaluate@knn was run on features of a",
        ),
    ],
)
def test_an_experiment_that_differs_in_anything_is_another(change, why, wanted):
    assert str(changed(change, wanted)).startswith(why)


def test_whole_numbers_are_equal_to_themselves_with_a_point_and_truth_is_no_number(wanted):
    def written(value):
        return lambda lock: lock["pretrain"]["params"]["params.yaml"]["views"].update(flip=value)

    assert VALUES["views"]["flip"] == 0.0
    assert changed(written(0), wanted) is None
    assert changed(written(False), wanted) == "pretrain had other parameters"


def test_other_parameters_other_keys_and_only_what_no_method_decides_is_shared(project, wanted):
    other = project.wanted({**VALUES, "method": "byol"})
    assert wanted.digest() == project.wanted(copy.deepcopy(VALUES)).digest() != other.digest()
    assert set(run.shared(wanted).stages) == {"shard", "pixels", "baseline"}
    assert run.shared(wanted).digest() == run.shared(other).digest()
    assert run.shared(wanted).digest() != run.shared(project.wanted({**VALUES, "seed": 1})).digest()
    assert run.shared(wanted).digest() != run.shared(project.wanted({**VALUES, "method": "mae"})).digest()
