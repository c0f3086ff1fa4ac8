"""Copy a file from an http(s) server that may refuse, drop the connection, stall, or end the file early.

A connection may take 10 s to be made and a pause 30 s; less than 1 KiB/s over a minute counts as a pause too long.
After a failure that may pass, the copy waits 1, 2, 4, 8 seconds (or what the server asks for, at most a minute) and
goes on where it was if the server offers ranges and still has the same file, else from the start. It gives up after
five failures with less than a MiB between them.
"""

import re
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from selfsup.errors import UserError

CONNECT, PAUSE = 10.0, 30.0  # seconds
SLOWEST, MINUTE = 1024, 60.0  # bytes/s over so many seconds
TRIES, WAIT, LONGEST_WAIT = 5, 1.0, 60.0  # failures in a row, seconds
PROGRESS = 1 << 20  # bytes after which the failures before are forgotten
_PART = 1 << 16  # bytes read at a time
_MAY_PASS = {408, 425, 429, *range(500, 600)}  # answers


class Stopped(Exception):
    """Another copy has failed, and this one is not needed any more."""


class _Again(Exception):
    """A failure that may pass."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait  # seconds, as the server asked


class _Copy:
    """What is known of the file: how much of it should be there, and what tells that it is still the same."""

    total: int | None = None  # bytes, None: the server does not say
    validator: str | None = None


def download(url: str, path: Path, stop: threading.Event) -> None:
    """Copy `url` to `path`, whole or not at all. Raises `UserError` with the URL and the last answer, and `OSError`."""
    import requests  # late: only remote shards need it
    import urllib3

    copy, failures, mark = _Copy(), 0, 0
    with requests.Session() as session, path.open("wb") as file:
        while True:
            try:
                _go_on(session, url, file, copy, stop)
                return
            except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
                raise UserError(f"{shown(url)}: {_words(error)}; fix data.path") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError, _Again) as error:
                have, reason, asked = file.tell(), _words(error), getattr(error, "wait", 0.0)
            if have >= mark + PROGRESS:
                failures = 0
            mark, failures = have, failures + 1
            if failures == TRIES:
                whole = "?" if copy.total is None else f"{copy.total:,}"
                raise UserError(
                    f"{shown(url)}: {reason}; gave up after {TRIES} tries in a row with {have:,} of {whole} bytes; "
                    "see to the server or the network, then run the same command again"
                )
            if stop.wait(max(asked, WAIT * 2 ** (failures - 1))):
                raise Stopped


def _go_on(session: Any, url: str, file: IO[bytes], copy: _Copy, stop: threading.Event) -> None:
    """Fetch what is missing from the file's end on. Raises `_Again`, `UserError` or an exception of requests."""
    headers = {"Accept-Encoding": "identity"}  # a length in bytes of the file itself
    if file.tell() and (copy.validator or copy.total):  # else nothing would tell that the file is another one now
        headers |= {"Range": f"bytes={file.tell()}-"} | ({"If-Range": copy.validator} if copy.validator else {})
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT, PAUSE)) as answer:
        _prepare(answer.status_code, answer.reason, answer.headers, url, file, copy)
        start, window = time.monotonic(), file.tell()
        while part := answer.raw.read1(_PART, decode_content=False):  # what is there, so that little is lost
            file.write(part)
            if stop.is_set():
                raise Stopped
            if (now := time.monotonic()) - start > MINUTE:
                if file.tell() - window < SLOWEST * MINUTE:
                    raise _Again(f"slower than {SLOWEST} bytes/s")
                start, window = now, file.tell()
    if copy.total is not None and file.tell() < copy.total:
        raise _Again("the file ended early")


def _prepare(status: int, reason: str, headers: Mapping[str, str], url: str, file: IO[bytes], copy: _Copy) -> None:
    """Put the file's end to where the answer's bytes belong, or raise."""
    if status == 206:
        place = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", "").strip())
        total = int(place[2]) if place and place[2] != "*" else None
        if place and int(place[1]) == file.tell() and (None in (total, copy.total) or total == copy.total):
            return
    elif status == 200:
        _restart(file)
        length = headers.get("Content-Length", "")
        copy.total = int(length) if length.isdecimal() else None
        etag = headers.get("ETag", "")
        copy.validator = etag if etag.startswith('"') else headers.get("Last-Modified")
        return
    elif status in _MAY_PASS:
        asked = headers.get("Retry-After", "")
        raise _Again(f"{status} {reason}", min(float(asked), LONGEST_WAIT) if asked.isdecimal() else 0.0)
    elif status != 416:
        raise UserError(f"{shown(url)}: {status} {reason}; fix data.path or access")
    _restart(file)
    raise _Again(f"{status} {reason}: the file changed while it was copied")


def _restart(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _words(error: BaseException) -> str:
    """The innermost reason: requests wraps urllib3, which wraps the system's."""
    while inner := next((each for each in (error.__cause__, *error.args) if isinstance(each, BaseException)), None):
        error = inner
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"^<?\S+ object at 0x\w+>?: |^\w+\([^)]*\): ", "", reason).split())


def shown(url: str) -> str:
    """A URL without what may be secret in it: user, password and query. Paths and commands as they are."""
    if "://" not in url or url.startswith("pipe:"):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
