"""Shards that exist already: tars in which the files of a sample share their name up to the first dot.

An image is told by its extension. Its label is a number or a name in `.cls`, `.class` or `.label` (as text, or with a
further `.txt`, `.json` or `.pyd`), else `label` or `class` in `.json`; that of an image `.v2.png` is in `.v2.cls`. A
pickle is never loaded: only a plain number or string is read from it. Local uncompressed tars are read where they are;
everything else is first copied into a scratch folder, each shard once.
"""

import errno
import json
import os
import pickletools
import re
import tarfile
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from selfsup.blocks.image import ImageData
from selfsup.data.download import shown
from selfsup.data.fetch import STREAMS, fetch, is_remote, list_shards
from selfsup.data.formats.image.files import extensions
from selfsup.data.source import SPLITS, Samples, Source, Watched, few, not_read, resolve
from selfsup.errors import UserError

Ref = tuple[str, int, int]  # file, offset, size
Label = int | str | None
_LABEL = 1 << 24  # bytes; what is longer is no label, with whatever else its json holds
_LABELS = re.compile(r"(?:(.+?)\.)??((?:cls|class|label)(?:\.(?:txt|json|pyd|pickle|pkl))?|json)")
_WHERE = ".cls, .class, .label, or `label` or `class` in .json"


@dataclass
class _Sample:
    """One sample of a shard."""

    key: str
    images: dict[str, Ref] = field(default_factory=dict)  # by extension
    labels: dict[str, int | str] = field(default_factory=dict)  # by what stands before `cls`: "" or, of `v2.cls`, "v2"
    described: dict[str, int | str] = field(default_factory=dict)  # the same of `json`
    others: list[str] = field(default_factory=list)  # extensions


def listing(data: ImageData, scratch: Path) -> Source:
    return tar_shards(data.path or "", scratch, data.labels == "folder", data.on_error == "skip")


def watched(data: ImageData) -> Watched:
    """Local shards; remote ones are not watched."""
    pattern = data.path or ""
    if is_remote(pattern):
        return Watched(None, why_not="remote shards; `dvc repro --force --single-item shard` fetches them again")
    patterns = dict.fromkeys(pattern.replace("{split}", split) for split in SPLITS)
    found = [shard for part in patterns for shard in list_shards(part)]
    return Watched(Path() if found else resolve(pattern), pattern, found)


def tar_shards(pattern: str, scratch: Path, labelled: bool = True, skip: bool = False) -> Source:
    """The samples of local or remote shards.

    `pattern` is a path, a folder of tars, an http(s) URL, `pipe:` and a command, or any URL of fsspec such as s3://,
    with ranges {000..009} and, for paths and fsspec, * and ?. `{split}` in it stands for train, test and validation,
    the last two where they are (train and test for http and pipes); without it, all is train. Labels are read when
    `labelled`. Raises `UserError`; for a sample without image unless `skip`.
    """
    scratch.mkdir(parents=True)
    urls = {"train": list_shards(pattern.replace("{split}", "train"))}
    if not urls["train"]:
        raise UserError(f"data.image.path: no shards at {pattern}; fix the path")
    if "{split}" in pattern:
        others = ("test",) if pattern.startswith(STREAMS) else SPLITS[1:]
        found = {split: list_shards(pattern.replace("{split}", split)) for split in others}
        urls |= {split: shards for split, shards in found.items() if shards}

    names: dict[str, list[str]] = {split: [] for split in urls}
    labels: dict[str, list[Label]] = {split: [] for split in urls}
    refs: dict[str, list[Ref]] = {split: [] for split in urls}
    tasks = [(split, number, url) for split, shards in urls.items() for number, url in enumerate(shards)]
    stop = threading.Event()
    with ThreadPoolExecutor(8) as pool:
        copies = [scratch / f"{split}-{number:06d}.tar" for split, number, _ in tasks]
        read = [
            pool.submit(_read_shard, url, copy, stop, labelled) for (_, _, url), copy in zip(tasks, copies, strict=True)
        ]
        try:
            for future in tqdm(as_completed(read), "read shards", len(tasks), unit=" shards"):
                future.result()
        finally:  # the first failure ends the other copies
            stop.set()
            pool.shutdown(cancel_futures=True)
    left_out, without = Counter[str](), []
    for (split, number, url), (samples, keyless) in zip(tasks, (future.result() for future in read), strict=True):
        prefix = f"{number:06d}" if url.startswith("pipe:") else Path(shown(url)).name
        left_out += keyless
        for sample in samples:
            if skip and not sample.images:
                without.append(f"{prefix}/{sample.key}")
                left_out.update(f".{extension}" for extension in sample.others)
                continue
            extension, ref = _image(sample, url)
            left_out.update(f".{other}" for other in [*sample.images, *sample.others] if other != extension)
            names[split].append(f"{prefix}/{sample.key}.{extension}")
            labels[split].append(_label_of(sample, extension, url))
            refs[split].append(ref)
    found_labels = [label for of_split in labels.values() for label in of_split]
    classes, numbers = _classes(found_labels)
    splits = {
        split: Samples(names[split], np.array([numbers[label] for label in labels[split]], np.int64), refs[split])
        for split in urls
    }
    said = [f"Samples without an image were left out: {len(without):,}, the first {without[0]!r}."] if without else []
    if labelled and (bare := found_labels.count(None)):
        said.append(f"{bare:,} of {len(found_labels):,} samples have no label ({_WHERE}).")
    return Source(classes, splits, read_ref, few(left_out), said + not_read(left_out, ImageData.noun))


