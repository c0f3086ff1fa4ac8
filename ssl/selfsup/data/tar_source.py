"""Shards that exist already: tars in which the files of a sample share their name up to the first dot.

An image is told by its extension; its label is a number or a name in `.cls`, or `label` in `.json`. Local uncompressed
tars are read where they are; everything else is first copied into a scratch folder, each shard once.
"""

import bz2
import gzip
import json
import lzma
import os
import re
import shutil
import tarfile
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from selfsup.data import decode
from selfsup.data.sources import SPLITS, Samples, Source, resolve
from selfsup.errors import UserError

Ref = tuple[str, int, int]  # file, offset, size
Label = int | str | None

_STREAMS = ("pipe:", "http:", "https:")  # opened by webdataset; nothing can be listed there
_URL = re.compile(r"(\w+::)*[a-z][a-z0-9+.-]*://")  # opened by fsspec
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


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
        others = ("test",) if pattern.startswith(_STREAMS) else SPLITS[1:]
        found = {split: list_shards(pattern.replace("{split}", split)) for split in others}
        urls |= {split: shards for split, shards in found.items() if shards}

    names: dict[str, list[str]] = {split: [] for split in urls}
    labels: dict[str, list[Label]] = {split: [] for split in urls}
    refs: dict[str, list[Ref]] = {split: [] for split in urls}
    tasks = [(split, number, url) for split, shards in urls.items() for number, url in enumerate(shards)]
    with ThreadPoolExecutor(8) as pool:
        copies = [scratch / f"{split}-{number:06d}.tar" for split, number, _ in tasks]
        read = pool.map(_read_shard, [url for _, _, url in tasks], copies)
        for (split, number, url), samples in zip(
            tasks, tqdm(read, "read shards", len(tasks), unit=" shards"), strict=True
        ):
            prefix = f"{number:06d}" if url.startswith("pipe:") else Path(url).name
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
        return os.pread(file.fileno(), size, offset)


def list_shards(pattern: str) -> list[str]:
    """The paths or URLs that a pattern stands for; none when nothing is there. Raises `UserError` if only some are."""
    from braceexpand import braceexpand

    try:
        parts = list(braceexpand(pattern))
    except ValueError:
        raise UserError(f"data.path: unbalanced braces in {pattern}; write ranges as {{000..009}}") from None
    found = {part: _expand(part) for part in parts}
    missing = [part for part in parts if not found[part]]
    if missing and len(missing) < len(parts):
        raise UserError(f"data.path: no shard {missing[0]}; mend the range in {pattern}")
    return [url for part in parts for url in found[part]]


def _expand(part: str) -> list[str]:
    if part.startswith(_STREAMS):
        return [part]
    wild = bool(re.search(r"[*?\[]", part))
    if _URL.match(part):
        import fsspec

        try:
            files, path = fsspec.core.url_to_fs(part)
            if wild:
                return sorted(files.unstrip_protocol(name) for name in files.glob(path))
            return [part] if files.exists(path) else []
        except (OSError, ValueError, ImportError) as error:
            raise UserError(f"data.path: {part} cannot be listed ({_reason(error)}); mend the URL or access") from None
    path = resolve(part)
    if path.is_dir():
        return sorted(str(tar) for tar in path.iterdir() if re.search(r"\.(tar(\.\w+)?|tgz)$", tar.name))
    if path.exists():
        return [str(path)]
    candidates = (Path(part).expanduser(), path) if wild else ()
    found = [sorted(Path(c.anchor).glob(str(c.relative_to(c.anchor)))) for c in candidates]
    return [str(tar) for tar in next(filter(None, found), [])]


def _read_shard(url: str, copy: Path) -> list[_Sample]:
    """List a shard's samples, copying it first unless it is a local uncompressed tar."""
    path = _fetch(url, copy)
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if member.isfile()]
        with path.open("rb") as file:
            end = max((member.offset_data + -(-member.size // 512) * 512 for member in members), default=0)
            file.seek(end)
            if file.read(512).strip(b"\0") or file.tell() < end + 512:
                raise tarfile.ReadError(f"no end mark after {len(members)} files")  # Python stops there in silence
        return _group(members, path, url)
    except tarfile.TarError as error:
        raise UserError(f"{url}: no tar, or cut short or damaged ({error}); fetch it again") from None


def _fetch(url: str, copy: Path) -> Path:
    """A local, uncompressed file of what is at `url`."""
    local = not url.startswith(_STREAMS) and not _URL.match(url)
    try:
        if local:
            path = Path(url)
        else:
            path = copy
            with closing(_open(url)) as stream, copy.open("wb") as file:
                shutil.copyfileobj(stream, file, 1 << 20)
        with path.open("rb") as file:
            opener = _PACKED.get(file.read(2))
        if opener:
            with opener(path) as packed, copy.with_suffix(".unpacked").open("wb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
            return copy.with_suffix(".unpacked")
        return path
    except (OSError, ValueError, EOFError, ImportError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{url}: cannot be read ({_reason(error)}); mend data.path, access or free space") from None


def _open(url: str) -> IO[bytes]:
    if url.startswith(_STREAMS):
        from webdataset.gopen import gopen

        return gopen(url)
    import fsspec

    return fsspec.open(url, "rb").open()


def _reason(error: BaseException) -> str:
    if exit_code := re.search(r"exit (\d+)", str(error)):
        return f"the command ended with exit code {exit_code[1]}"
    return " ".join(str(error).split()) or type(error).__name__


def _group(members: list[tarfile.TarInfo], path: Path, url: str) -> list[_Sample]:
    """Neighbours with one key are a sample."""
    samples: list[_Sample] = []
    known = decode.extensions()
    with path.open("rb") as file:
        for member in members:
            match = re.fullmatch(r"((?:.*/)?[^./][^.]*?)\.([^/]+)", member.name.removeprefix("./"))
            if match is None or member.name.startswith("__"):
                continue
            key, extension = match[1], match[2].lower()
            if not samples or samples[-1].key != key:
                samples.append(_Sample(key))
            sample = samples[-1]
            if f".{extension.rpartition('.')[2]}" in known:
                sample.images[extension] = str(path), member.offset_data, member.size
            elif extension in ("cls", "json"):
                file.seek(member.offset_data)
                try:
                    label = _label(file.read(member.size), extension)
                except ValueError:
                    raise UserError(f"{url}: {member.name} holds no label; mend it or set data.labels: none") from None
                sample.label = label if sample.label is None else sample.label
            else:
                sample.others.append(extension)
    return samples


def _label(data: bytes, extension: str) -> Label:
    """The label in a `.cls` or `.json` member; raises `ValueError`."""
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
        f"{url}: sample {sample.key!r} has {what} (found {seen or 'only labels'}); a sample needs one image member "
        "such as .jpg or .png, and may have .cls or .json"
    )


def _classes(labels: list[Label]) -> tuple[list[str], dict[Label, int]]:
    """The classes' names in order, numbers before words, and each label's number; -1 for none or a negative one."""
    values = {label for label in labels if label is not None and not (isinstance(label, int) and label < 0)}
    ordered = sorted(values, key=lambda value: (0, value, "") if isinstance(value, int) else (1, 0, value))
    numbers: dict[Label, int] = dict.fromkeys(labels, -1)
    numbers.update({value: number for number, value in enumerate(ordered)})
    return [str(value) for value in ordered], numbers
