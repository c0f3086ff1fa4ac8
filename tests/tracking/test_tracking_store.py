"""What a store holds stays: finished runs are not changed, and artifacts are found where the project lies now."""

import shutil
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from selfsup.tracking.store import Record, Store
from selfsup.tracking.writer import Writer


def record(key, metrics=None, values=None, file=None, end="FINISHED", **opening):
    """A stage's run as its writer gets it."""
    now = round(time.time() * 1000)
    common = {"key": key, "experiment": "e", "name": key, "parent": None, "training": None, "time": now, "tags": {}}
    common |= {"values": {name: str(value) for name, value in (values or {}).items()}}
    own = Record(common | opening)
    own.points = [[name, value, now, 0] for name, value in (metrics or {}).items()]
    own.files = [{"artifact": str(file), "folder": ""}] if file else []
    own.end = [end, now + 1]
    time.sleep(0.005)  # the clock of a later stage is later
    return own


def deliver(folder, *records, old=False):
    store = Store(f"sqlite:///{folder}/mlflow.db")
    store.reach(False, 1.0)
    for one in records:
        assert list(store.deliver(one, old)) == []
        while one.files:
            store.upload(one)


def client(folder):
    return MlflowClient(f"sqlite:///{folder}/mlflow.db")


def run(folder, name):
    own = client(folder)
    (found,) = own.search_runs([own.get_experiment_by_name("e").experiment_id], f"attributes.run_name = '{name}'")
    return found


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project with a finished run that has an artifact, and a run that was killed."""
    folder = tmp_path_factory.mktemp("place") / "100% of ours"
    folder.mkdir()
    (folder / "page.html").write_text("of the original")
    done = record("done", {"knn": 0.75}, {"k": [5]}, folder / "page.html", tags={"dvc.experiment": "first"})
    deliver(folder, done, record("killed", {"loss": 1.0}, {"k": 5}, end="KILLED"))
    return folder


@pytest.fixture
def copied(project, tmp_path):
    """Each test its own copy."""
    shutil.copytree(project, tmp_path / "copy")
    return tmp_path / "copy"


def listed(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_finished_run_that_is_opened_again_only_takes_what_it_does_not_have(copied):
    before = run(copied, "done")
    (copied / "page.html").write_text("of another evaluation")
    other = {"dvc.experiment": "second", "device": "x"}
    again = record(
        "done", {"knn": 0.5, "linear": 0.25}, {"k": [200], "c": 1}, copied / "page.html", "FAILED", tags=other
    )
    deliver(copied, again)
    after = run(copied, "done")
    assert after.data.metrics == {"knn": 0.75, "linear": 0.25}
    assert (after.data.params, after.data.tags) == (before.data.params, before.data.tags)
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert [path.read_text() for path in copied.rglob("artifacts/page.html")] == ["of the original"]
    deliver(copied, record("done", {"knn": 0.5}, {"k": [200]}), old=True)  # kept while the store was away
    assert run(copied, "done").data.metrics == after.data.metrics


def test_what_a_finished_run_missed_before_its_end_still_arrives(copied):
    late = record("done", {"loss": 2.0}, {"lr": 1}, time=0)
    deliver(copied, late, old=True)
    found = run(copied, "done")
    assert found.data.metrics == {"knn": 0.75, "loss": 2.0} and found.data.params["lr"] == "1"


def test_a_killed_run_is_continued_under_its_new_name(copied):
    deliver(copied, record("killed", {"knn": 0.5}, {"k": 7, "c": 1}, tags={"dvc.experiment": "second"}))
    found = run(copied, "killed")
    assert found.data.metrics == {"loss": 1.0, "knn": 0.5} and found.info.status == "FINISHED"
    assert found.data.params == {"k": "5", "c": "1"} and found.data.tags["dvc.experiment"] == "second"


def test_an_evaluation_is_linked_to_its_training(copied):
    deliver(copied, record("other", training="done"))
    assert run(copied, "other").data.tags["training"] == run(copied, "done").info.run_id


def test_a_copy_never_writes_into_the_original(project, copied):
    before = listed(project)
    (copied / "new.html").write_text("of the copy")
    deliver(copied, record("new", file=copied / "new.html"))
    assert listed(project) == before
    found = {name: run(copied, name).info.run_id for name in ("done", "new")}
    texts = {name: Path(client(copied).download_artifacts(one, ".")).rglob("*.html") for name, one in found.items()}
    assert {name: [path.read_text() for path in paths] for name, paths in texts.items()} == {
        "done": ["of the original"],
        "new": ["of the copy"],
    }
    assert all(Path(path).is_relative_to(copied) for path in copied.rglob("new.html"))
    assert len(list(copied.rglob("mlartifacts/*/artifacts/*.html"))) == 2


def test_a_project_that_was_renamed_finds_its_artifacts_again(copied):
    """As `make ui` does before it starts the server."""
    import subprocess
    import sys

    renamed = copied.rename(copied.with_name("renamed"))
    command = [sys.executable, "-m", "selfsup.tracking.store", "mlflow.db"]
    done = subprocess.run(command, cwd=renamed, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    place = client(renamed).download_artifacts(run(renamed, "done").info.run_id, "page.html")
    assert Path(place).read_text() == "of the original"
    assert subprocess.run(command, cwd=copied.parent, capture_output=True).returncode == 0  # nothing recorded yet


def test_a_folder_with_a_per_cent_sign_keeps_its_own_artifacts(tmp_path, monkeypatch):
    """MLflow reads a location as a quoted URL, in which the `%20` of a folder's name is a space."""
    folder = tmp_path / "100%20ours"
    folder.mkdir()
    monkeypatch.chdir(folder)  # as in a stage, whose store is given relative to the project
    Path("page.html").write_text("of this project")
    deliver(".", record("done", file=folder / "page.html"))
    (kept,) = folder.rglob("mlartifacts/*/artifacts/page.html")
    found = client(".").download_artifacts(run(".", "done").info.run_id, "page.html", str(folder))
    assert kept.read_text() == Path(found).read_text() == "of this project"
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_store_is_the_file_that_its_quoted_uri_names(tmp_path):
    (tmp_path / "my lab").mkdir()
    (tmp_path / "page.html").write_text("of my lab")
    deliver(f"{tmp_path}/my%20lab", record("done", file=tmp_path / "page.html"))
    assert not [path for path in tmp_path.rglob("my%20lab/**/*") if path.is_file()]
    assert [path.read_text() for path in tmp_path.rglob("my lab/mlartifacts/*/artifacts/page.html")] == ["of my lab"]


