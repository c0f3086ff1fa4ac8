"""Shards that already exist: the paths and URLs that match a pattern, and a local copy of each."""

import bz2
import gzip
import lzma
import re
import threading
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import IO, Any

from selfsup.data.download import Stopped, download, shown
from selfsup.data.source import resolve
from selfsup.errors import UserError

STREAMS = ("pipe:", "http:", "https:")  # these cannot be listed
MOST = 200  # times its compressed size: what decompresses to more is not a tar of images
ALWAYS = 1 << 26  # bytes that a compressed shard may decompress to, however small it is
_URL = re.compile(r"(\w+::)*[a-z][a-z0-9+.-]*://")  # opened by fsspec
_PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZ": bz2.open, b"\xfd7": lzma.open}


def is_remote(pattern: str) -> bool:
    """Whether the shards of a pattern are not local files."""
    return pattern.startswith(STREAMS) or bool(_URL.match(pattern))


def list_shards(pattern: str) -> list[str]:
    """The paths or URLs that match a pattern; empty if nothing matches. Raises `UserError` if only a part does."""
    from braceexpand import braceexpand

    try:
        parts = list(braceexpand(pattern))
    except ValueError:
        raise UserError(f"data.image.path: unbalanced braces in {pattern}; write ranges as {{000..009}}") from None
    found = {part: _expand(part) for part in parts}
    missing = [part for part in parts if not found[part]]
    if missing and len(missing) < len(parts):
        raise UserError(f"data.image.path: no shard {missing[0]}; fix the range in {pattern}")
    return [url for part in parts for url in found[part]]


def _expand(part: str) -> list[str]:
    if part.startswith(STREAMS):
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
            raise UserError(
                f"data.image.path: {part} cannot be listed ({_reason(error)}); fix the URL or access"
            ) from None
    path = resolve(part)
    if path.is_dir():
        return sorted(str(tar) for tar in path.iterdir() if re.search(r"\.(tar(\.\w+)?|tgz)$", tar.name))
    if path.exists():
        return [str(path)]
    candidates = (Path(part).expanduser(), path) if wild else ()
    found = [sorted(Path(c.anchor).glob(str(c.relative_to(c.anchor)))) for c in candidates]
    return [str(tar) for tar in next(filter(None, found), [])]


def fetch(url: str, copy: Path, stop: threading.Event) -> Path:
    """A local, uncompressed file with the content of `url`: the file itself, or a copy at `copy` or beside it.

    Raises `UserError`, and `Stopped` if `stop` is set meanwhile.
    """
    try:
        path = Path(url)
        if url.startswith(("http:", "https:")):
            path = copy
            download(url, path, stop)
        elif url.startswith("pipe:") or _URL.match(url):
            path = copy
            with closing(_open(url)) as stream, path.open("wb") as file:
                count = _pour(stream, file, stop)
                expected = getattr(stream, "size", None)
            if isinstance(expected, int) and count != expected:
                raise EOFError(f"{count} bytes instead of {expected}")
        with path.open("rb") as file:
            opener = _PACKED.get(file.read(2))
        if opener is None:
            return path
        unpacked = copy.with_suffix(".unpacked")
        with opener(path) as packed, unpacked.open("wb") as file:
            _pour(packed, file, stop, max(ALWAYS, MOST * path.stat().st_size))
        return unpacked
    except (OSError, ValueError, EOFError, ImportError, zlib.error, lzma.LZMAError) as error:
        raise UserError(
            f"{shown(url)}: cannot be read ({_reason(error)}); fix data.image.path or access, or free some disk space"
        ) from None


def _pour(stream: IO[bytes], file: IO[bytes], stop: threading.Event, most: int | None = None) -> int:
    """Copy everything and return the number of bytes. Raises `ValueError` if they are more than `most`."""
    count = 0
    while part := stream.read(1 << 20):
        count += len(part)
        if most is not None and count > most:
            raise ValueError(f"it decompresses to more than {MOST} times its size, a decompression bomb?")
        if stop.is_set():
            raise Stopped
        file.write(part)
    return count


def _open(url: str) -> IO[bytes]:
    if url.startswith("pipe:"):
        from webdataset.gopen import gopen

        return gopen(url)
    import fsspec

    return fsspec.open(url, "rb").open()


def _reason(error: BaseException) -> str:
    if exit_code := re.search(r"exit (\d+)", str(error)):
        return f"the command ended with exit code {exit_code[1]}"
    return " ".join(str(error).split()) or type(error).__name__
