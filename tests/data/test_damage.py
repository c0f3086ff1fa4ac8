"""Shards tell when they are damaged, and what interrupts their writing leaves those that were there."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from selfsup.data import writer
from selfsup.data.index import load_index, verify
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.data.source import Samples
from selfsup.errors import UserError
from tests.data.make import class_folders, contents, data, shards

ROOT = Path(__file__).parents[2]


@pytest.fixture
def copy(digits, tmp_path):
    return shutil.copytree(digits, tmp_path / "copy")


def member_boundary(path: Path) -> int:
    with tarfile.open(path) as tar:
        return tar.getmembers()[-2].offset  # the last sample's image and label


def test_a_tar_cut_between_members_reads_in_silence_but_not_here(copy):
    path = copy / "train" / "000002.tar"
    end = member_boundary(path)
    os.truncate(path, end)
    with tarfile.open(path) as tar:  # the trap: no error, one sample less
        assert len(tar.getmembers()) == 2 * 299
    for level in ("size", "full"):
        with pytest.raises(UserError, match=r"train/000002\.tar: .*cut short.*dvc repro --force"):
            verify(copy, level)
        with pytest.raises(UserError, match=r"train/000002\.tar"):
            open_split(copy, "train", data(verify=level))
    open_split(copy, "test", data())  # the other splits are whole


def test_a_flipped_bit_is_found(copy):
    path = copy / "validation" / "000000.tar"
    damaged = bytearray(path.read_bytes())
    damaged[700] ^= 4
    path.write_bytes(damaged)
    verify(copy, "size")  # what `size` cannot see
    with pytest.raises(UserError, match=r"validation/000000\.tar: .*SHA-256"):
        verify(copy, "full")


@pytest.mark.parametrize("level", ["size", "full"])
def test_a_missing_or_grown_shard_is_found(copy, level):
    path = copy / "test" / "000001.tar"
    with path.open("ab") as tar:
        tar.write(bytes(512))
    with pytest.raises(UserError, match=r"test/000001\.tar"):
        verify(copy, level)
    path.unlink()
    with pytest.raises(UserError, match=r"test/000001\.tar: missing"):
        verify(copy, level)


@pytest.mark.parametrize("level", ["size", "full"])
def test_a_damaged_table_is_found(copy, level):
    path = copy / "train" / "000000.npz"
    damaged = bytearray(path.read_bytes())
    damaged[60:70] = bytes(10)
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"train/000000\.npz"):
        verify(copy, level)


def edit(copy: Path, change) -> None:
    values = json.loads((copy / "index.json").read_text())
    change(values)
    (copy / "index.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["splits"]["train"].pop(), "edited"),
        (lambda v: v["splits"]["train"][0].update(samples=1), "edited"),
        (lambda v: v["classes"].reverse(), "edited"),
        (lambda v: v["facts"].update(mean=[0.5, 0.5, 0.5]), "edited"),
        (lambda v: v.pop("seed"), "damaged or edited"),
        (lambda v: v.update(schema_version=0), "another version"),
    ],
)
def test_an_edited_index_is_found(copy, change, message):
    edit(copy, lambda _: None)
    load_index(copy)  # the same values in another layout are the same index
    edit(copy, change)
    with pytest.raises(UserError, match=rf"index\.json: .*{message}.*dvc repro --force"):
        load_index(copy)


def test_a_cut_or_missing_index_is_found(copy):
    os.truncate(copy / "index.json", 100)
    with pytest.raises(UserError, match="damaged"):
        load_index(copy)
    (copy / "index.json").unlink()
    with pytest.raises(UserError, match="not found; run"):
        load_index(copy)


def without_a_member(path: Path) -> None:
    """Write a tar again without its third sample."""
    with tarfile.open(path) as tar:
        members = [(member, tar.extractfile(member).read()) for member in tar]
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for member, content in members[:4] + members[6:]:
            tar.addfile(member, io.BytesIO(content))


def grown(path: Path) -> None:
    """The last sample twice."""
    content = path.read_bytes()
    end = len(content.rstrip(b"\0")) // 512 * 512 + 512
    path.write_bytes(content[:end] + content[end - 2048 : end] + bytes(1024))


def swapped(path: Path) -> None:
    """Two samples of one size change places: other labels, the same sizes and counts."""
    with tarfile.open(path) as tar:
        a, b = [member for member in tar if member.name.endswith(".png")][:2]
    content = bytearray(path.read_bytes())
    size = min(a.size, b.size)
    first, second = (slice(member.offset_data, member.offset_data + size) for member in (a, b))
    content[first], content[second] = content[second], content[first]
    path.write_bytes(content)


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "file", "size_sees_it"),
    [
        (without_a_member, "train/000001.tar", True),
        (grown, "train/000001.tar", True),
        (lambda path: os.truncate(path, 1000), "train/000001.npz", True),
        (lambda path: path.unlink(), "train/000001.npz", True),
        (lambda path: shutil.copy(path.with_name("000000.npz"), path), "train/000001.npz", True),
        (lambda path: shutil.copy(path.with_name("000000.tar"), path), "train/000001.tar", False),  # of equal size
        (swapped, "train/000001.tar", False),
        (flipped, "train/000001.tar", False),
    ],
    ids=["member gone", "grown", "table cut", "table gone", "table of another", "another shard", "swapped", "flipped"],
)  # fmt: skip
def test_what_each_level_sees(copy, change, file, size_sees_it):
    """`size` sees what changes a file's size or does not fit the table; `full` sees every change of a byte."""
    change(copy / file)
    with pytest.raises(UserError, match=file.replace(".", r"\.").replace("npz", "(npz|tar)")):
        open_split(copy, "train", data(verify="full"))
    if size_sees_it:
        with pytest.raises(UserError, match=file.replace(".", r"\.").replace("npz", "(npz|tar)")):
            open_split(copy, "train", data(verify="size"))
    else:
        open_split(copy, "train", data(verify="size"))


