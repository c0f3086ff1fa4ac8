"""Experiment tracking: a stage is an MLflow run, recorded by a writer process beside it (`writer.py`).

The writer is a separate process, because importing MLflow takes seconds of pure Python, which in a thread would slow
the stage, and because MLflow's client blocks and prints. The stage only writes JSON lines into a pipe, and never waits
for room in it. When a stage is killed by SIGKILL the pipe closes, and the writer ends the runs as KILLED.

A run has a key from the start, whether or not the store can be reached. What the store does not take is kept in
`.cache/tracking` and delivered by the next stage that reaches the store. At its end a stage waits for its store at most
60 s, at most 5 s if the store never answered, and at most 4 s if the stage was interrupted.
"""

from __future__ import annotations

import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from selfsup.processes.signals import stop_on_sigterm

if TYPE_CHECKING:
    from selfsup.params import Tracking

_log = logging.getLogger(__name__)
_REACHED, _UNREACHED, _KILLED = 60.0, 5.0, 4.0  # seconds that a stage waits for its store at its end, at most
_BACKLOG = 16_000_000  # bytes kept in memory while the writer does not read
_WRITER = Path(__file__).with_name("writer.py")
_ENVIRONMENT = {  # of the writer
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
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
    training: str | None = None,
) -> Run:
    """Open a run and return at once. Only one process of a stage may call this.

    `parent` is the run to nest it under, or the key of that run. `resume` is the key of the run to continue, if the
    store has it: a finished run only takes metrics, and only steps after its last one. `values` are parameters; nested
    dictionaries become `a.b.c`. `training` is the key of a run whose id becomes the tag `training`. Raises nothing when
    the store cannot be reached.
    """
    if not tracking.enabled:
        return Run(None, None)
    root = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    # A relative path, because MLflow misreads characters such as % or ? in the names of parent folders.
    uri = tracking.uri or f"sqlite:///{os.path.relpath(root / 'mlflow.db')}"
    if uri not in _channels or _channels[uri].over:
        _channels[uri] = _Channel(uri, root / ".cache" / "tracking")
    tags = {
        "stage": stage,
        "mlflow.source.name": sys.argv[0],
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        **(tags or {}),
    }
    run = Run(_channels[uri], resume or uuid.uuid4().hex)
    opening = {
        "key": run.key,
        "experiment": tracking.experiment,
        "name": name,
        "parent": parent.key if isinstance(parent, Run) else parent,
        "training": training,
        "time": _now(),
        "values": flatten(values or {}),
        "tags": {key: str(value) for key, value in tags.items() if value is not None},
    }
    run.send({"open": opening})
    return run


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Flatten nested parameters to one level of text: `{"a": {"b": [1, None]}}` becomes `{"a.b": "[1, null]"}`."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


