"""Input made to do harm: it is refused in one line, or does none."""

import gzip
import hashlib
import io
import json
import lzma
import re
import shutil
import struct
import tarfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsup.data import fetch
from selfsup.data.formats.image import files as decode
from selfsup.data.index import verify
from selfsup.data.shards import write
from selfsup.data.sources.webdataset import read_ref, tar_shards
from selfsup.errors import UserError
from tests.data.make import class_folders, data, file, noise, shards
from tests.data.test_tar_source import image, samples, tar

# tars


def member(name: str, content: bytes = b"", **fields) -> bytes:
    """A member with any header."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def refused(tmp_path: Path, content: bytes, said: str, name: str = "x.tar") -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"{re.escape(name)}: .*{said}") as caught:
        tar_shards(str(tmp_path / name), tmp_path / f"scratch {name}")
    assert len(str(caught.value)) < 500


GOOD = tar(samples(0, 2)).rstrip(b"\0")
GOOD += bytes(-len(GOOD) % 512)


@pytest.mark.parametrize(
    "type", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
)
def test_what_is_no_file_is_refused(tmp_path, type):
    bad = member("0005.png", type=type, linkname="/etc/passwd", devmajor=1, devminor=5)
    refused(tmp_path, GOOD + bad + bytes(1024), "'0005.png' is a link, a device or sparse")


def test_a_folder_is_no_harm(tmp_path):
    (tmp_path / "x.tar").write_bytes(member("d", type=tarfile.DIRTYPE) + GOOD + member("e", type=b"5") + bytes(1024))
    assert len(tar_shards(str(tmp_path / "x.tar"), tmp_path / "scratch").splits["train"].names) == 2


@pytest.mark.parametrize("size", [1 << 33, 1 << 60, (1 << 70) - 1, -1, -512, -(1 << 40)])
@pytest.mark.parametrize("type", [b"0", b"L", b"x"])
def test_declared_sizes_that_cannot_be(tmp_path, size, type):
    bad = bytearray(member("0005.png", b"content", type=type))
    bad[124:136] = (b"\x80" if size >= 0 else b"\xff") + (size % (1 << 88)).to_bytes(11, "big")
    bad[148:156] = b"%06o\0 " % (sum(bad[:148]) + sum(bad[156:512]) + 8 * 32)
    refused(tmp_path, GOOD + bytes(bad) + bytes(1024), "no tar, or cut short or damaged")


@pytest.mark.parametrize("headers", [{"size": "-1024"}, {"size": "9" * 30}, {"size": "nan"}, {"size": "1" * 5000}])
def test_absurd_extended_headers(tmp_path, headers):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("0005.png")
        info.size, info.pax_headers = len(image(0)), headers
        archive.addfile(info, io.BytesIO(image(0)))
    refused(tmp_path, out.getvalue(), "no tar, or cut short or damaged")


def test_sparse_members_are_refused(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        info = tarfile.TarInfo("0005.png")
        info.size = 512
        info.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": str(1 << 40), "GNU.sparse.major": "0"}
        archive.addfile(info, io.BytesIO(bytes(512)))
    refused(tmp_path, out.getvalue(), "sparse")


def test_a_thousand_long_names_in_a_row(tmp_path):
    long = member("././@LongLink", b"x.png\0", type=tarfile.GNUTYPE_LONGNAME)
    refused(tmp_path, GOOD + 3000 * long + bytes(1024), "no tar, or cut short or damaged")


def test_names_that_point_elsewhere_write_nothing_there(tmp_path):
    names = [
        "../up",
        "/abs",
        "d/../../up2",
        "a\nb",
        "\x1b[31mred",
        "‮gnp",
        "<script>alert(1)</script>",
        "$(id)",
        "x" * 255,
    ]
    (tmp_path / "x.tar").write_bytes(tar([(f"{name}.png", image(i)) for i, name in enumerate(names)]))
    split = shards(tmp_path / "out" / "shards", source="webdataset", path=str(tmp_path / "x.tar"), test=0.2)
    found = {name for part in split.values() for name in part.names}
    assert found == {f"x.tar/{name}.png" for name in names}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "x.tar"]
    for path in (tmp_path / "out").rglob("*.tar"):
        with tarfile.open(path) as archive:
            assert all(re.fullmatch(r"\d{9}\.png", name) for name in archive.getnames())


@pytest.mark.parametrize("second", ["0000.png", "0000.PNG"])
def test_a_sample_that_is_there_twice(tmp_path, second):
    refused(tmp_path, tar([("0000.png", image(0)), (second, image(1))]), "twice|two images")
    other = [("0000.png", image(0)), ("0001.png", image(1)), ("0000.png", image(2))]
    refused(tmp_path, tar(other), "'0000.png' is there twice", "y.tar")


def test_joined_tars_are_refused(tmp_path):
    """`cat a.tar b.tar`: readers stop in silence at the first end mark."""
    refused(tmp_path, tar(samples(0, 2)) + tar(samples(2, 4)), "more data follows the end mark after 4 files")


@pytest.mark.parametrize("kind", ["json", "cls"])
def test_a_label_of_a_gigabyte_is_not_read(tmp_path, kind):
    with (tmp_path / "x.tar").open("wb") as out:
        out.write(tar([("0.png", image(0))]).rstrip(b"\0").ljust(1024, b"\0"))
        out.write(member(f"0.{kind}", size=1 << 30))
        out.truncate(out.tell() + (1 << 30) + 1024)  # holes: as text, a long name of a class
    with pytest.raises(UserError, match=rf"'0\.{kind}' holds no label"):
        tar_shards(str(tmp_path / "x.tar"), tmp_path / "scratch")


def test_a_member_that_leads_back_into_another_is_refused(tmp_path):
    """Its negative size goes to a header among an image's bytes, from where all looks whole again."""

    def back(size: int) -> bytes:
        return member("pax", b"14 size=%d\n" % size, type=tarfile.XHDTYPE) + member("0006.png")

    length = 512 + 512 + len(back(-1000))  # from the hidden header, a block behind it, to the end of the last member
    hidden = member("0009.png", bytes(length - 512))[:512]  # claims all that follows
    content = GOOD + member("0005.png", hidden + bytes(512)) + back(-length) + bytes(1024)
    refused(tmp_path, content, "has an impossible size")


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_a_packed_bomb_is_not_unpacked(tmp_path, monkeypatch, suffix, pack):
    monkeypatch.setattr(fetch, "ALWAYS", 1 << 20)
    refused(tmp_path, pack(tar([("0.png", bytes(1 << 24))])), "a decompression bomb?", f"x.tar.{suffix}")
    assert sum(path.stat().st_size for path in (tmp_path / f"scratch x.tar.{suffix}").iterdir()) < 1 << 23


