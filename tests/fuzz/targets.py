"""What is fuzzed: each function makes one hostile input and reads it, and returns what came of it.

`read`: a result, whose counts and bytes were checked; `refused`: a `UserError` of one line. Anything else is a bug.
"""

import gzip
import hashlib
import io
import json
import shutil
import signal
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from ruamel.yaml import YAML

from selfsup import params
from selfsup.data.formats.image import files as decode
from selfsup.data.index import Index, load_index
from selfsup.data.loader import open_split
from selfsup.data.sources import webdataset as tar_source
from selfsup.errors import UserError
from selfsup.training.build import method_params
from tests.data.make import class_folders, contents, data, noise, shards

ROOT = Path(__file__).parents[2]
SPLITS = ("train", "validation", "test")
LONGEST = 20  # seconds an input may take


@contextmanager
def folder() -> Iterator[Path]:
    """An empty folder, gone at the end. Raises `TimeoutError` when what is done in it hangs."""

    def hung(*_):
        raise TimeoutError(f"more than {LONGEST} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(LONGEST)
    place = Path(tempfile.mkdtemp(prefix="fuzz"))
    try:
        yield place
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        shutil.rmtree(place)


def refused(error: UserError) -> str:
    assert len(str(error).splitlines()) == 1
    assert str(error).isprintable(), repr(str(error))
    return "refused"


_COPIES = st.sampled_from([b"\0" * 512, b"\xff" * 8, b"\x80" + b"\0" * 11, b"-1", b"9" * 11, b"../", b"\n", b"0"])


@st.composite
def damaged(draw: Any, content: bytes) -> bytes:
    """Bytes with some flipped, replaced, cut out, put in, doubled, or all cut off from a place on."""
    out = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(out)))
        stop = min(len(out), place + draw(st.sampled_from([1, 1, 8, 512, 1024])))
        match draw(st.sampled_from(["flip", "replace", "remove", "insert", "double", "cut", "blocks"])):
            case "flip" if place < len(out):
                out[place] ^= 1 << draw(st.integers(0, 7))
            case "replace":
                new = draw(st.binary(max_size=16) | _COPIES)
                out[place : place + len(new)] = new
            case "remove":
                del out[place:stop]
            case "insert":
                out[place:place] = draw(st.binary(max_size=600) | _COPIES)
            case "double":
                out[stop:stop] = out[place:stop]
            case "cut":
                del out[place:]
            case "blocks":  # whole blocks of a tar move, go or come twice
                block = 512 * draw(st.integers(0, len(out) // 512))
                out[block:block] = out[512 * draw(st.integers(0, len(out) // 512)) :][:1024]
    return bytes(out)


# shards of this project


@cache
def _shards() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as place:
        root = class_folders(Path(place, "images"), {"a": 12, "b": 13})
        shards(Path(place, "shards"), source="image_folder", path=str(root), samples_per_shard=7)
        return contents(Path(place, "shards"))


@cache
def _originals() -> dict[str, list[bytes]]:
    with tempfile.TemporaryDirectory() as place:
        _write(Path(place), _shards())
        splits = [open_split(place, name, data(image_size=8, cache="none")) for name in SPLITS]
        return {split.name: [split.read(number) for number in range(len(split))] for split in splits}


def _write(place: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_bytes(content)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../x.tar", "/etc/passwd", "train/000000.tar", -1, 0, 2**63, 10**30, "\ud800"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)


def _edit(draw: Any, values: Any) -> None:
    """Change one value somewhere in a tree of dictionaries and lists."""
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if isinstance(values[key], dict | list) and values[key] and draw(st.integers(0, 5)):
            values = values[key]
            continue
        match draw(st.sampled_from(["set", "remove", "double"])):
            case "set":
                values[key] = draw(_JSON)
            case "remove":
                del values[key]
            case "double" if isinstance(values, list):
                values.append(values[key])
            case "double":
                values[draw(st.text(max_size=4))] = values[key]
        return


_TABLE = st.sampled_from(["offset", "size", "label", "name"])


def _other_table(draw: Any, content: bytes) -> bytes:
    """A table in which one array is another."""
    with np.load(io.BytesIO(content)) as table:
        arrays = dict(table)
    name, old = draw(_TABLE), None
    old = arrays[name]
    match draw(st.sampled_from(["values", "dtype", "shape", "object", "gone"])):
        case "values" if old.dtype.kind == "i":
            place = draw(st.integers(0, len(old) - 1))
            old[place] = draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-2, 10_000))
        case "dtype" if old.dtype.kind == "i":
            arrays[name] = old.astype(draw(st.sampled_from([np.int32, np.uint64, np.float64, bool, "U5"])))
        case "shape":
            shape = draw(st.sampled_from([(), (0,), (1,), (len(old), 1), (len(old) + 1,)]))
            arrays[name] = np.resize(old, shape)
        case "object":
            arrays[name] = old.astype(object)
        case _:
            del arrays[name]
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def shard_reader(draw: Any) -> str:
    """Shards of which a file is damaged, the index edited or a table another, the checksums made to fit or not."""
    files, fit, level = dict(_shards()), draw(st.booleans()), draw(st.sampled_from(["full", "size"]))
    name = draw(st.sampled_from(sorted(files)))
    if not draw(st.integers(0, 5)):
        pass  # whole shards are not refused
    elif name == "index.json" and draw(st.booleans()):
        values = json.loads(files[name])
        for _ in range(draw(st.integers(1, 2))):
            _edit(draw, values)
        files[name] = json.dumps(values).encode()
    elif name.endswith(".npz") and draw(st.booleans()):
        files[name] = _other_table(draw, files[name])
    else:
        files[name] = draw(damaged(files[name]))
    with folder() as place:
        _write(place, files)
        if fit:
            _fit(place, files, name)
        try:
            index = load_index(place)
            for split in SPLITS:
                _check_split(place, index, split, data(image_size=8, cache="none", verify=level))
        except UserError as error:
            assert files != _shards(), "nothing was damaged"
            return refused(error)
    return "read"


def _fit(place: Path, files: dict[str, bytes], name: str) -> None:
    """As somebody would who made the damage on purpose: sizes and checksums of the index are right again."""
    try:
        values = json.loads((place / "index.json").read_bytes())
        for shard in [shard for split in values["splits"].values() for shard in split]:
            for entry in (shard, shard["table"]):
                if entry["file"] == name:
                    digest = hashlib.sha256(files[name]).hexdigest()
                    entry.update(bytes=len(files[name]), sha256=digest)
        index = Index.model_validate(values)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return
    values["checksum"] = index.digest()
    (place / "index.json").write_text(json.dumps(values))


def _check_split(place: Path, index: Index, name: str, values: Any) -> None:
    split = open_split(place, name, values)
    assert len(split) == index.samples(name) == len(split.labels) > 0
    assert ((split.labels >= -1) & (split.labels < max(len(split.classes), 1))).all()
    assert len(split.names) == len(split)
    batch = split.gather(np.arange(len(split)))
    assert batch["image"].shape == (len(split), 3, split.data.stored, split.data.stored)
    same_index = json.loads(_shards()["index.json"])["checksum"] == split.checksum
    if same_index and values.verify == "full":
        assert [split.read(number) for number in range(len(split))] == _originals()[name]


# tars of others

_NAMES = st.sampled_from(
    ["0", "1", "2", "3", "d/4", "../5", "/6", "a\nb", "é", "\udcff", ".hidden", "__7", "x" * 120, "<b>", "$(id)", ""]
)
_EXTENSIONS = st.sampled_from([".png", ".cls", ".png", ".json", ".txt", ".mask.png", ".PNG", ""])
_PAX = st.dictionaries(
    st.sampled_from(["size", "path", "mtime", "uid", "GNU.sparse.major", "GNU.sparse.map", "GNU.sparse.size", "é"]),
    st.sampled_from(["-1", "0", "99999999999999999999", "1e9", "nan", "x" * 300, "../../x.png", "1", "0,1,2", ""]),
    max_size=2,
)
_PNG = decode.png(noise(5, 6))


@st.composite
def _tars(draw: Any) -> bytes:
    out = io.BytesIO()
    format = draw(st.sampled_from([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
    with tarfile.open(fileobj=out, mode="w", format=format, errors="surrogateescape") as archive:
        names = draw(st.lists(_NAMES, max_size=6, unique=draw(st.booleans())))
        for name in names:
            for extension in draw(st.sampled_from([[".png"], [".png", ".cls"]]) | st.lists(_EXTENSIONS, max_size=3)):
                member = tarfile.TarInfo(name + extension)
                content = b"3" if extension == ".cls" else b"{}" if extension == ".json" else _PNG
                member.size = len(content)
                if not draw(st.integers(0, 9)):
                    member.type = draw(st.sampled_from([*b"01234567LKSxgVZ"])).to_bytes(1, "big")
                    member.linkname = draw(st.sampled_from(["0.png", "/etc/passwd", "../x"]))
                if format == tarfile.PAX_FORMAT and not draw(st.integers(0, 4)):
                    member.pax_headers = draw(_PAX)
                try:
                    archive.addfile(member, io.BytesIO(content))
                except ValueError:  # a name too long for the format
                    continue
    return out.getvalue()


def tar_reader(draw: Any) -> str:
    """A tar of odd members, damaged or not, packed or not, as `data.image.path` of somebody else's shards."""
    content = draw(_tars())
    if draw(st.integers(0, 3)):
        content = draw(damaged(content))
    packed = not draw(st.integers(0, 7))
    if packed:
        content = gzip.compress(content)
        content = draw(damaged(content)) if draw(st.booleans()) else content
    with folder() as place:
        (place / "x.tar").write_bytes(content)
        try:
            source = tar_source.tar_shards(str(place / "x.tar"), place / "scratch")
        except UserError as error:
            return refused(error)
        samples = source.splits["train"]
        assert len(samples.names) == len(samples.labels) == len(samples.refs)
        assert len(set(samples.refs)) == len(samples.refs)
        assert ((samples.labels >= -1) & (samples.labels < max(len(source.classes), 1))).all()
        for path, _, size in samples.refs:
            assert Path(path).is_relative_to(place)
            assert size >= 0
        assert [len(source.read(ref)) for ref in samples.refs] == [size for _, _, size in samples.refs]
        expected = None if packed else plain_images(content)
        if expected is not None:
            assert [(offset, size) for _, offset, size in samples.refs] == expected
        assert {path.name for path in place.iterdir()} <= {"x.tar", "scratch"}
    return "read"


def plain_images(content: bytes) -> list[tuple[int, int]] | None:
    """Offset and size of the images, read header by header without `tarfile`; None where the tar is not plain."""
    found, place = [], 0
    while any(header := content[place : place + 512]):
        name, size = header[:100].rstrip(b"\0"), header[124:136].rstrip(b"\0 ")
        if header[156:157] not in (b"0", b"\0") or header[345:500].strip(b"\0") or not size.isdigit():
            return None
        if b"\0" in name or b"mask" in name or not name.isascii():
            return None
        if name.lower().endswith(b".png") and not Path(name.decode()).name.startswith(".") and name[:2] != b"__":
            found.append((place + 512, int(size, 8)))
        place += 512 + -(-int(size, 8) // 512) * 512
    return found


# params.yaml

TEXT = (ROOT / "params.yaml").read_text()
_NASTY = st.sampled_from(
    [
        "!!python/object/apply:os.system [ls]", "!!binary x", "!x y", "&a ", "*a", "<<: *a", "<<: {x: 1}", "{", "[",
        "}", "? ", "- ", ": ", "\t", "\n", "# ", "|", ">", "'", '"', '"\\ud800"', '"\\0"', "%YAML 1.1\n---\n",
        "\n---\n", "\n...\n", "2001-99-99", "2001-01-01", "9" * 5000, "0x" + "f" * 9000, "1e400", ".nan", "-.inf",
        "null", "~", "yes", "[" * 300, "- " * 300, "&a [*a]", "\x85", "\u2028", "\u202e", "\ufeff", "<script>", "$(id)",
        "0o8",
        "&a [x,x,x,x,x,x,x,x,x]", "[*a,*a,*a,*a,*a,*a,*a,*a,*a]", "1_000", "1:2:3", "=", "{a: {b: {c: {}}}}",
    ]
)  # fmt: skip
_YAML = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.integers(), inner, max_size=3),
    max_leaves=6,
)


def params_loader(draw: Any) -> str:
    """`params.yaml` with a value replaced, or its text or its bytes damaged."""
    match draw(st.sampled_from(["value", "text", "text", "bytes", "noise"])):
        case "value":
            values = YAML(typ="safe", pure=True).load(TEXT)
            for _ in range(draw(st.integers(1, 2))):
                _edit_yaml(draw, values)
            out = io.StringIO()
            YAML(typ="safe", pure=True).dump(values, out)
            content = out.getvalue().encode(errors="replace")
        case "text":
            text = TEXT
            for _ in range(draw(st.integers(1, 4))):
                place = draw(st.integers(0, len(text)))
                text = text[:place] + draw(_NASTY) + text[place + draw(st.sampled_from([0, 0, 1, 10])) :]
            content = text.encode()
        case "bytes":
            content = draw(damaged(TEXT.encode()))
        case _:
            content = draw(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode()))
    with folder() as place:
        (place / "params.yaml").write_bytes(content)
        try:
            found = params.load(place / "params.yaml")
            for name in found.methods:
                method_params(found, name)
        except UserError as error:
            return refused(error)
    assert params.Params.model_validate(found.model_dump()) == found
    return "read"


def _edit_yaml(draw: Any, values: Any) -> None:
    while True:
        keys = list(values) if isinstance(values, dict) else list(range(len(values)))
        if not keys:
            return
        key = draw(st.sampled_from(keys))
        if isinstance(values[key], dict | list) and values[key] and draw(st.integers(0, 5)):
            values = values[key]
            continue
        if draw(st.integers(0, 2)):
            values[key] = draw(_YAML)
        else:
            del values[key]
        return


TARGETS = {target.__name__: target for target in (shard_reader, tar_reader, params_loader)}
