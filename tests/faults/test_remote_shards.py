"""A server of shards that refuses, drops, stalls, cuts or lies: every sample exactly once, or a clear failure."""

import email.utils
import http.server
import re
import socket
import threading
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from selfsup.data import download
from selfsup.data.sources.webdataset import tar_shards
from selfsup.errors import UserError
from tests.data.make import contents, shards
from tests.data.test_tar_source import check, samples, tar

SHARDS = [tar(samples(10 * number, 10 * number + 10)) for number in range(3)]
Handler = http.server.BaseHTTPRequestHandler
Fault = Callable[[Handler, bytes, int], None]  # the handler, the whole shard, where the asked range starts


def whole(handler: Handler, shard: bytes, start: int, end: int | None = None, length: int | None = None) -> None:
    """An honest answer, from `start` on where a range was asked for, cut off at byte `end` of the shard."""
    handler.send_response(206 if start else 200)
    handler.send_header("ETag", '"one"')
    handler.send_header("Content-Length", str(len(shard) - start if length is None else length))
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(shard) - 1}/{len(shard)}")
    handler.end_headers()
    handler.wfile.write(shard[start:end])


def cut(handler: Handler, shard: bytes, start: int) -> None:
    """End the file, and the connection, 3,000 bytes on."""
    whole(handler, shard, start, start + 3000)


def reset(handler: Handler, shard: bytes, start: int) -> None:
    """As a router does that forgets a connection."""
    whole(handler, shard, start, start + 3000)
    threading.Event().wait(0.3)  # what was sent is read, or the reset takes it along
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    handler.connection.close()


def no_answer(handler: Handler, *_) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def garbage(handler: Handler, *_) -> None:
    handler.wfile.write(b"\x16\x03\x01 no http\r\n\r\n")


def stall(handler: Handler, shard: bytes, start: int) -> None:
    """Half of the file, then silence until the client leaves."""
    whole(handler, shard, start, start + 3000)
    handler.connection.recv(1)


def drip(handler: Handler, shard: bytes, start: int) -> None:
    """A byte now and then, so that no pause is too long."""
    whole(handler, shard, start, start)
    left = threading.Event()
    for place in range(start, len(shard)):
        handler.wfile.write(shard[place : place + 1])
        left.wait(0.02)


def no_ranges(handler: Handler, shard: bytes, _start: int) -> None:
    whole(handler, shard, 0)


def changed(handler: Handler, shard: bytes, start: int) -> None:
    """Another file meanwhile: `If-Range` does not hold, so the answer is all of it."""
    assert not start or handler.headers["If-Range"] == '"one"'
    whole(handler, shard, 0)


def wrong_range(handler: Handler, shard: bytes, start: int) -> None:
    if not start:
        cut(handler, shard, start)
        return
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes 0-{len(shard) - 1}/{len(shard)}")
    handler.end_headers()
    handler.wfile.write(shard)


def chunked(handler: Handler, shard: bytes, _start: int, end: int | None = None) -> None:
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for place in range(0, len(shard[:end]), 1000):
        part = shard[:end][place : place + 1000]
        handler.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
    handler.wfile.write(b"" if end else b"0\r\n\r\n")


def cut_chunked(handler: Handler, shard: bytes, start: int) -> None:
    chunked(handler, shard, start, 5000)


def no_length(handler: Handler, shard: bytes, _start: int, end: int | None = None) -> None:
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(shard[:end])


def too_long(handler: Handler, shard: bytes, start: int) -> None:
    whole(handler, shard, start, length=len(shard) - start + 4000)


def too_short(handler: Handler, shard: bytes, start: int) -> None:
    whole(handler, shard, start, start + 4096, length=4096 - start)


def status(code: int, **headers: str) -> Fault:
    def answer(handler: Handler, *_) -> None:
        handler.send_response(code)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    answer.__name__ = f"status {code}"
    return answer


