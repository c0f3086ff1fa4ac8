"""Experiment tracking: a stage is an MLflow run, kept by a writer process beside it (`tracking_writer.py`).

The writer is a process of its own because importing MLflow takes seconds of pure Python, which in a thread would hold
up the stage, and because its client blocks and prints. The stage only puts JSON lines into a pipe, without ever waiting
for room in it. A stage that is killed outright closes the pipe, so that its runs still end as KILLED.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import FrameType

    from selfsup.params import Tracking

_ANSWER = 4.0  # seconds that the stage waits for a server that says nothing, after which it goes on without
_WORK = 60.0  # seconds that the stage waits for the writer's own work: importing MLflow, creating the store, copying
_BACKLOG = 16_000_000  # bytes kept for a writer that does not read
_WRITER = Path(__file__).with_name("tracking_writer.py")
_ENVIRONMENT = {  # of the writer
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "3",
    "GIT_PYTHON_REFRESH": "quiet",
    "OMP_NUM_THREADS": "1",
}


def start(
    tracking: Tracking,
    stage: str,
    name: str,
    parent: Run | str | None = None,
    resume: str | None = None,
    values: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> Run:
    """Open a run; returns at once. To be called by one process of a stage only.

    `parent` is the run to nest it under, or its id. `resume` is the id of a run to go on with, if the store has it.
    `values` are parameters, nested dictionaries becoming `a.b.c`. Raises nothing when the store cannot be had.
    """
    if not tracking.enabled:
        return Run(None, 0)
    root = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    uri = tracking.uri or f"sqlite:///{root}/mlflow.db"
    if uri not in _channels:
        _channels[uri] = _Channel(uri)
    channel = _channels[uri]
    tags = {
        "stage": stage,
        "mlflow.source.name": sys.argv[0],
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        **(tags or {}),
    }
    channel.runs += 1
    opening = {
        "experiment": tracking.experiment,
        "name": name,
        "parent": parent if isinstance(parent, str | None) else parent.number,
        "resume": resume,
        "time": _now(),
        "values": flatten(values or {}),
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
    }
    channel.send({"run": channel.runs, "open": opening})
    return Run(channel, channel.runs)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested parameters as one level of text: `{"a": {"b": [1, None]}}` becomes `{"a.b": "[1, null]"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


class Run:
    """A run of a stage. As a context manager it ends as FINISHED, FAILED (exception) or KILLED (Ctrl-C, SIGTERM).

    No method raises or waits because of the store: a server that is down costs one line on stderr.
    """

    def __init__(self, channel: _Channel | None, number: int):
        """`number` counts the runs of a channel. No channel: tracking is off, and nothing is written."""
        self._channel = channel
        self.number = number
        self._ended = False

    @property
    def id(self) -> str | None:
        """The run's id, waiting until the run exists; None if tracking is off or the store does not answer."""
        if self._channel is None:
            return None
        channel = self._channel
        channel.wait(lambda: self.number in channel.ids or channel.state == "down")
        return channel.ids.get(self.number)

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """One point of each curve; values are numbers or tensors []. Infinities are recorded as NaN."""
        numbers = {key: float(value) for key, value in values.items()}
        self._send({"metrics": numbers, "step": int(step), "time": _now()})

    def artifact(self, path: Path | str, folder: str = "") -> None:
        """Keep a file or a folder, which must stay as it is until `finish`, in the run's `folder`."""
        self._send({"artifact": str(Path(path).resolve()), "folder": folder})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED once all is delivered, or given up. Further calls do nothing."""
        self._send({"finish": status, "time": _now()})
        self._ended = True
        if self._channel:
            channel = self._channel
            channel.wait(lambda: self.number in channel.ended)

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._channel and not self._ended:
            self._channel.send({"run": self.number, **message})

    def __enter__(self) -> Run:
        self._handler = None
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._handler = signal.signal(signal.SIGTERM, _terminated)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if kind is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            status = "FINISHED"
        elif isinstance(error, KeyboardInterrupt) or (
            isinstance(error, SystemExit) and isinstance(error.code, int) and error.code >= 128
        ):
            status = "KILLED"
        else:
            status = "FAILED"
        self.finish(status)
        if self._handler is not None:
            signal.signal(signal.SIGTERM, self._handler)


def _now() -> int:
    return round(time.time() * 1000)  # milliseconds, as MLflow counts


def _terminated(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


class _Channel:
    """The stage's end of the pipes to the writer of one store. The writer ends with the stage."""

    def __init__(self, uri: str):
        self.uri = uri
        self.runs = 0
        self.ids: dict[int, str] = {}
        self.ended: set[int] = set()
        self.state = "working"  # or asking, uploading, down: what the writer last said of itself
        self._unsent = self._unread = b""
        self._warned = False
        self._writer: subprocess.Popen[bytes] | None = None
        try:
            # A session of its own, so that Ctrl-C reaches the stage alone.
            self._writer = subprocess.Popen(
                [sys.executable, "-P", str(_WRITER)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | _ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            self._warn(f"cannot start its writer ({error}); the stage goes on without it")
            return
        self._pipes = self._writer.stdin.fileno(), self._writer.stdout.fileno()  # type: ignore[union-attr]
        os.set_blocking(self._pipes[0], False)
        self.send(uri)

    def send(self, message: Mapping[str, Any] | str) -> None:
        """Send what the pipe has room for, keep the rest, and hear what the writer has to say."""
        if self._writer and len(self._unsent) < _BACKLOG:
            self._unsent += json.dumps(message).encode() + b"\n"
            self._push()
        self.wait(lambda: True)

    def wait(self, ready: Callable[[], bool]) -> None:
        """Listen to the writer until `ready` or its end, and give it up when it says nothing for too long."""
        while self._writer:
            to, back = self._pipes
            limit = 0.0 if ready() else _ANSWER if self.state == "asking" else _WORK
            readable, writable, _ = select.select([back], [to] if self._unsent else [], [], limit)
            if readable:
                self._listen(os.read(back, 65536))
            elif ready():
                return
            elif writable:
                self._push()
            else:
                self._give_up(f"no answer from {self.uri}")

    def _push(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._pipes[0], self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._give_up("its writer stopped")

    def _listen(self, heard: bytes) -> None:
        if not heard:
            self._give_up("its writer stopped")
        *lines, self._unread = (self._unread + heard).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"state": state}:
                    self.state = state
                case {"run": number, "id": run}:
                    self.ids[number] = run
                case {"ended": number}:
                    self.ended.add(number)
                case {"warning": warning}:
                    self._warn(warning)

    def _give_up(self, reason: str) -> None:
        self._warn(f"{reason}; the stage goes on without it")
        writer, self._writer = self._writer, None
        if writer:
            writer.kill()
            for pipe in (writer.stdin, writer.stdout):
                pipe.close()  # type: ignore[union-attr]
            writer.wait()

    def _warn(self, what: str) -> None:
        """Print the one line that a store may cost, without the password that a URI may hold."""
        if not self._warned:
            print("tracking:", re.sub(r"//[^/@\s]+@", "//***@", what), file=sys.stderr)
        self._warned = True


_channels: dict[str, _Channel] = {}  # by the store's URI
