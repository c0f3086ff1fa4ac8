"""Download a file from an http(s) server that may refuse, drop the connection, stall, or end the file early.

Connecting may take 10 s, and a pause 30 s. Less than 1 KiB/s over a minute is also a failure. After a temporary failure
the download waits 1, 2, 4, 8 seconds, or as long as the server asks for, at most a minute. Then it resumes where it was
if the server supports ranges and still has the same file, else it starts again. It gives up after five failures with
less than 1 MiB between them.

The loop is not urllib3's `Retry`: that repeats a request until the headers arrive, but it cannot resume a body, and no
event can interrupt its wait. `Retry` only reads how long the server asks to wait.
"""

import re
import threading
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from selfsup.errors import UserError

CONNECT, PAUSE = 10.0, 30.0  # seconds
SLOWEST, MINUTE = 1024, 60.0  # bytes per second, and the seconds over which they are counted
TRIES, WAIT, LONGEST_WAIT = 5, 1.0, 60.0  # consecutive failures; seconds
PROGRESS = 1 << 20  # bytes after which earlier failures no longer count
_PART = 1 << 16  # bytes read at a time
_TEMPORARY = {408, 425, 429, *range(500, 600)}  # status codes


class Stopped(Exception):
    """Another download has failed, and this one is no longer needed."""


class _Again(Exception):
    """A temporary failure."""

    def __init__(self, reason: str, wait: float = 0.0):
        super().__init__(reason)
        self.wait = wait  # seconds that the server asks for


class _Copy:
    """The server's facts about the file."""

    total: int | None = None  # bytes; None: unknown
    validator: str | None = None  # its ETag or modification time, which tells whether the file has changed


def download(url: str, path: Path, stop: threading.Event) -> None:
    """Copy `url` to `path`. Raises `UserError` with the URL and the last answer, `OSError`, and `Stopped`."""
    import requests  # late: only remote shards need it
    import urllib3

    copy, failures, mark = _Copy(), 0, 0
    with requests.Session() as session, path.open("wb") as file:
        while True:
            try:
                _resume(session, url, file, copy, stop)
                return
            except (requests.exceptions.InvalidURL, requests.exceptions.TooManyRedirects) as error:
                raise UserError(f"{shown(url)}: {_reason(error)}; fix data.image.path") from None
            except (requests.RequestException, urllib3.exceptions.HTTPError, _Again) as error:
                have, reason, asked = file.tell(), _reason(error), getattr(error, "wait", 0.0)
            if have >= mark + PROGRESS:
                failures = 0
            mark, failures = have, failures + 1
            if failures == TRIES:
                whole = "?" if copy.total is None else f"{copy.total:,}"
                raise UserError(
                    f"{shown(url)}: {reason}; gave up after {TRIES} failures in a row with {have:,} of {whole} bytes; "
                    "check the server and the network, then run the same command again"
                )
            if stop.wait(max(asked, WAIT * 2 ** (failures - 1))):
                raise Stopped


def _resume(session: Any, url: str, file: IO[bytes], copy: _Copy, stop: threading.Event) -> None:
    """Append what is missing at the file's end. Raises `_Again`, `UserError`, `Stopped` or an exception of requests."""
    headers = {"Accept-Encoding": "identity"}  # so that lengths are those of the file, not of a compressed form
    if file.tell() and (copy.validator or copy.total):  # otherwise a changed file would go unnoticed
        headers |= {"Range": f"bytes={file.tell()}-"} | ({"If-Range": copy.validator} if copy.validator else {})
    with session.get(url, headers=headers, stream=True, timeout=(CONNECT, PAUSE)) as answer:
        _prepare(answer, url, file, copy)
        start, window = time.monotonic(), file.tell()
        while part := answer.raw.read1(_PART, decode_content=False):  # what has arrived, so that a failure loses little
            file.write(part)
            if stop.is_set():
                raise Stopped
            if (now := time.monotonic()) - start > MINUTE:
                if file.tell() - window < SLOWEST * MINUTE:
                    raise _Again(f"slower than {SLOWEST} bytes/s")
                start, window = now, file.tell()
    if copy.total is not None and file.tell() < copy.total:
        raise _Again("the file ended early")


def _prepare(answer: Any, url: str, file: IO[bytes], copy: _Copy) -> None:
    """Put the file's end where the body of the answer belongs. Raises `_Again` or `UserError` if there is none."""
    status, reason, headers = answer.status_code, answer.reason, answer.headers
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
    elif status in _TEMPORARY:
        raise _Again(f"{status} {reason}", min(_asked(answer), LONGEST_WAIT))
    elif status != 416:
        raise UserError(f"{shown(url)}: {status} {reason}; fix data.image.path or access")
    _restart(file)
    raise _Again(f"{status} {reason}: the file changed during the download")


def _asked(answer: Any) -> float:
    """Seconds that the server asks to wait for, given as a number or a date in `Retry-After`. 0: it does not ask."""
    from urllib3 import Retry
    from urllib3.exceptions import InvalidHeader

    try:
        return Retry().get_retry_after(answer.raw) or 0.0
    except InvalidHeader:
        return 0.0


def _restart(file: IO[bytes]) -> None:
    file.seek(0)
    file.truncate()


def _reason(error: BaseException) -> str:
    """The innermost reason in one line: requests wraps errors of urllib3, which wraps those of the system."""
    while inner := next((each for each in (error.__cause__, *error.args) if isinstance(each, BaseException)), None):
        error = inner
    reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"^<?\S+ object at 0x\w+>?: |^\w+\([^)]*\): ", "", reason).split())


def shown(url: str) -> str:
    """A URL without its user, password and query, which may be secret. Paths and commands are returned unchanged."""
    if "://" not in url or url.startswith("pipe:"):
        return url
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], query="", fragment="").geturl()