class Server:
    """Serves the shards; `faults[number]` are what happens to the first requests for a shard, one after another."""

    def __init__(self) -> None:
        self.faults: dict[int, list[Fault]] = defaultdict(list)
        self.always: Fault | None = None
        self.ranges: dict[int, list[int]] = defaultdict(list)  # where each request for a shard started

    def answer(self, handler: Handler) -> None:
        number = int(re.findall(r"\d+", urlsplit(handler.path).path)[0])
        start = int(re.findall(r"\d+", handler.headers.get("Range", "0"))[0])
        self.ranges[number].append(start)
        fault = self.faults[number].pop(0) if self.faults[number] else self.always or whole
        fault(handler, SHARDS[number], start)


@pytest.fixture
def server():
    script = Server()

    class Scripted(Handler):
        def do_GET(self):
            self.close_connection = True
            script.answer(self)

        def log_message(self, *_):
            pass

    class Quiet(http.server.ThreadingHTTPServer):
        def handle_error(self, *_):  # of a client that left
            pass

    with Quiet(("127.0.0.1", 0), Scripted) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        script.url = f"http://127.0.0.1:{running.server_port}/s-{{000..002}}.tar"
        yield script
        running.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """The same tries in little time, yet enough for a busy machine to answer in."""
    monkeypatch.setattr(download, "WAIT", 0.001)
    monkeypatch.setattr(download, "PAUSE", 1.0)
    monkeypatch.setattr(download, "MINUTE", 1.0)
    monkeypatch.setattr(download, "SLOWEST", 1 << 20)


RESUMED = [cut, reset, stall, drip]  # what leaves a part that the next request goes on from
FROM_THE_START = [no_answer, garbage, cut_chunked, status(500), status(503, Retry_After="0"), status(429), status(408)]


@pytest.mark.parametrize("fault", [*RESUMED, *FROM_THE_START], ids=lambda fault: fault.__name__)
def test_what_passes_is_retried_and_every_sample_is_there_once(server, tmp_path, fault):
    server.faults[1] = [fault, fault, fault]
    check(tar_shards(server.url, tmp_path / "scratch"))
    assert len(server.ranges[1]) == 4
    assert len(server.ranges[0]) == len(server.ranges[2]) == 1
    assert server.ranges[1] == sorted(server.ranges[1])
    assert (server.ranges[1][3] > 0) == (fault in RESUMED)


@pytest.mark.parametrize("again", [no_ranges, changed, wrong_range, status(416)], ids=lambda fault: fault.__name__)
def test_a_server_that_cannot_go_on_is_asked_for_the_whole(server, tmp_path, again):
    server.faults[1] = [cut, again]
    check(tar_shards(server.url, tmp_path / "scratch"))