# shards of this project, from somebody who can compute a checksum


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda v: v["splits"]["train"][0].update(file="../../etc/passwd"), "damaged or edited"),
        (lambda v: v["splits"]["train"][0].update(file="/etc/passwd"), "damaged or edited"),
        (lambda v: v["splits"]["train"][0]["table"].update(file="/dev/zero"), "damaged or edited"),
        (lambda v: v["splits"]["train"][0].update(samples=-1), "damaged or edited"),
        (lambda v: v["splits"]["train"][0].update(samples=10**9), "does not fit its table"),
        (lambda v: v["splits"]["train"].append(v["splits"]["train"][0]), "a shard in it twice"),
        (lambda v: v["splits"].pop("validation"), "not the three splits"),
        (lambda v: v["splits"].update(train=[]), "damaged or edited"),
        (lambda v: v["facts"].update(mean=[0.5]), "damaged or edited"),
        (lambda v: v.update(classes=v["classes"][:3]), "does not fit its table"),
    ],
)
def test_an_index_with_a_right_checksum_and_wrong_values(tmp_path, hundred, change, said):
    folder = shutil.copytree(hundred, tmp_path / "shards")
    values = json.loads((folder / "index.json").read_text())
    change(values)
    values.pop("checksum")
    values["checksum"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match=said):
        verify(folder, "size")


@pytest.mark.parametrize(
    ("column", "row", "value"),
    [("size", 0, 10**6), ("size", -1, 10**6), ("size", 3, 0), ("size", 3, -5), ("offset", 0, -512), ("offset", 5, 0)],
)
def test_a_table_with_a_right_checksum_and_places_that_cannot_be(tmp_path, hundred, column, row, value):
    folder = shutil.copytree(hundred, tmp_path / "shards")
    values = json.loads((folder / "index.json").read_text())
    entry = values["splits"]["train"][0]["table"]
    path = folder / entry["file"]
    with np.load(path) as file:
        table = dict(file)
    table[column][row] = value
    np.savez(path, **table)
    entry |= {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    values.pop("checksum")
    values["checksum"] = hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
    (folder / "index.json").write_text(json.dumps(values))
    for level in ("size", "full"):
        with pytest.raises(UserError, match="does not fit its table"):
            verify(folder, level)


def test_a_tar_that_is_cut_after_it_was_listed_is_an_error(tmp_path):
    path = tmp_path / "x.tar"
    path.write_bytes(bytes(1000))
    assert read_ref((str(path), 900, 100)) == bytes(100)
    with pytest.raises(OSError, match=r"x\.tar was cut short meanwhile"):
        read_ref((str(path), 901, 100))


# images


def png_header(width: int, height: int) -> bytes:
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


PIXEL = file(Image.new("RGB", (1, 1)), "PNG")[33:]  # what follows the header
PROGRAM = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/tmp/x) (w) file\nshowpage\n"
BAD_IMAGES = {
    "bomb.png": (png_header(50_000, 50_000) + PIXEL, r"more than 400,000,000 pixels, a decompression bomb\?"),
    "bomb.bmp": (
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
        "bomb",
    ),
    "zero.png": (png_header(0, 5) + PIXEL, "not an image"),
    "zero.gif": (b"GIF89a" + bytes(7) + b"," + bytes(9) + b"\x02\x00;", "not an image"),
    "program.png": (PROGRAM, "not an image"),
    "text.jpg": (b"#!/bin/sh\nrm -rf /\n", "not an image"),
    "empty.webp": (b"", "an empty file"),
    "cut.jpg": (file(Image.fromarray(noise(50, 50)), "JPEG")[:-200], "truncated"),
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_images_that_are_bombs_programs_or_nothing_are_refused_by_their_header(tmp_path, name):
    content, said = BAD_IMAGES[name]
    with pytest.raises(decode.Unreadable, match=said):
        decode.decode(content, 8)
    root = class_folders(tmp_path / "images", {"a": 9, "b": 9})
    (root / "a" / name).write_bytes(content)
    values = data(source="image_folder", path=str(root))
    with pytest.raises(UserError, match=rf"a/{re.escape(name)}: unreadable"):
        write(values, 0, tmp_path / "shards", processes=1)
    index = write(values.model_copy(update={"on_error": "skip"}), 0, tmp_path / "shards", processes=1)
    assert [entry.name for entry in index.skipped] == [f"a/{name}"]


def test_programs_are_no_images():
    assert not {".eps", ".ps", ".pdf", ".mpg", ".h5"} & decode.extensions()
