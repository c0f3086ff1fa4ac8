"""Shards of others are read from disks, servers, commands and buckets, and what is no image shard is named."""

import functools
import gzip
import http.server
import io
import json
import lzma
import os
import pickle
import tarfile
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from selfsup.data.fetch import list_shards
from selfsup.data.formats.image import files as decode
from selfsup.data.source import Source
from selfsup.data.sources.webdataset import tar_shards
from selfsup.errors import UserError
from tests.data.make import contents, file, noise, shards

Members = list[tuple[str, bytes]]


def tar(members: Members) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return out.getvalue()


def image(number: int) -> bytes:
    return decode.png(noise(5, 6, seed=number))


def samples(start: int, stop: int) -> Members:
    return [
        member
        for number in range(start, stop)
        for member in ((f"{number:04d}.png", image(number)), (f"{number:04d}.cls", str(number % 3).encode()))
    ]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Three shards of ten samples."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for number in range(3):
        (folder / f"s-{number:03d}.tar").write_bytes(tar(samples(10 * number, 10 * number + 10)))
    return folder


def check(source: Source, split: str = "train", count: int = 30) -> None:
    """All samples are there, in order."""
    listing = source.splits[split]
    assert source.classes == ["0", "1", "2"]
    assert listing.labels.tolist() == [number % 3 for number in range(count)]
    assert [source.read(ref) for ref in listing.refs] == [image(number) for number in range(count)]
    assert all(name.endswith(f"/{number:04d}.png") for number, name in enumerate(listing.names))


@pytest.mark.parametrize(
    "pattern", ["{}/s-{{000..002}}.tar", "{}/s-*.tar", "{}/s-00?.tar", "{}", "pipe:cat {}/s-{{000..002}}.tar"]
)
def test_local_patterns(folder, tmp_path, pattern):
    check(tar_shards(pattern.format(folder), tmp_path / "scratch"))


@pytest.mark.usefixtures("folder")
def test_relative_patterns_are_found_here_and_in_the_main_repository(tmp_path, monkeypatch):
    for here, root in ((tmp_path, ""), (tmp_path / "tars", str(tmp_path))):
        monkeypatch.chdir(here)
        monkeypatch.setenv("DVC_ROOT", root)
        for number, pattern in enumerate(("tars/s-{000..002}.tar", "tars/*.tar", "tars")):
            check(tar_shards(pattern, tmp_path / f"scratch{here.name}{number}"))


@pytest.mark.parametrize(
    ("suffix", "pack"), [("tar.gz", gzip.compress), ("tgz", gzip.compress), ("tar.xz", lzma.compress)]
)
def test_compressed_shards(folder, tmp_path, suffix, pack):
    for path in folder.glob("*.tar"):
        path.with_suffix(f".{suffix}").write_bytes(pack(path.read_bytes()))
        path.unlink()
    check(tar_shards(str(folder), tmp_path / "scratch"))


@pytest.fixture
def server(folder):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_http(server, tmp_path):
    check(tar_shards(f"{server}/s-{{000..002}}.tar", tmp_path / "scratch"))
    with pytest.raises(UserError, match=r"s-003\.tar: 404 File not found; fix data\.image\.path"):
        tar_shards(f"{server}/s-{{000..003}}.tar", tmp_path / "scratch2")


def test_shards_from_a_server_become_our_own(server, tmp_path):
    splits = shards(tmp_path / "shards", source="webdataset", path=f"{server}/s-{{000..002}}.tar")
    assert sum(split.samples for split in splits.values()) == 30
    for split in splits.values():
        for number, name in enumerate(split.names):
            assert split.read(number) == image(int(Path(name).stem))
            assert split.labels[number] == int(Path(name).stem) % 3
    assert not [name for name in contents(tmp_path / "shards") if "scratch" in name]


