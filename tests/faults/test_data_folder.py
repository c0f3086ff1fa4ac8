"""Data folders that cannot be written, that change while they are read, and clocks that are wrong."""

import ast
import contextlib
import io
import os
import re
import shutil
from pathlib import Path

import pytest
import torch

from selfsup import logs
from selfsup.data import source as sources
from selfsup.data import writer
from selfsup.data.index import verify
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.errors import UserError
from selfsup.training import checkpoint
from tests.data.make import class_folders, contents, data, shards
from tests.faults.limits import respect_modes
from tests.helpers import ROOT, processes

PAST, FUTURE = 0, 4_000_000_000  # seconds since 1970


def locked(*folders: Path) -> None:
    """Nothing below the folders can be written from now on, not even by root."""
    for root in folders:
        for path in [*root.rglob("*"), root]:
            path.chmod(0o555 if path.is_dir() else 0o444)
    respect_modes()
    for root in folders:
        with pytest.raises(PermissionError):
            (root / "x").touch()


def unlocked(root: Path) -> None:
    for path in [root, *root.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


def _read_only(place: Path) -> tuple[list[str], str]:
    """What is in the project afterwards, and what was logged."""
    logs.configure()
    locked(place / "images", place / "project")
    os.environ["DVC_ROOT"] = str(place / "project")  # where decoded images would be kept
    values = {"source": "image_folder", "path": str(place / "images")}
    splits = shards(place / "shards", **values)
    expected = splits["train"].gather(range(10))["image"]
    locked(place / "shards")
    with contextlib.redirect_stderr(io.StringIO()) as said:
        for cache in ("memory", "none", "auto"):
            split = open_split(place / "shards", "train", data(cache=cache, **values))
            assert torch.equal(split.gather(range(10))["image"], expected)
    with pytest.raises(OSError, match=r"Permission denied \(data\.cache: none does without it\)"):
        open_split(place / "shards", "train", data(cache="disk", **values)).gather([0])
    return sorted(contents(place / "project")), said.getvalue()


def test_folders_that_can_only_be_read(tmp_path):
    class_folders(tmp_path / "images", {"a": 10, "b": 10})
    (tmp_path / "project").mkdir()
    try:
        left, said = processes(1, _read_only, tmp_path)
    finally:
        unlocked(tmp_path)
    assert left == []
    notes = [line for line in said.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert re.search(r"Permission denied.*; images are decoded at each use$", notes[0])


def _cached(place: Path) -> None:
    os.environ["DVC_ROOT"] = str(place / "project")
    values = data(image_size=8, cache="disk")
    expected = open_split(place / "shards", "train", data(image_size=8)).gather([3])["image"]
    open_split(place / "shards", "train", values).gather([3])
    locked(place / "project", place / "shards")
    assert torch.equal(open_split(place / "shards", "train", values).gather([3])["image"], expected)


def test_decoded_images_that_are_there_are_read_where_nothing_can_be_written(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 10, "b": 10})
    write(data(source="image_folder", path=str(root)), 0, tmp_path / "shards", processes=1)
    (tmp_path / "project").mkdir()
    try:
        processes(1, _cached, tmp_path)
    finally:
        unlocked(tmp_path)


@pytest.mark.parametrize("on_error", ["fail", "skip"])
@pytest.mark.parametrize("what", ["gone", "folder", "pipe", "device"])
def test_a_file_that_goes_or_turns_into_something_else_is_named(tmp_path, monkeypatch, on_error, what):
    root = class_folders(tmp_path / "images", {"a": 10, "b": 10})

    def change(*arguments, real=writer.run):
        path = root / "b" / "003.png"
        path.unlink()
        match what:
            case "folder":
                path.mkdir()
            case "pipe":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
        (root / "b" / "new.png").write_bytes((root / "a" / "000.png").read_bytes())
        return real(*arguments)

    monkeypatch.setattr("selfsup.data.shards.run", change)
    values = data(source="image_folder", path=str(root), on_error=on_error)
    if on_error == "fail":
        with pytest.raises(UserError, match=r"b/003\.png: unreadable \(.*data\.on_error: skip"):
            write(values, 0, tmp_path / "shards", processes=1)
        assert not (tmp_path / "shards").exists()
        return
    index = write(values, 0, tmp_path / "shards", processes=1)
    assert [entry.name for entry in index.skipped] == ["b/003.png"]
    assert sum(index.samples(split) for split in index.splits) == 19  # the new file came after the listing
    names = [name for split in index.splits for name in open_split(tmp_path / "shards", split, values).names]
    assert sorted(names) == [f"{label}/{i:03d}.png" for label in "ab" for i in range(10) if (label, i) != ("b", 3)]


def test_a_folder_that_goes_while_it_is_listed_is_one_line(tmp_path, monkeypatch):
    root = class_folders(tmp_path / "images", {"a": 3, "b": 3})
    real = os.scandir

    def vanish(path):
        if not isinstance(path, int) and Path(path).name == "b":
            shutil.rmtree(path)
        return real(path)

    monkeypatch.setattr(sources.os, "scandir", vanish)
    with pytest.raises(OSError, match="No such file") as caught:
        write(data(source="image_folder", path=str(root)), 0, tmp_path / "shards", processes=1)
    assert str(caught.value.filename).endswith("b")


@pytest.mark.parametrize("first", [PAST, FUTURE])
def test_a_clock_that_is_set_back_or_forth_changes_nothing(tmp_path, monkeypatch, first):
    """Whatever is older by its name is older, whatever the times of the files say."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    root = class_folders(tmp_path / "images", {"a": 10, "b": 10})
    values = data(source="image_folder", path=str(root), cache="disk")
    write(values, 0, tmp_path / "shards", processes=1)
    before = contents(tmp_path / "shards")
    expected = open_split(tmp_path / "shards", "train", values).gather([2])["image"]
    for step in (1, 2, 3):
        checkpoint.save(tmp_path / "resume", step, {"step": step})
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    for number, path in enumerate(files):
        time = first + (number if first == PAST else -number)
        os.utime(path, (time, time))
    verify(tmp_path / "shards")
    assert torch.equal(open_split(tmp_path / "shards", "train", values).gather([2])["image"], expected)
    assert checkpoint.load(tmp_path / "resume")["step"] == 3
    checkpoint.save(tmp_path / "resume", 4, {"step": 4})
    assert sorted(path.name[:14] for path in (tmp_path / "resume").glob("*.pt")) == ["step-000000003", "step-000000004"]
    write(values, 0, tmp_path / "shards", processes=1)
    assert contents(tmp_path / "shards") == before


READ_CLOCKS = {
    # Files' times decide whether shards are written, and nothing of what is in them.
    ROOT / "ssl/selfsup/data/watch.py",
    # The ages of unfinished runs are printed for a reader.
    ROOT / "ssl/selfsup/training/resume.py",
    # Which kept results are deleted first: what is deleted is computed again.
    ROOT / "ssl/selfsup/evaluation/kept.py",
}


def clocks(source: str) -> set[str]:
    """Uses of the clock on the wall, and of files' times."""
    names = {ast.unparse(node) for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    wall = {"time.time", "time.time_ns", "datetime.now", "datetime.datetime.now", "datetime.utcnow", "date.today"}
    return {name for name in names if name in wall or re.search(r"\.st_[acm]time|getmtime", name)}


@pytest.mark.parametrize(
    "folder", ["data", "training", "evaluation", "features", "families", "views", "nets", "nn", "methods"]
)
def test_no_result_depends_on_the_clock(folder):
    for path in (ROOT / "ssl" / "selfsup" / folder).rglob("*.py"):
        if path not in READ_CLOCKS:
            assert not clocks(path.read_text()), path
    assert clocks("import time\ntime.time()\npath.stat().st_mtime") == {"time.time", "path.stat().st_mtime"}