def read_ref(ref: Ref) -> bytes:
    """Bytes of a file."""
    path, offset, size = ref
    with Path(path).open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise OSError(errno.EIO, f"{path} was cut short meanwhile")
    return data


def _read_shard(url: str, copy: Path, stop: threading.Event, labelled: bool) -> tuple[list[_Sample], Counter[str]]:
    """List a shard's samples, and files of no sample by extension.

    The shard is copied first unless it is a local uncompressed tar.
    """
    path = fetch(url, copy, stop)
    try:
        return _group(_members(path), path, url, labelled)
    except UserError:
        raise
    except Exception as error:  # damaged headers make tarfile raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{shown(url)}: no tar, or cut short or damaged ({reason}); fetch it again") from error


def _members(path: Path) -> list[tarfile.TarInfo]:
    """The files in a tar, all of them or an exception: Python stops in silence where a header is damaged."""
    members, end, names = [], 0, set()
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            if member.size < 0 or member.offset < end or member.offset_data < member.offset:
                raise tarfile.ReadError(f"member {member.name!r} has an impossible size")
            if not (member.isreg() or member.isdir()) or member.issparse():
                raise tarfile.ReadError(
                    f"member {member.name!r} is a link, a device or sparse, and only files are read"
                )
            end = member.offset_data
            if member.isreg():
                end += -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.name in names:
                    raise tarfile.ReadError(f"member {member.name!r} is there twice")
                names.add(member.name)
                members.append(member)
    with path.open("rb") as file:
        file.seek(end)
        mark = file.read(tarfile.BLOCKSIZE)
        if len(mark) < tarfile.BLOCKSIZE or mark.strip(b"\0"):
            raise tarfile.ReadError(f"no end mark after {len(members)} files")
        while rest := file.read(1 << 20):
            if rest.strip(b"\0"):
                raise tarfile.ReadError(f"more data follows the end mark after {len(members)} files")
    return members


def _group(members: list[tarfile.TarInfo], path: Path, url: str, labelled: bool) -> tuple[list[_Sample], Counter[str]]:
    """Files with one key are a sample, wherever they lie; and the files without a key, by extension."""
    samples: dict[str, _Sample] = {}
    known, keyless = extensions(), Counter[str]()
    with path.open("rb") as file:
        for member in members:
            match = re.fullmatch(r"((?:.*/)?[^./][^.]*?)\.([^/]+)", member.name.removeprefix("./"), re.DOTALL)
            if match is None or member.name.startswith("__"):
                keyless[PurePosixPath(member.name).suffix.lower() or "without extension"] += 1
                continue
            key, extension = match[1], match[2].lower()
            sample = samples.setdefault(key, _Sample(key))
            if f".{extension.rpartition('.')[2]}" in known:
                if extension in sample.images:
                    raise tarfile.ReadError(f"sample {key!r} has two images .{extension}")
                sample.images[extension] = str(path), member.offset_data, member.size
            elif place := _LABELS.fullmatch(extension):
                if labelled:
                    file.seek(member.offset_data)
                    _add_label(sample, place[1] or "", place[2], file.read(min(member.size, _LABEL + 1)), member, url)
            else:
                sample.others.append(extension)
    return list(samples.values()), keyless


