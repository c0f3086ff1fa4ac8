"""Requests to stop (SIGTERM, Ctrl-C) during training: all processes stop after the same step."""

import logging
import os
import signal
import threading
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from selfsup.nn.distributed import rank, world

_log = logging.getLogger(__name__)
GRACE = 8  # seconds in which the step and its checkpoint must be finished; then the process is killed


class Interruption:
    """While entered, SIGTERM and SIGINT are recorded instead of raised. `agreed` tells whether any process has one.

    The processes exchange their signals once per step, while the step runs. So a checkpoint is of a whole step, and no
    process waits for one that has left. A process that has not finished its step `GRACE` seconds after the signal is
    killed by SIGALRM. A process that has finished it must also have exited by then.
    """

    def __init__(self, timeout: timedelta) -> None:
        self.number = 0
        self._group: Any = dist.new_group(backend="gloo", timeout=timeout) if world() > 1 else None
        self._flag = torch.zeros((), dtype=torch.int64)
        self._work: dist.Work | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.number:
            signal.alarm(GRACE)
        self.number = self.number or number

    def exchange(self) -> None:
        """Start sending this process's signal to the others. Every process calls this once per step."""
        if self._group is not None:
            self._flag.fill_(self.number)
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)

    def agreed(self) -> int:
        """The signal that some process had at the last `exchange`, the same on all processes. 0: none."""
        if self._work is None:
            return self.number
        self._work.wait()
        return int(self._flag)

    def leave(self, number: int, step: int) -> None:
        """Exit after the checkpoint of `step` has been written."""
        if rank() == 0:
            again = "run the same command again: it resumes from there"
            _log.warning(
                "\nstopped by %s after step %d, checkpoint written; %s", signal.Signals(number).name, step, again
            )
        if self._before:  # from here the alarm only cuts a slow shutdown short: the checkpoint is already written
            signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
        raise SystemExit(128 + number)
