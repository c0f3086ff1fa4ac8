"""A digest of the files that `data` names and that lie outside the project, where DVC does not see a change."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from selfsup.blocks import GroupTable, KindData
from selfsup.data import sources
from selfsup.data.source import resolve
from selfsup.files import replaced

NOT_THERE = "not there"


def watch(data: KindData, path: Path = Path("data/watched.txt"), shards: Path = Path("data/shards")) -> str:
    """Write what `watched` says to `path` and return it, with a sentence on the lines that were kept, if any.

    Shards may be pulled from a DVC remote to a machine without the files that they were made of. The recorded line on
    files that are not there is kept while there are shards, if it has a digest for the same source, path and
    `data.watch`.
    """
    text, note = watched(data), ""
    if (shards / "index.json").is_file() and path.is_file():
        recorded = path.read_text(encoding="utf-8", errors="replace").splitlines()
        lines = [_kept(line, recorded) for line in text.splitlines()]
        if kept := [line.rpartition(": ")[0] for line in lines if line not in text.splitlines()]:
            text = "\n".join(lines) + "\n"
            note = f"{NOT_THERE}, so the recorded digest is kept and {shards} is not written again: {'; '.join(kept)}\n"
    with replaced(path) as new:
        new.write_text(text, encoding="utf-8")
    return text + note


def _kept(line: str, recorded: list[str]) -> str:
    """The recorded line with a digest of what `line` says is not there; without such a line, `line`."""
    subject, _, state = line.rpartition(": ")
    digests = [old for old in recorded if re.fullmatch(re.escape(subject) + r": \d+ files, [0-9a-f]{64}", old)]
    return digests[0] if state == NOT_THERE and digests else line


def watched(data: KindData) -> str:
    """What `data/watched.txt` holds: one line each on the samples and, where there is one, on the table of groups.

    Equal files at the same `path` in params.yaml give equal text. With `data.watch: listing` files are equal when their
    paths, sizes and modification times are; with `content` when their paths and bytes are.
    """
    if data.watch == "none":
        return f"{data.noun}: not watched, as data.watch says\n"
    root, place, names, why_not = sources.find(data.source).watched(data)
    subject = f"{data.noun}: {data.source} {json.dumps(place)} by {data.watch}"
    lines = [
        f"{data.noun}: not watched, {why_not}" if root is None else f"{subject}: {_digest(root, names, data.watch)}"
    ]
    if isinstance(data.group, GroupTable):
        table = resolve(data.group.table)
        lines.append(f"table: {json.dumps(data.group.table)} by content: {_digest(table, [''], 'content')}")
    return "\n".join(lines) + "\n"


def _digest(root: Path, names: Iterable[str], watch: str) -> str:
    """Number of files and a digest of `names` below `root`, a file or a folder; or that nothing is there."""
    if not root.exists():
        return NOT_THERE
    whole, count = hashlib.sha256(), 0
    for name in names:
        count += 1
        whole.update(os.fsencode(name) + b"\0" + _state(root / name, watch).encode() + b"\n")
    return f"{count} files, {whole.hexdigest()}"


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
