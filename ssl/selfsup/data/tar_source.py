"""Shards that exist already: tars in which the files of a sample share their name up to the first dot.

An image is told by its extension; its label is a number or a name in `.cls`, or `label` in `.json`. Local uncompressed
tars are read where they are; everything else is first copied into a scratch folder, each shard once.
"""

import errno
import json
import os
import re
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from selfsup.data import decode
from selfsup.data.download import shown
from selfsup.data.fetch import STREAMS, fetch, list_shards
from selfsup.data.sources import SPLITS, Samples, Source
from selfsup.errors import UserError

Ref = tuple[str, int, int]  # file, offset, size
Label = int | str | None
_LABEL = 1 << 24  # bytes; what is longer is no label, with whatever else its json holds


@dataclass
class _Sample:
    """One sample of a shard."""

    key: str
    images: dict[str, Ref] = field(default_factory=dict)  # by extension
    label: Label = None
    others: list[str] = field(default_factory=list)  # extensions


def tar_shards(pattern: str, scratch: Path) -> Source:
    """The samples of local or remote shards.

    `pattern` is a path, a folder of tars, an http(s) URL, `pipe:` and a command, or any URL of fsspec such as s3://,
    with ranges {000..009} and, for paths and fsspec, * and ?. `{split}` in it stands for train, test and validation,
    the last two where they are (train and test for http and pipes); without it, all is train. Raises `UserError`.
    """
    scratch.mkdir(parents=True)
    urls = {"train": list_shards(pattern.replace("{split}", "train"))}
    if not urls["train"]:
        raise UserError(f"data.path: no shards at {pattern}; mend the path")
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
        read = [pool.submit(_read_shard, url, copy, stop) for (_, _, url), copy in zip(tasks, copies, strict=True)]
        try:
            for future in tqdm(as_completed(read), "read shards", len(tasks), unit=" shards"):
                future.result()
        finally:  # the first failure ends the other copies
            stop.set()
            pool.shutdown(cancel_futures=True)
    for (split, number, url), samples in zip(tasks, (future.result() for future in read), strict=True):
        prefix = f"{number:06d}" if url.startswith("pipe:") else Path(shown(url)).name
        for sample in samples:
            extension, ref = _image(sample, url)
            names[split].append(f"{prefix}/{sample.key}.{extension}")
            labels[split].append(sample.label)
            refs[split].append(ref)
    classes, numbers = _classes([label for found_labels in labels.values() for label in found_labels])
    splits = {
        split: Samples(names[split], np.array([numbers[label] for label in labels[split]], np.int64), refs[split])
        for split in urls
    }
    return Source(classes, splits, read_ref)


def read_ref(ref: Ref) -> bytes:
    """Bytes of a file."""
    path, offset, size = ref
    with Path(path).open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), size, offset)
    if len(data) < size:
        raise OSError(errno.EIO, f"{path} was cut short meanwhile")
    return data


def _read_shard(url: str, copy: Path, stop: threading.Event) -> list[_Sample]:
    """List a shard's samples, copying it first unless it is a local uncompressed tar."""
    path = fetch(url, copy, stop)
    try:
        return _group(_members(path), path, url)
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


def _group(members: list[tarfile.TarInfo], path: Path, url: str) -> list[_Sample]:
    """Neighbours with one key are a sample."""
    samples: list[_Sample] = []
    known = decode.extensions()
    with path.open("rb") as file:
        for member in members:
            match = re.fullmatch(r"((?:.*/)?[^./][^.]*?)\.([^/]+)", member.name.removeprefix("./"), re.DOTALL)
            if match is None or member.name.startswith("__"):
                continue
            key, extension = match[1], match[2].lower()
            if not samples or samples[-1].key != key:
                samples.append(_Sample(key))
            sample = samples[-1]
            if f".{extension.rpartition('.')[2]}" in known:
                if extension in sample.images:
                    raise tarfile.ReadError(f"sample {key!r} has two images .{extension}")
                sample.images[extension] = str(path), member.offset_data, member.size
            elif extension in ("cls", "json"):
                file.seek(member.offset_data)
                try:
                    label = _label(file.read(min(member.size, _LABEL + 1)), extension)
                except (ValueError, RecursionError):
                    raise UserError(
                        f"{shown(url)}: {member.name!r} holds no label; mend it or set data.labels: none"
                    ) from None
                sample.label = label if sample.label is None else sample.label
            else:
                sample.others.append(extension)
    return samples


def _label(data: bytes, extension: str) -> Label:
    """The label in a `.cls` or `.json` member; raises `ValueError`."""
    if len(data) > _LABEL:
        raise ValueError
    if extension == "json":
        values = json.loads(data)
        label = values.get("label") if isinstance(values, dict) else None
        if label is not None and (isinstance(label, bool) or not isinstance(label, int | str)):
            raise ValueError
        return label
    text = data.decode().strip()
    try:
        return int(text)
    except ValueError:
        return text or None


def _image(sample: _Sample, url: str) -> tuple[str, Ref]:
    """The sample's one image and its extension: a plain extension before a compound one such as `mask.png`."""
    plain = {extension: ref for extension, ref in sample.images.items() if "." not in extension}
    images = list((plain or sample.images).items())
    if len(images) == 1:
        return images[0]
    seen = ", ".join(f".{extension}" for extension in [*sample.images, *sample.others])
    what = "more than one image" if images else "no image"
    raise UserError(
        f"{shown(url)}: sample {sample.key!r} has {what} (found {seen or 'only labels'}); a sample needs one image "
        "member such as .jpg or .png, and may have .cls or .json"
    )


def _classes(labels: list[Label]) -> tuple[list[str], dict[Label, int]]:
    """The classes' names in order, numbers before words, and each label's number; -1 for none or a negative one."""
    values = {label for label in labels if label is not None and not (isinstance(label, int) and label < 0)}
    ordered = sorted(values, key=lambda value: (0, value, "") if isinstance(value, int) else (1, 0, value))
    numbers: dict[Label, int] = dict.fromkeys(labels, -1)
    numbers.update({value: number for number, value in enumerate(ordered)})
    return [str(value) for value in ordered], numbers
