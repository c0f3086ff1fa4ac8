"""Which MLflow run a stage is recorded in: one parent per experiment, and nothing recorded twice or changed."""

import json
import sys

import pytest

from selfsup import digests
from selfsup.tracking import runs as tracking
from tests.helpers import ROOT, params

sys.path.insert(0, str(ROOT / "stages"))

from selfsup.tracking import record

pytestmark = pytest.mark.usefixtures("opened")
ORIGIN = {"knn": {"labels": "l", "parameters": "p", "features": {"method": "f", "pixels": "x"}}}


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """What each stage asked the tracker for."""
    asked = []

    def start(_, stage, _name, parent=None, resume=None, values=None, _tags=None, training=None):
        run = tracking.Run(None, resume)
        key = parent.key if isinstance(parent, tracking.Run) else parent
        asked.append({"stage": stage, "key": run.key, "parent": key, "values": values, "training": training})
        return run

    monkeypatch.setattr(tracking, "start", start)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return asked


def train(used, resume, weights="w"):
    with record.training(used, True, "checksum", resume) as (parent, run):
        record.trained(used, parent, weights)
    return parent.key, run.key


def judge(used, stage="evaluate knn", weights="w", origin=ORIGIN):
    with record.nested(used, stage, weights, origin) as (parent, run):
        pass
    return parent.key, run.key


def test_the_first_evaluation_is_the_trainings_own_and_another_has_a_parent_linked_to_it(opened, tmp_path):
    used, other = params(), params(evaluation__knn__k=[200])
    parent, _ = train(used, tmp_path / "resume")
    assert judge(used, "extract", origin=None)[0] == parent
    assert judge(used)[0] == judge(used, "evaluate linear")[0] == parent
    changed = {"knn": ORIGIN["knn"] | {"parameters": "of k 200"}}
    own, run = judge(other, origin=changed)
    assert own != parent
    asked = next(one for one in opened if one["key"] == own)
    assert asked["training"] == parent and asked["values"]["evaluation"]["knn"]["k"] == [200]
    assert judge(other, "evaluate linear", origin=changed)[0] == judge(other, "report", origin=changed)[0] == own
    assert judge(used)[0] == parent
    assert judge(other, origin=changed) == (own, run)  # run again: the same runs


def test_an_evaluation_with_other_parameters_never_takes_the_trainings_parent(tmp_path):
    """Also where it is the first, as the training was stopped before its own."""
    parent, _ = train(params(), tmp_path / "resume")
    assert judge(params(evaluation__knn__k=[200]))[0] != parent
    own = {"knn": ORIGIN["knn"] | {"parameters": "of the training"}}
    assert judge(params(), origin=own)[0] == parent


def test_baselines_that_were_made_anew_are_another_evaluation(tmp_path):
    parent, _ = train(params(), tmp_path / "resume")
    assert judge(params())[0] == parent
    anew = {"knn": ORIGIN["knn"] | {"features": {"method": "f", "pixels": "other"}}}
    assert judge(params(), origin=anew)[0] != parent


def test_code_that_changed_is_another_evaluation_and_another_run(tmp_path, monkeypatch):
    parent, _ = train(params(), tmp_path / "resume")
    first = judge(params())
    monkeypatch.setattr(record, "closure", lambda *_: [ROOT / "dvc.yaml"])
    assert judge(params())[0] not in (parent, first[0])
    with_parent = judge(params(), "extract", origin=None)
    monkeypatch.setattr(record, "PACKAGE", tmp_path)
    again = judge(params(), "extract", origin=None)
    assert with_parent[0] == again[0] and with_parent[1] != again[1]


def test_trainings_of_equal_weights_keep_their_own_evaluations(tmp_path):
    """Two experiments in a queue that train the same and evaluate differently, both trained before either evaluates."""
    used, other = params(), params(evaluation__knn__k=[200])
    first, second = train(used, tmp_path / "1")[0], train(other, tmp_path / "2")[0]
    changed = {"knn": ORIGIN["knn"] | {"parameters": "of k 200"}}
    assert judge(used)[0] == first and judge(other, origin=changed)[0] == second
    assert train(used, tmp_path / "3")[0] not in (first, second)  # once more by force
    assert judge(used)[0] == first


def test_a_training_that_is_resumed_is_the_same_runs(tmp_path):
    assert train(params(), tmp_path / "resume") == train(params(), tmp_path / "resume")
    assert train(params(), tmp_path / "other") != train(params(), tmp_path / "resume")
    (note,) = (tmp_path / ".cache/runs").glob("*.json")
    assert len(json.loads(note.read_text())["trainings"]) == 2


def test_weights_from_elsewhere_are_recorded_too():
    """Trained without tracking, or fetched with `dvc pull`."""
    parent = judge(params(), "extract", origin=None)[0]
    assert parent and judge(params())[0] == parent


def test_without_tracking_nothing_is_noted(opened, tmp_path):
    off = params(tracking__enabled=False)
    assert train(off, tmp_path / "resume") == judge(off) == (None, None)
    assert opened == [] and not (tmp_path / ".cache").exists() and not (tmp_path / "resume").exists()


def test_digests_tell_bytes_types_and_order_apart(tmp_path):
    import numpy as np

    files = [tmp_path / "a", tmp_path / "b"]
    for path, text in zip(files, ("ab", "c"), strict=True):
        path.write_text(text)
    first = digests.of_files(*files)
    files[0].write_text("a"), files[1].write_text("bc")
    assert len({first, digests.of_files(*files), digests.of_files(*files[::-1])}) == 3
    x = np.arange(4)
    kinds = [x, x.astype(np.int32), x.reshape(2, 2), x[::-1]]
    assert len({digests.of_arrays(kind) for kind in kinds}) == 4 and digests.of_arrays(x) == digests.of_arrays(x.copy())
    assert digests.of_values({"a": 1, "b": [2]}) == digests.of_values({"b": [2], "a": 1}) != digests.of_values({"a": 1})
