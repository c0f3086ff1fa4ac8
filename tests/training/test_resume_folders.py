"""What unfinished runs leave: a note of what they are of, a list, removal of what is not in use, a line on kin."""

import json
import os
import time
from pathlib import Path

import pytest

from selfsup.data.loader import open_splits
from selfsup.processes.accelerator import make_accelerator
from selfsup.training import resume, session
from selfsup.training.build import method_params
from tests.helpers import params, small


def leave(place: Path, epochs: int = 200, seed: int = 0, method: str = "simclr", step: int = 40, **overrides) -> Path:
    """The folder of an unfinished run."""
    chosen = params(method=method, seed=seed, pretrain__epochs=epochs, **overrides)
    folder = session.resume_folder(place, "pretrain", chosen, method, "conv", "images")
    begin(folder, chosen, method)
    if step:
        (folder / f"step-{step:09d}-0123456789abcdef.pt").write_bytes(b"x" * 1_000_000)
    return folder


def begin(folder: Path, chosen, method: str = "simclr", checksum: str = "images") -> None:
    resume.begin(folder, {"stage": "pretrain", **session.identity(chosen, method, "conv", checksum)})


def said(capsys, place: Path, method: str = "simclr", checksum: str = "images", **overrides) -> str:
    """What a run logs as it begins."""
    capsys.readouterr()
    chosen = params(method=method, **overrides)
    begin(session.resume_folder(place, "pretrain", chosen, method, "conv", checksum), chosen, method, checksum)
    return capsys.readouterr().err


def test_another_length_is_said(tmp_path, capsys):
    folder = leave(tmp_path)
    assert said(capsys, tmp_path, pretrain__epochs=201) == (
        "note: a checkpoint of 200 epochs exists; this run of 201 starts from scratch because schedules depend on the "
        f"length ({folder}, see `make clean-resume`)\n"
    )


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"seed": 1},
            "differs in seed (0, here 1) exists; this run starts from scratch because a checkpoint belongs to",
        ),
        ({"checksum": "others"}, "differs in data exists; this run starts from scratch because its samples are diff"),
        ({"methods__simclr__temperature": 0.5}, "differs in methods.simclr.temperature (0.2, here 0.5) exists"),
        ({"seed": 2, "views__flip": 0.5}, "differs in seed (0, here 2), views.flip (0.0, here 0.5) exists"),
    ],
    ids=str,
)
def test_what_else_differs_is_said(tmp_path, capsys, change, line):
    leave(tmp_path)
    assert line in said(capsys, tmp_path, pretrain__epochs=200, **change)


def test_changed_code_is_said(tmp_path, capsys, monkeypatch):
    leave(tmp_path)
    monkeypatch.setattr(session, "code_checksum", lambda _: "other code")
    assert "differs in code exists; this run starts from scratch because the code that trains has changed" in said(
        capsys, tmp_path, pretrain__epochs=200
    )


def test_the_nearest_is_said_and_only_that(tmp_path, capsys):
    leave(tmp_path, epochs=100, seed=1)
    leave(tmp_path, epochs=150)
    leave(tmp_path, epochs=90, method="byol")
    line = said(capsys, tmp_path, pretrain__epochs=200)
    assert (
        line.startswith("note: a checkpoint of 150 epochs exists; this run of 200 starts from scratch")
        and line.count("\n") == 1
    )


@pytest.mark.parametrize("kind", ["none", "the same", "another method", "no checkpoint", "no note", "very different"])
def test_nothing_is_said_where_there_is_nothing_to_say(tmp_path, capsys, kind):
    if kind == "the same":
        leave(tmp_path, epochs=201)
    if kind == "another method":
        leave(tmp_path, method="byol")
    if kind == "no checkpoint":
        leave(tmp_path, step=0)
    if kind == "no note":
        (leave(tmp_path) / resume.NOTE).unlink()
    if kind == "very different":
        leave(tmp_path, seed=3, views__flip=0.5, views__grey=0.5, methods__simclr__temperature=0.9)
    assert said(capsys, tmp_path, pretrain__epochs=201) == ""


def test_a_run_that_goes_on_says_nothing_of_others(tmp_path, capsys):
    leave(tmp_path, epochs=100)
    leave(tmp_path, epochs=201)
    assert said(capsys, tmp_path, pretrain__epochs=201) == ""


def test_the_list_has_age_and_size_and_removes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    old, new = leave(Path()), leave(Path(), epochs=90, seed=5, method="byol", step=7)
    before = Path(resume.PLACE, "pretrain-00112233445566aa")  # of a version without notes
    before.mkdir()
    (before / "step-000000003-0123456789abcdef.pt").write_bytes(b"x" * 500_000)
    for folder, days in ((old, 3), (before, 40)):
        for path in folder.iterdir():
            os.utime(path, (time.time() - days * 86400,) * 2)
    lines = list(resume.clean(Path(resume.PLACE), remove=False))
    assert lines == [
        f"{before}: pretrain, of an earlier version, step 3, 0.5 MB, 40 days old",
        f"{old}: pretrain simclr, 200 epochs, seed 0, step 40, 1.0 MB, 3 days old",
        f"{new}: pretrain byol, 90 epochs, seed 5, step 7, 1.0 MB, 0 minutes old",
        "2.5 MB in all; `make clean-resume REMOVE=1` deletes what no process uses",
    ]
    assert all(folder.is_dir() for folder in (old, new, before))


@pytest.mark.parametrize("role", resume.ROLES)
def test_what_is_in_use_stays(tmp_path, role):
    used, unused = leave(tmp_path, epochs=10), leave(tmp_path, epochs=20)
    with session.owned(unused), session.owned(unused, "writer"):
        pass  # its locks stay
    place = tmp_path / resume.PLACE
    with session.owned(used, role):
        said = list(resume.clean(place, remove=True))
    assert [line.rpartition(", ")[2] for line in said] == ["in use", "removed"]
    assert used.is_dir() and not unused.exists()
    assert {path.name.partition(".")[0] for path in place.iterdir()} == {used.name}
    list(resume.clean(place, remove=True))
    assert list(place.iterdir()) == []
    assert list(resume.clean(place, remove=False)) == ["no unfinished runs"]


def test_a_run_notes_what_it_is_of(hundred, tmp_path):
    chosen = small(method="rotation", pretrain__epochs=1, pretrain__batch_size=64)
    splits = open_splits(chosen.data, hundred, verified=True)
    folder = session.resume_folder(tmp_path, "pretrain", chosen, "rotation", "conv", splits["train"].checksum)
    block, accelerator = method_params(chosen, "rotation"), make_accelerator("fp32")
    session.run(chosen, "rotation", block, splits, folder, "rotation", lambda row, step: None, accelerator)
    of = json.loads((folder / resume.NOTE).read_text())
    assert (of["stage"], of["method"], of["pretrain"]["epochs"]) == ("pretrain", "rotation", 1)
    (one,) = resume.left(tmp_path / resume.PLACE)
    assert (one.folder, one.step) == (folder, 1)