def test_fsspec(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    for path in folder.glob("*.tar"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    check(tar_shards("memory://bucket/s-{000..002}.tar", tmp_path / "scratch"))
    check(tar_shards("memory://bucket/*.tar", tmp_path / "scratch2"))
    with pytest.raises(UserError, match="no shards at memory://bucket/t-"):
        tar_shards("memory://bucket/t-{000..002}.tar", tmp_path / "scratch3")
    with pytest.raises(UserError, match=r"nothing://bucket/x\.tar cannot be listed"):
        tar_shards("nothing://bucket/x.tar", tmp_path / "scratch4")


def test_a_failing_command_is_named(tmp_path):
    with pytest.raises(UserError, match=r"pipe:cat nowhere\.tar: cannot be read"):
        tar_shards("pipe:cat nowhere.tar", tmp_path / "scratch")
    with pytest.raises(UserError, match=r"pipe:true: no tar"):
        tar_shards("pipe:true", tmp_path / "scratch2")


def test_splits(folder, tmp_path):
    (folder / "test-000.tar").write_bytes(tar(samples(0, 6)))
    for path in list(folder.glob("s-*.tar")):
        path.rename(folder / f"train-{path.name[2:]}")
    source = tar_shards(f"{folder}/{{split}}-*.tar", tmp_path / "scratch")
    assert source.splits.keys() == {"train", "test"}
    check(source)
    check(source, "test", 6)
    (folder / "validation-000.tar").write_bytes(tar(samples(0, 3)))
    source = tar_shards(f"{folder}/{{split}}-*.tar", tmp_path / "scratch2")
    assert len(source.splits["validation"].names) == 3
    both = tar_shards(f"pipe:cat {folder}/{{split}}-000.tar", tmp_path / "scratch3")
    assert {split: len(listing.names) for split, listing in both.splits.items()} == {"train": 10, "test": 6}


def test_a_shard_missing_from_a_range_is_named(folder):
    with pytest.raises(UserError, match=r"no shard .*s-003\.tar"):
        list_shards(f"{folder}/s-{{000..003}}.tar")
    with pytest.raises(UserError, match="unbalanced braces"):
        list_shards(f"{folder}/s-{{000..002.tar")


# what a sample may look like


def one(tmp_path: Path, members: Members, **options: bool) -> Source:
    (tmp_path / "x.tar").write_bytes(tar(members))
    return tar_shards(str(tmp_path / "x.tar"), tmp_path / f"scratch{len(list(tmp_path.iterdir()))}", **options)


def test_labels_in_json_as_words_and_none(tmp_path):
    jpeg = file(Image.fromarray(noise(5, 5)), "JPEG")
    source = one(
        tmp_path,
        [
            ("dir/a.JPG", jpeg), ("dir/a.json", json.dumps({"label": 7}).encode()),
            ("dir/b.c.jpg", jpeg), ("dir/b.json", b'{"caption": "no label"}'),
            ("d.cls", b"cat\n"), ("d.jpeg", jpeg),
            ("./e.webp", jpeg), ("./e.txt", b"words"),
            ("f.cls", b"-1"), ("f.jpg", jpeg),
            ("g.cls", b" 3 "), ("g.jpg", jpeg),
            ("h.jpg", jpeg), ("h.mask.png", b""), ("__index__", b"x"),
        ],
    )  # fmt: skip
    train = source.splits["train"]
    assert source.classes == ["3", "7", "cat"]
    assert train.labels.tolist() == [1, -1, 2, -1, -1, 0, -1]
    assert train.names[:3] == ["x.tar/dir/a.jpg", "x.tar/dir/b.c.jpg", "x.tar/d.jpeg"]
    assert all(source.read(ref) == jpeg for ref in train.refs)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.mp4", b"x"), ("a.txt", b"y")], r"x\.tar: sample 'a' has no image \(found \.mp4, \.txt\)"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.cls", b"1")], r"x\.tar: sample 'b' has no image \(found only labels\)"),
        (
            [("a.png", b"x"), ("a.jpg", b"x")],
            r"x\.tar: sample 'a' has more than one image, .*first dot \(found \.png, \.jpg\)",
        ),
        ([("a.png", b"x"), ("a.cls", b"\xff")], r"x\.tar: 'a\.cls' holds no label"),
        ([("a.png", b"x"), ("a.json", b"{")], r"x\.tar: 'a\.json' holds no label"),
        ([("a.png", b"x"), ("a.json", b'{"label": [1]}')], r"x\.tar: 'a\.json' holds no label"),
    ],
)
def test_other_schemas_are_named(tmp_path, members, message):
    with pytest.raises(UserError, match=message):
        one(tmp_path, members)


