"""What is written of the files that lie outside the project changes when they do, and only then."""

import os
import re
import shutil
from pathlib import Path

import pytest

from selfsup.data.watch import watch, watched
from tests.data.make import class_folders, data, shards


@pytest.fixture
def root(tmp_path):
    return class_folders(tmp_path / "images", {"a": 3, "b/c": 2})


def change_bytes(root, times=False):
    path = root / "b/c/001.png"
    info = path.stat()
    path.write_bytes(bytes(reversed(path.read_bytes())))
    if not times:
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


CHANGES = {
    "an image is added": lambda root: shutil.copy2(root / "a/000.png", root / "a/003.png"),
    "an image is removed": lambda root: (root / "a/002.png").unlink(),
    "an image is renamed": lambda root: (root / "a/002.png").rename(root / "a/004.png"),
    "an image changes its class": lambda root: (root / "a/002.png").rename(root / "b/c/002.png"),
    "an image is longer": lambda root: (root / "a/002.png").open("ab").write(b"x"),
    "an image is overwritten": lambda root: change_bytes(root, times=True),
}


@pytest.mark.parametrize("watch", ["listing", "content"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_every_change_is_noticed(root, watch, change):
    values = data(source="image_folder", path=str(root), watch=watch)
    before = watched(values)
    assert watched(values) == before and f" by {watch}: 5 files, " in before
    change(root)
    assert watched(values) != before


def test_content_sees_bytes_alone_and_a_listing_times_and_sizes(root):
    listing, content = (data(source="image_folder", path=str(root), watch=watch) for watch in ("listing", "content"))
    before = {values.watch: watched(values) for values in (listing, content)}
    os.utime(root / "a/000.png", (1, 1))
    assert watched(content) == before["content"] and watched(listing) != before["listing"]
    before["listing"] = watched(listing)
    change_bytes(root)
    assert watched(content) != before["content"] and watched(listing) == before["listing"]


def test_the_place_of_the_project_does_not_count(root, monkeypatch):
    values, there = data(source="image_folder", path="images", watch="listing"), []
    moved = root.parent.with_name("moved")
    for folder in (root.parent, root.parent.rename(moved)):
        monkeypatch.chdir(moved if moved.exists() else folder)
        there.append(watched(values))
    assert there[0] == there[1] and "5 files" in there[0]


def test_what_no_image_can_be_read_from_is_no_obstacle(root):
    (root / "a/link.png").symlink_to(root / "nowhere")
    os.mkfifo(root / "a/pipe.png")
    for way in ("listing", "content"):
        assert "7 files" in watched(data(source="image_folder", path=str(root), watch=way))
        missing = watched(data(source="image_folder", path=str(root / "nowhere"), watch=way))
        assert missing.endswith(f'nowhere" by {way}: not there\n')  # sharding reports this as an error


def test_shards_of_others_are_watched_where_they_are_files(root, tmp_path):
    shards(tmp_path / "shards", source="image_folder", path=str(root), labels="none")
    for pattern in (tmp_path / "shards/train", tmp_path / "shards/{split}/00000{0..0}.tar"):
        values = data(source="webdataset", path=str(pattern), watch="listing")
        before = watched(values)
        os.utime(tmp_path / "shards/train/000000.tar", (1, 1))
        assert " files, " in before and watched(values) != before
        os.utime(tmp_path / "shards/train/000000.tar", (2, 2))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"source": "digits"}, "images: not watched, digits are part of scikit-learn\n"),
        ({"source": "torchvision", "name": "MNIST"}, "images: not watched, torchvision checks what it downloads\n"),
        ({"source": "webdataset", "path": "https://a.b/{00..09}.tar"}, "dvc repro --force --single-item shard"),
        ({"source": "webdataset", "path": "s3://bucket/*.tar"}, "images: not watched, remote shards"),
        ({"source": "webdataset", "path": "pipe:cat x.tar"}, "images: not watched, remote shards"),
        ({"source": "image_folder", "path": ".", "watch": "none"}, "images: not watched, as data.watch says\n"),
    ],
)
def test_what_is_not_watched_is_said(overrides, said):
    assert said in watched(data(**overrides))


def test_a_table_of_groups_is_watched_by_its_bytes(tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("name,patient\n")
    values = data(group={"table": str(table), "file": "name", "group": "patient"})
    before = watched(values)
    table.touch()
    assert watched(values) == before
    table.write_text("name,patients")
    assert watched(values) != before


def test_a_listing_sees_another_size_at_the_same_time(root):
    values, path = data(source="image_folder", path=str(root), watch="listing"), root / "a/000.png"
    before, info = watched(values), path.stat()
    path.write_bytes(path.read_bytes() + b"x")
    os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))
    assert watched(values) != before


TABLE = {"file": "name", "group": "patient"}


@pytest.fixture
def pulled(root, tmp_path, monkeypatch):
    """A project whose images and table were watched and are now gone; its shards are there. The recorded text."""
    monkeypatch.chdir(tmp_path)
    Path("patients.csv").write_text("name,patient\n")
    recorded = watch(
        data(source="image_folder", path="images", watch="listing", group=TABLE | {"table": "patients.csv"})
    )
    Path("data/shards").mkdir()
    Path("data/shards/index.json").touch()
    root.rename("away")
    Path("patients.csv").unlink()
    return recorded


def again(**overrides):
    """What is recorded by a run on the project, and what the run prints beyond this."""
    values = {
        "source": "image_folder",
        "path": "images",
        "watch": "listing",
        "group": TABLE | {"table": "patients.csv"},
    }
    printed, recorded = watch(data(**(values | overrides))), Path("data/watched.txt").read_text()
    assert printed.startswith(recorded)
    return recorded, printed.removeprefix(recorded)


def test_without_its_images_the_record_of_pulled_shards_is_kept(pulled):
    for _ in range(2):
        recorded, note = again()
        assert recorded == pulled and note.count("\n") == 1
        assert note.startswith("not there, so the recorded digest is kept") and "patients.csv" in note
    Path("away").rename("images")
    assert again()[0].splitlines()[0] == pulled.splitlines()[0] and "images" not in again()[1]
    Path("images/a/000.png").unlink()
    assert again()[0] != pulled


@pytest.mark.parametrize(
    "overrides",
    [
        {"path": "elsewhere"},
        {"path": "images/a"},
        {"source": "torchvision", "name": "MNIST"},
        {"source": "webdataset"},
        {"watch": "content"},
    ],
    ids=str,
)
def test_a_record_of_other_images_is_not_kept(pulled, overrides):
    recorded, note = again(**overrides)
    assert recorded.splitlines()[0] != pulled.splitlines()[0]
    assert recorded.splitlines()[0].endswith(": not there") and "images:" not in note


@pytest.mark.parametrize("change", ["no shards", "no record", "a record without a digest", "a damaged record"])
def test_without_shards_or_a_digest_nothing_is_kept(pulled, change):
    record = Path("data/watched.txt")
    match change:
        case "no shards":
            shutil.rmtree("data/shards")
        case "no record":
            record.unlink()
        case "a record without a digest":
            record.write_text(re.sub(": 5 files.*", ": not there", pulled))
        case "a damaged record":
            record.write_bytes(b"\xff" + pulled.encode()[:90])
    recorded, note = again()
    assert recorded.splitlines()[0].endswith(": not there") and "images:" not in note