def locations(folder, *names):
    return [client(folder).get_experiment_by_name(name).artifact_location for name in names]


def test_artifacts_that_lie_elsewhere_stay_there(copied, tmp_path):
    """In other kinds of place, in a place that is still there, and those of runs that are not this package's."""
    own = client(copied)
    (tmp_path / "archive/mlartifacts").mkdir(parents=True)
    places = {
        "bucket": "s3://bucket/mlartifacts",
        "folder": str(tmp_path / "shared"),
        "server": "mlflow-artifacts:/7",
        "there": str(tmp_path / "archive/mlartifacts"),
        "foreign": str(tmp_path / "unmounted/mlartifacts"),
    }
    for name, place in places.items():
        own.create_experiment(name, artifact_location=place)
    foreign = own.create_run(own.get_experiment_by_name("foreign").experiment_id).info
    deliver(copied, record("ours", experiment="foreign"))
    deliver(copied, record("new"))
    assert locations(copied, *places) == list(places.values())
    assert own.get_run(foreign.run_id).info.artifact_uri == f"{places['foreign']}/{foreign.run_id}/artifacts"


def test_a_place_of_ours_that_is_gone_is_found_beside_the_database(copied, tmp_path):
    client(copied).create_experiment("gone", artifact_location=str(tmp_path / "unmounted/mlartifacts"))
    deliver(copied, record("ours", experiment="gone"))
    deliver(copied, record("new"))
    assert locations(copied, "gone") == [str(copied / "mlartifacts")]


def test_what_is_kept_is_found_by_the_project_wherever_it_lies(tmp_path):
    marks = {Writer(f"sqlite:///{tmp_path}/{n}/mlflow.db", None, tmp_path / n / ".cache/tracking").mark() for n in "ab"}
    assert len(marks) == 1
    assert Writer("http://a", None, tmp_path).mark() != Writer("http://b", None, tmp_path).mark()