PICKLED = pickle.dumps("cat", 4), pickle.dumps(3, 0), b"c__builtin__\nprint\n(S'run'\ntR."
LABELLED = [  # members of one sample, its class
    ([("a.png", b"x"), ("a.label", b"cat")], "cat"),
    ([("a.png", b"x"), ("a.class", b"3")], "3"),
    ([("a.png", b"x"), ("a.cls.txt", b"3\n")], "3"),
    ([("a.png", b"x"), ("a.cls.json", b'"cat"')], "cat"),
    ([("a.png", b"x"), ("a.cls.pyd", PICKLED[0])], "cat"),
    ([("a.cls.pyd", PICKLED[1]), ("a.png", b"x")], "3"),
    ([("a.png", b"x"), ("a.json", b'{"class": "cat"}')], "cat"),
    ([("a.json", b'{"class": "cat", "label": 3}'), ("a.png", b"x")], "3"),
    ([("a.json", b'{"label": "cat"}'), ("a.png", b"x"), ("a.cls", b"3")], "3"),  # whatever comes first
    ([("a.v2.png", b"x"), ("a.v2.cls", b"3")], "3"),
    ([("a.v2.png", b"x"), ("a.v2.cls", b"3"), ("a.cls", b"4")], "3"),
    ([("a.v2.png", b"x"), ("a.cls", b"4")], "4"),
    ([("a.png", b"x"), ("a.png.cls", b"4")], "4"),
    ([("a 2.0 (b c).png", b"x"), ("a 2.0 (b c).cls", b"4")], "4"),
    ([("a.v2.png", b"x"), ("a.v2.json", b'{"label": 5}')], "5"),
]


@pytest.mark.parametrize(("members", "label"), LABELLED)
def test_every_place_of_a_label(tmp_path, members, label):
    source = one(tmp_path, members)
    assert source.classes == [label]
    assert source.splits["train"].labels.tolist() == [0]
    assert (source.notes, source.left_out) == ([], {})
    assert one(tmp_path, members, labelled=False).classes == []


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("a.png", b"x"), ("a.cls.pyd", PICKLED[2])], r"'a\.cls\.pyd' holds a pickle, which is not loaded, and no"),
        ([("a.png", b"x"), ("a.cls.pkl", pickle.dumps([1]))], "holds a pickle, which is not loaded"),
        ([("a.png", b"x"), ("a.cls.pyd", pickle.dumps(True))], "holds a pickle, which is not loaded"),
        ([("a.png", b"x"), ("a.cls.pyd", b"\x80")], "holds a pickle, which is not loaded"),
        ([("a.png", b"x"), ("a.json", b'{"class": [1]}')], r"'a\.json' holds no label"),
        ([("a.png", b"x"), ("a.cls", b"1"), ("a.label", b"2")], "sample 'a' has two labels, 1 and 2; remove one"),
        ([("a.png", b"x"), ("a.fine.cls", b"1"), ("a.coarse.cls", b"2")], r"has labels \(\.fine\.cls, \.coarse\.cls\)"),
    ],
)
def test_labels_that_cannot_be_told_are_named_and_can_be_ignored(tmp_path, capsys, members, message):
    with pytest.raises(UserError, match=message) as caught:
        one(tmp_path, members)
    assert "data.labels: none" in str(caught.value)
    assert one(tmp_path, members, labelled=False).splits["train"].labels.tolist() == [-1]
    assert "run" not in capsys.readouterr().out  # no pickle was executed


