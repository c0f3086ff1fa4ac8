"""A digest of the files that `data` names and that lie outside the project, where DVC does not see a change."""

import hashlib
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from selfsup.blocks import GroupTable, ImageData
from selfsup.data.source import SPLITS, resolve
from selfsup.data.sources.image_folder import Walk, files_below
from selfsup.files import replaced


def watch(data: ImageData, path: Path = Path("data/watched.txt")) -> str:
    """Write the result of `watched` to `path` and return it."""
    text = watched(data)
    with replaced(path) as new:
        new.write_text(text, encoding="utf-8")
    return text


def watched(data: ImageData) -> str:
    """What `data/watched.txt` holds: one line each on the images and, where there is one, on the table of groups.

    Equal files give equal text. With `data.watch: listing` files are equal when their paths, sizes and modification
    times are; with `content` when their paths and bytes are.
    """
    if data.watch == "none":
        return "images: not watched, as data.watch says\n"
    root, names, why_not = _images(data)
    lines = [f"images: not watched, {why_not}" if root is None else f"images: {_digest(root, names, data.watch)}"]
    if isinstance(data.group, GroupTable):
        lines.append(f"table: {_digest(resolve(data.group.table), [''], 'content')}")
    return "\n".join(lines) + "\n"


def _images(data: ImageData) -> tuple[Path | None, Iterable[str], str]:
    """A folder and the files below it; or None and the reason why nothing is watched."""
    if data.source == "digits":
        return None, (), "digits are part of scikit-learn"
    if data.path is None:
        return None, (), "torchvision checks what it downloads"
    if data.source != "webdataset":
        root = resolve(data.path)
        return root, files_below(str(root), "", Walk()) if root.is_dir() else [""], ""
    from selfsup.data.fetch import is_remote, list_shards

    if is_remote(data.path):
        return None, (), "remote shards; `dvc repro --force --single-item shard` fetches them again"
    patterns = dict.fromkeys(data.path.replace("{split}", split) for split in SPLITS)
    return Path(), [shard for pattern in patterns for shard in list_shards(pattern)], ""


def _digest(root: Path, names: Iterable[str], watch: str) -> str:
    """Number of files, how they were looked at, and a digest of `names` below `root`, a file or a folder."""
    whole, count = hashlib.sha256(), 0
    for name in names:
        count += 1
        whole.update(os.fsencode(name) + b"\0" + _state(root / name, watch).encode() + b"\n")
    return f"{count} files by {watch}, {whole.hexdigest()}"


def _state(path: Path, watch: str) -> str:
    try:
        info = path.stat()
        if watch == "listing":
            return f"{info.st_size} {info.st_mtime_ns}"
        if not stat.S_ISREG(info.st_mode):  # a pipe without a writer would make us wait for ever
            return "no regular file"
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:  # sharding tells what is wrong with it
        return error.strerror or type(error).__name__