def _add_label(sample: _Sample, prefix: str, kind: str, data: bytes, member: tarfile.TarInfo, url: str) -> None:
    """Read a member that holds a label, or in json may hold one. Raises `UserError`."""
    try:
        label = _label(data, kind)
    except (ValueError, RecursionError):
        pickled = kind.endswith(("pyd", "pickle", "pkl"))
        what = "a pickle, which is not loaded, and no plain number or string" if pickled else "no label"
        raise UserError(f"{shown(url)}: {member.name!r} holds {what}; fix it or set data.labels: none") from None
    labels = sample.described if kind == "json" else sample.labels
    if label is not None and labels.setdefault(prefix, label) != label:
        raise UserError(
            f"{shown(url)}: sample {sample.key!r} has two labels, {labels[prefix]!r} and {label!r}; remove one or set "
            "data.labels: none"
        )


def _label(data: bytes, kind: str) -> Label:
    """The label in a member of the kind `cls`, `cls.json`, `json` and so on, None for none; raises `ValueError`."""
    if len(data) > _LABEL:
        raise ValueError
    form = kind.rpartition(".")[2]
    if form in ("pyd", "pickle", "pkl"):
        return _checked(_unpickled(data))
    if form == "json":
        values = json.loads(data)
        if kind != "json":
            return _checked(values)
        found = [values[name] for name in ("label", "class") if name in values] if isinstance(values, dict) else []
        return _checked(found[0]) if found else None
    text = data.decode().strip()
    try:
        return int(text)
    except ValueError:
        return text or None


def _checked(label: Any) -> Label:
    if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
        raise ValueError
    return label


def _unpickled(data: bytes) -> Any:
    """The number or string that a pickle is, from its opcodes: none is executed. Raises `ValueError`."""
    values = []
    for opcode, argument, _ in pickletools.genops(data):
        if re.fullmatch("(BIN)?INT[12]?|LONG[14]?|(SHORT_)?(BIN)?UNICODE8?", opcode.name):
            values.append(argument)
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "PUT", "BINPUT", "STOP"):
            raise ValueError
    (value,) = values
    return value


def _label_of(sample: _Sample, extension: str, url: str) -> Label:
    """The label of the sample's image, `.cls` before `.json`: of `.v2.png`, in `.v2.cls`, `.v2.png.cls` or `.cls`."""
    prefixes = dict.fromkeys([extension.rpartition(".")[0], extension, ""])
    for labels in (sample.labels, sample.described):
        if found := [labels[prefix] for prefix in prefixes if prefix in labels]:
            return found[0]
    if sample.labels:
        names = ", ".join(f".{prefix}.cls" for prefix in sample.labels)
        raise UserError(
            f"{shown(url)}: sample {sample.key!r} has labels ({names}) of which none is that of its image "
            f".{extension}; rename one to .cls or set data.labels: none"
        )
    return None


def _image(sample: _Sample, url: str) -> tuple[str, Ref]:
    """The sample's one image and its extension: a plain extension before a compound one such as `mask.png`."""
    plain = {extension: ref for extension, ref in sample.images.items() if "." not in extension}
    images = list((plain or sample.images).items())
    if len(images) == 1:
        return images[0]
    seen = ", ".join(f".{extension}" for extension in [*sample.images, *sample.others])
    what = "more than one image, as its name ends at the first dot" if images else "no image"
    raise UserError(
        f"{shown(url)}: sample {sample.key!r} has {what} (found {seen or 'only labels'}); a sample needs one image "
        "member such as .jpg or .png, and may have .cls or .json; data.on_error: skip leaves samples without image out"
    )


def _classes(labels: list[Label]) -> tuple[list[str], dict[Label, int]]:
    """The classes' names in order, numbers before words, and each label's number; -1 for none or a negative one."""
    values = {label for label in labels if label is not None and not (isinstance(label, int) and label < 0)}
    ordered = sorted(values, key=lambda value: (0, value, "") if isinstance(value, int) else (1, 0, value))
    numbers: dict[Label, int] = dict.fromkeys(labels, -1)
    numbers.update({value: number for number, value in enumerate(ordered)})
    return [str(value) for value in ordered], numbers