def test_members_of_a_sample_that_lie_apart(tmp_path):
    members = [("a.png", image(0)), ("b.png", image(1)), ("b.cls", b"dog"), ("a.cls", b"cat")]
    source = one(tmp_path, members)
    assert [source.classes[label] for label in source.splits["train"].labels] == ["cat", "dog"]
    assert [source.read(ref) for ref in source.splits["train"].refs] == [image(0), image(1)]


def test_what_a_shard_holds_beside_images_is_counted(tmp_path):
    members = [
        ("a.png", b"x"), ("a.mask.png", b"x"), ("a.txt", b"x"), ("a.cls", b"1"),
        ("b.png", b"x"), ("b.txt", b"x"),
        ("c.heic", b"x"), ("readme", b"x"),
    ]  # fmt: skip
    with pytest.raises(UserError, match=r"sample 'c' has no image \(found \.heic\).*data\.on_error: skip"):
        one(tmp_path, members)
    source = one(tmp_path, members, skip=True)
    assert source.splits["train"].labels.tolist() == [0, -1]
    assert source.left_out == {".txt": 2, ".heic": 1, ".mask.png": 1, "without extension": 1}
    assert source.notes[:2] == [
        "Samples without an image were left out: 1, the first 'x.tar/c'.",
        "1 of 2 samples have no label (.cls, .class, .label, or `label` or `class` in .json).",
    ]


# damage


def test_a_shard_cut_between_members_is_found(folder, tmp_path):
    path = folder / "s-001.tar"
    with tarfile.open(path) as archive:
        boundary = archive.getmembers()[14].offset
    os.truncate(path, boundary)
    with tarfile.open(path) as archive:  # the trap: no error
        assert len(archive.getmembers()) == 14
    with pytest.raises(UserError, match=r"s-001\.tar: .*no end mark after 14 files"):
        tar_shards(str(folder), tmp_path / "scratch")


@pytest.mark.parametrize("size", [0, 300, 600, 5_000])
def test_a_shard_cut_anywhere_is_found(folder, tmp_path, size):
    os.truncate(folder / "s-002.tar", size)
    with pytest.raises(UserError, match=r"s-002\.tar: no tar, or cut short or damaged"):
        tar_shards(str(folder), tmp_path / "scratch")


def test_a_damaged_header_does_not_end_the_shard_in_silence(folder, tmp_path):
    path = folder / "s-000.tar"
    with tarfile.open(path) as archive:
        offset = archive.getmembers()[6].offset
    content = bytearray(path.read_bytes())
    content[offset + 150] ^= 1
    path.write_bytes(content)
    with tarfile.open(path) as archive:  # the trap
        assert len(archive.getmembers()) == 6
    with pytest.raises(UserError, match=r"s-000\.tar: .*no end mark after 6 files"):
        tar_shards(str(folder), tmp_path / "scratch")


def test_a_cut_compressed_shard_is_found(folder, tmp_path):
    path = folder / "s-000.tar"
    path.write_bytes(gzip.compress(path.read_bytes())[:-40])
    with pytest.raises(UserError, match=r"s-000\.tar: cannot be read"):
        tar_shards(str(folder), tmp_path / "scratch")


def test_our_own_shards_are_a_source(tmp_path):
    first = shards(tmp_path / "first", limit=300)
    second = shards(tmp_path / "second", source="webdataset", path=f"{tmp_path}/first/{{split}}/*.tar")
    for name, split in first.items():
        assert np.array_equal(second[name].labels, split.labels)
        assert second[name].read(5) == split.read(5)
    assert second["train"].classes == first["train"].classes
    assert second["train"].facts == first["train"].facts