# interruption


def test_an_error_leaves_the_shards_that_were_there(copy, tmp_path):
    before = contents(copy)
    root = class_folders(tmp_path / "images", {"a": 5, "b": 5})
    (root / "b" / "bad.png").write_bytes(b"")
    for processes in (1, 2):
        with pytest.raises(UserError, match=r"b/bad\.png: unreadable \(an empty file\).*data\.on_error: skip"):
            write(data(source="image_folder", path=str(root)), 0, copy, processes)
        assert contents(copy) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "images"]


_IN_A_PROCESS = """
import resource, sys
from selfsup import params
from selfsup.data.shards import write
from selfsup.data.source import Samples
from selfsup.errors import one_line_errors
if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))
    values = params.load(sys.argv[4]).data.of("image").model_copy(update={"samples_per_shard": int(sys.argv[2])})
    with one_line_errors():
        write(values, 0, sys.argv[1], processes=2)
"""


def start(tmp_path: Path, folder: Path, samples_per_shard: int, limit: int) -> subprocess.Popen:
    script = tmp_path / "script.py"
    script.write_text(_IN_A_PROCESS)
    arguments = [str(folder), str(samples_per_shard), str(limit), str(ROOT / "params.yaml")]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "ssl")}
    return subprocess.Popen(
        [sys.executable, str(script), *arguments], stderr=subprocess.PIPE, env=environment, text=True
    )


def test_a_full_disk_leaves_the_shards_that_were_there(copy, tmp_path):
    before = contents(copy)
    process = start(tmp_path, copy, 1000, limit=500_000)
    error = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 1
    assert "File too large" in error
    assert ".tar" in error
    assert contents(copy) == before
    assert not (tmp_path / "copy.partial").exists()


def test_a_killed_run_leaves_the_shards_that_were_there_and_the_next_run_works(copy, digits, tmp_path):
    before = contents(copy)
    process = start(tmp_path, copy, 3, limit=10**9)  # six hundred shards take a while
    partial = tmp_path / "copy.partial"
    deadline = time.monotonic() + 60
    while len(list(partial.rglob("*.tar"))) < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()  # returns when no worker holds the pipe any more
    assert partial.exists()
    assert contents(copy) == before
    shards(copy, samples_per_shard=300)
    assert contents(copy) == contents(digits)
    assert not partial.exists()


def test_a_dead_worker_is_one_line(tmp_path):
    (tmp_path / "train").mkdir()
    samples = Samples(["x.png"], np.array([0]), [9])
    jobs = [writer.Job(tmp_path, "train", i, i, samples, data()) for i in range(2)]
    with pytest.raises(UserError, match="worker process was killed"):
        writer.run(jobs, os._exit, processes=2)  # reading the sample ends the process