@pytest.mark.parametrize("honest", [chunked, no_length, no_ranges], ids=lambda fault: fault.__name__)
def test_other_servers_are_read(server, tmp_path, honest):
    server.always = honest
    check(tar_shards(server.url, tmp_path / "scratch"))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (status(500), r"500 Internal Server Error; gave up after 5 failures in a row with 0 of \? bytes"),
        (status(503), "503 Service Unavailable; gave up after 5 failures in a row"),
        (no_answer, r"closed connection.*gave up"),
        (garbage, "gave up after 5 failures in a row"),
        (stall, r"timed out; gave up after 5 failures in a row with [\d,]+ of [\d,]+ bytes"),
        (too_long, r"; gave up after 5 failures in a row with [\d,]+ of [\d,]+ bytes"),
        (drip, "slower than 1048576 bytes/s; gave up"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_does_not_pass_names_the_url_and_the_answer(server, tmp_path, monkeypatch, fault, said):
    monkeypatch.setattr(download, "TRIES", 5)
    if fault is stall:
        server.always = lambda handler, shard, start: stall(handler, shard, start) if not start else no_more(handler)
    else:
        server.always = fault
    with pytest.raises(UserError, match=rf"http://127\.0\.0\.1:\d+/s-00\d\.tar: .*{said}") as caught:
        tar_shards(server.url, tmp_path / "scratch")
    assert "\n" not in str(caught.value)
    assert "object at 0x" not in str(caught.value)


def no_more(handler: Handler) -> None:
    handler.connection.recv(1)


@pytest.mark.parametrize("code", [401, 403, 404, 410, 304])
def test_an_answer_that_stays_is_not_asked_for_again(server, tmp_path, code):
    server.faults[1] = [status(code)]
    with pytest.raises(UserError, match=rf"/s-001\.tar: {code} .*; fix data\.image\.path or access"):
        tar_shards(server.url, tmp_path / "scratch")
    assert len(server.ranges[1]) == 1


@pytest.mark.parametrize("fault", [too_short, lambda h, s, start: no_length(h, s, start, 4096)], ids=["short", "none"])
def test_a_length_that_lies_does_not_pass_for_a_whole_shard(server, tmp_path, fault):
    server.always = fault  # at byte 4,096 one member ends and another begins
    with pytest.raises(UserError, match=r"/s-00\d\.tar: no tar, or cut short or damaged \(no end mark"):
        tar_shards(server.url, tmp_path / "scratch")


def test_an_error_page_is_no_shard(server, tmp_path):
    server.always = lambda handler, *_: no_length(handler, b"<html>please sign in</html>", 0)
    with pytest.raises(UserError, match=r"/s-00\d\.tar: no tar"):
        tar_shards(server.url, tmp_path / "scratch")


def test_nobody_there(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/s-000.tar"
    with pytest.raises(UserError, match=rf"{url}: .*[Cc]onnection refused.*; gave up after 5 failures in a row"):
        tar_shards(url, tmp_path / "scratch")


def test_waits_double_and_a_servers_wish_is_kept_within_a_minute(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds=None: waits.append(seconds))
    wishes = [status(503, Retry_After="7"), status(503, Retry_After="9999"), status(500), status(500)]
    server.faults[0] = wishes
    monkeypatch.setattr(download, "WAIT", 1.0)
    download.download(server.url.replace("{000..002}", "000"), tmp_path / "copy", threading.Event())
    assert (tmp_path / "copy").read_bytes() == SHARDS[0]
    assert [wait for wait in waits if wait is not None and wait >= 1] == [7, 60, 4, 8]


def test_a_server_may_give_the_time_of_the_next_try(server, tmp_path, monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds=None: waits.append(seconds))
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=40), usegmt=True)
    wishes = [status(503, Retry_After=text) for text in (soon, "Thu, 01 Jan 1970 00:00:00 GMT", "tomorrow")]
    server.faults[0] = wishes
    download.download(server.url.replace("{000..002}", "000"), tmp_path / "copy", threading.Event())
    until_then, *others = [wait for wait in waits if wait is not None]
    assert 20 < until_then <= 40 and max(others) < 1


def test_progress_forgives_earlier_failures(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "PROGRESS", 3000)
    server.always = cut  # seven requests a shard
    check(tar_shards(server.url, tmp_path / "scratch"))
    assert len(server.ranges[0]) > download.TRIES


def test_secrets_in_a_url_are_not_said(server, tmp_path):
    server.always = status(403)
    url = server.url.replace("http://", "http://me:word@").replace(".tar", ".tar?signature=key")
    with pytest.raises(UserError, match="403") as caught:
        tar_shards(url, tmp_path / "scratch")
    assert not re.search("word|key", str(caught.value))


def test_a_server_that_fails_leaves_the_shards_that_were_there(server, tmp_path):
    shards(tmp_path / "shards", source="webdataset", path=server.url)
    before = contents(tmp_path)
    server.faults[2] = [status(404)]
    with pytest.raises(UserError, match="404"):
        shards(tmp_path / "shards", source="webdataset", path=server.url)
    assert contents(tmp_path) == before