class Run:
    """A run of a stage. As a context manager it ends as FINISHED, FAILED (exception) or KILLED (Ctrl-C, SIGTERM).

    No method raises or waits because of the store. If the server is down, one line on stderr says so.
    """

    def __init__(self, channel: _Channel | None, key: str | None):
        """Without a channel tracking is off, and nothing is written."""
        self._channel = channel
        self.key = key
        self._ended = False

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """Add one point to each curve. Values are numbers or tensors []. Infinities are recorded as NaN."""
        numbers = {key: float(value) for key, value in values.items()}
        self.send({"metrics": numbers, "step": int(step), "time": _now()})

    def artifact(self, path: Path | str, folder: str = "") -> None:
        """Upload a file or a folder into the run's `folder`. It must not change until `finish`."""
        self.send({"artifact": str(Path(path).resolve()), "folder": folder})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED. Further calls do nothing. The last run waits for the store."""
        self.send({"finish": status, "time": _now()})
        if self._channel and not self._ended:
            self._channel.finish(status)
        self._ended = True

    def send(self, message: Mapping[str, Any]) -> None:
        """Send a message to the writer; `Writer.take` lists the messages."""
        if self._channel and not self._ended:
            self._channel.send({"run": self.key, **message})

    def __enter__(self) -> Run:
        self._handler = None
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            self._handler = stop_on_sigterm()
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


def _interrupted() -> float:
    """Seconds to wait when interrupted: fewer if an alarm is about to end the process."""
    left = signal.getitimer(signal.ITIMER_REAL)[0]
    return min(_KILLED, max(0.0, left - 1)) if left else _KILLED


class _Channel:
    """The stage's end of the pipes to the writer of one store. The writer exits after the stage."""

    def __init__(self, uri: str, spool: Path):
        self.uri, self.spool = uri, spool
        self.over = False  # the writer no longer reads
        self._open: set[str] = set()  # keys of the runs that the writer has not finished
        self._running = 0
        self._reached = uri.startswith("sqlite:")
        self._unsent = self._unread = b""
        self._dropped = 0
        try:
            # A separate process group, so that Ctrl-C reaches the stage alone.
            self._writer = subprocess.Popen(
                [sys.executable, "-P", str(_WRITER)],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=os.environ | _ENVIRONMENT,
                process_group=0,
            )
        except OSError as error:
            self.over = True
            self._warn(f"the writer cannot be started ({error}); nothing is recorded")
            return
        self._pipes = self._writer.stdin.fileno(), self._writer.stdout.fileno()  # type: ignore[union-attr]
        os.set_blocking(self._pipes[0], False)
        self._put({"uri": uri, "spool": str(spool), "stage": os.getpid()})

    def send(self, message: Mapping[str, Any]) -> None:
        """Send as much as the pipe has room for, keep the rest, and read the writer's reports."""
        if "open" in message:
            self._open.add(message["run"])
            self._running += 1
        self._put(message)
        while not self.over and self._listen(0):
            pass

    def finish(self, status: str) -> None:
        """Count a run as ended. After the last one, wait a limited time until the writer has finished all runs."""
        self._running -= 1
        if self._running:
            return
        began = time.monotonic()
        while self._open and not self.over:
            limit = _interrupted() if status == "KILLED" else _REACHED if self._reached else _UNREACHED
            if (left := began + limit - time.monotonic()) > 0:
                self._listen(left)
            else:
                self._warn(
                    f"{self.uri} is slow; what it has not received is kept in {self.spool} and sent by the next stage"
                )
                self._close()
        if self._dropped:
            self._warn(f"{self._dropped} messages are lost because the writer of {self.uri} did not read them")

    def _put(self, message: Mapping[str, Any]) -> None:
        if self.over or len(self._unsent) > _BACKLOG:
            self._dropped += 1
        else:
            self._unsent += json.dumps(message).encode() + b"\n"
            self._push()

    def _push(self) -> None:
        try:
            self._unsent = self._unsent[os.write(self._pipes[0], self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._stopped()

    def _listen(self, seconds: float) -> bool:
        """Send and read what is possible. False if the writer reported nothing within `seconds`."""
        to, back = self._pipes
        readable, writable, _ = select.select([back], [to] if self._unsent else [], [], seconds)
        if readable:
            self._hear(os.read(back, 65536))
        elif writable:
            self._push()
        return bool(readable)

    def _hear(self, heard: bytes) -> None:
        *lines, self._unread = (self._unread + heard).split(b"\n")
        for line in lines:
            match json.loads(line):
                case {"reached": reached}:
                    self._reached = reached
                case {"ended": key}:
                    self._open.discard(key)
                case {"warning": warning}:
                    self._warn(warning)
        if not heard:
            self._stopped()

    def _stopped(self) -> None:
        self._warn(f"the writer of {self.uri} stopped; what it had not delivered is lost")
        self._close()

    def _close(self) -> None:
        """Close the pipes. The writer exits soon afterwards."""
        self.over = True
        for pipe in (self._writer.stdin, self._writer.stdout):
            pipe.close()  # type: ignore[union-attr]

    def _warn(self, what: str) -> None:
        """Log a warning, without the password that a URI may contain."""
        _log.warning("tracking: %s", re.sub(r"//[^/@\s]+@", "//***@", what))


_channels: dict[str, _Channel] = {}  # by the store's URI
