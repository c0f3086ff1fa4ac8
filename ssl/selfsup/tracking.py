"""Experiment tracking: a stage is an MLflow run, kept by a writer process beside it (`tracking_writer.py`).

The writer is a process of its own because importing MLflow takes seconds of pure Python, which in a thread would hold
up the stage, and because its client blocks and prints. The stage only puts JSON lines into a pipe, without ever waiting
for room in it. A stage that is killed outright closes the pipe, so that its run still ends as KILLED.
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

    from selfsup.params import Params, Tracking

_ANSWER = 4.0  # seconds that the stage waits for a server that says nothing, after which it goes on without
_WORK = 60.0  # seconds that the stage waits for the writer's own work: importing MLflow, creating the store, copying
_BACKLOG = 16_000_000  # bytes kept for a writer that does not read
PRETRAINED = Path("models/pretrained/run.json")  # {"run": id}
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
    parent: str | None = None,
    resume: Path | None = None,
    values: Mapping[str, Any] | None = None,
    tags: Mapping[str, Any] | None = None,
) -> Run:
    """Open a run; returns at once. To be called by one process of a stage only.

    `parent` is the id of the run to nest it under. `resume` is a file for the run's id: if there is one, and the store
    has that run, it goes on. `values` are parameters, nested dictionaries becoming `a.b.c`.
    """
    if not tracking.enabled:
        return Run(None)
    tags = {
        "stage": stage,
        "mlflow.source.name": sys.argv[0],
        "world_size": os.environ.get("WORLD_SIZE", "1"),
        "device": _device(),
        "mlflow.parentRunId": parent,
        "dvc.experiment": os.environ.get("DVC_EXP_NAME"),
        "dvc.baseline": os.environ.get("DVC_EXP_BASELINE_REV"),
        **(tags or {}),
    }
    root = Path(os.environ.get("DVC_ROOT") or ".").resolve()
    return Run(
        {
            "uri": tracking.uri or f"sqlite:///{root}/mlflow.db",
            "experiment": tracking.experiment,
            "name": name,
            "resume": str(resume.resolve()) if resume else None,
            "values": flatten(values or {}),
            "tags": {key: str(value) for key, value in tags.items() if value is not None},
        }
    )


def pipeline(params: Params, resume: Path, *, enabled: bool, checksum: str) -> Run:
    """The run of the chosen method's pretraining, which later stages nest theirs under. Its id is kept in `resume/run`.

    `enabled` is true in one process. `checksum` is the data set's.
    """
    values = params.model_dump(exclude={"methods", "evaluation", "tracking"})
    values["methods"] = {params.method: params.methods[params.method]}
    tags = {"data": checksum}
    return (
        start(params.tracking, "pretrain", params.method, None, resume / "run", values, tags) if enabled else Run(None)
    )


def nested(tracking: Tracking, stage: str, *, enabled: bool = True, values: Mapping[str, Any] | None = None) -> Run:
    """The run of a later stage, under the pretraining that models/pretrained/run.json names."""
    parent = json.loads(PRETRAINED.read_text())["run"] if PRETRAINED.exists() else None
    return start(tracking, stage, stage, parent, values=values) if enabled else Run(None)


def single(tracking: Tracking, stage: str, *, enabled: bool, values: Mapping[str, Any], checksum: str) -> Run:
    """A run on its own, such as a baseline's, which belongs to no method."""
    return start(tracking, stage, stage, values=values, tags={"data": checksum}) if enabled else Run(None)


def flat_numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The numbers of nested metrics on one level: `{"a": {"b": 1, "c": "x"}}` becomes `{"a.b": 1.0}`."""
    flat: dict[str, float] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flat_numbers(value, f"{prefix}{key}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[f"{prefix}{key}"] = float(value)
    return flat


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

    def __init__(self, opening: Mapping[str, Any] | None):
        """`opening` is what the writer needs to open the run; None: tracking is off and nothing is written."""
        self._id: str | None = None
        self._state = "working"  # or asking, uploading, down: what the writer last said of itself
        self._unsent = b""
        self._unread = b""
        self._uri = opening["uri"] if opening else ""
        self._warned = False
        self._writer: subprocess.Popen[bytes] | None = None
        if opening is None:
            return
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
        self._send(opening)

    @property
    def id(self) -> str | None:
        """The run's id, waiting until the run exists; None if tracking is off or the store does not answer."""
        self._wait(lambda: self._id is not None or self._state == "down")
        return self._id

    def metrics(self, values: Mapping[str, Any], step: int) -> None:
        """One point of each curve; values are numbers or tensors []. Infinities are recorded as NaN."""
        numbers = {key: float(value) for key, value in values.items()}
        self._send({"metrics": numbers, "step": int(step), "time": round(time.time() * 1000)})

    def artifact(self, path: Path | str, folder: str = "") -> None:
        """Keep a file or a folder, which must stay as it is until `finish`, in the run's `folder`."""
        self._send({"artifact": str(Path(path).resolve()), "folder": folder})

    def finish(self, status: str = "FINISHED") -> None:
        """End the run as FINISHED, FAILED or KILLED once all is delivered, or given up. Further calls do nothing."""
        self._send({"finish": status})
        self._wait(lambda: False)

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

    def _send(self, message: Mapping[str, Any]) -> None:
        if self._writer and len(self._unsent) < _BACKLOG:
            self._unsent += json.dumps(message).encode() + b"\n"
            self._push()
        self._wait(lambda: True)

    def _push(self) -> None:
        """Put into the pipe what it has room for."""
        try:
            self._unsent = self._unsent[os.write(self._pipes[0], self._unsent) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            self._close("its writer stopped")

    def _wait(self, ready: Callable[[], bool]) -> None:
        """Listen to the writer until `ready` or its end, and give it up when it says nothing for too long."""
        to, back = self._pipes if self._writer else (0, 0)
        while self._writer:
            limit = 0.0 if ready() else _ANSWER if self._state == "asking" else _WORK
            readable, writable, _ = select.select([back], [to] if self._unsent else [], [], limit)
            if readable:
                self._listen(os.read(back, 65536))
            elif ready():
                return
            elif writable:
                self._push()
            else:
                self._close(f"no answer from {self._uri}")

    def _listen(self, heard: bytes) -> None:
        if not heard:
            self._close(None if self._state in ("done", "down") else "its writer stopped")
            return
        *lines, self._unread = (self._unread + heard).split(b"\n")
        for line in lines:
            said = json.loads(line)
            self._id = said.get("id", self._id)
            self._state = said.get("state", self._state)
            if "warning" in said:
                self._warn(said["warning"])

    def _close(self, reason: str | None) -> None:
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        if reason:
            self._warn(f"{reason}; the stage goes on without it")
            writer.kill()
        for pipe in (writer.stdin, writer.stdout):
            pipe.close()  # type: ignore[union-attr]
        writer.wait()

    def _warn(self, what: str) -> None:
        """Print the one line that a run may print, without the password that a URI may hold."""
        if not self._warned:
            print("tracking:", re.sub(r"//[^/@\s]+@", "//***@", what), file=sys.stderr)
        self._warned = True


def _device() -> str:
    torch = sys.modules.get("torch")  # not imported for this alone
    return torch.cuda.get_device_name() if torch and torch.cuda.is_available() else "cpu"


def _terminated(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)
