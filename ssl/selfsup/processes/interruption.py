"""A polite request to stop (SIGTERM, Ctrl-C), answered by all processes after the same step."""

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
GRACE = 8  # seconds in which a step and its checkpoint must end: after them the process does


class Interruption:
    """While entered, SIGTERM and SIGINT are noted instead of raised; `agreed` says whether any process has one.

    The processes exchange what they noted once a step, while the step runs; so a checkpoint is of a whole step, and
    nobody is left waiting. A process that does not reach the end of its step in `GRACE` seconds dies by SIGALRM; one
    that did ends then at the latest.
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
        """Begin to tell the others. Called once a step by every process."""
        if self._group is not None:
            self._flag.fill_(self.number)
            self._work = dist.all_reduce(self._flag, dist.ReduceOp.MAX, self._group, async_op=True)

    def agreed(self) -> int:
        """The signal that some process had at the last `exchange`, the same on all; 0: none."""
        if self._work is None:
            return self.number
        self._work.wait()
        return int(self._flag)

    def leave(self, number: int, step: int) -> None:
        """End the process after the checkpoint of `step`."""
        if rank() == 0:
            again = "run the same command again: it goes on from there"
            _log.warning(
                "\nstopped by %s after step %d, checkpoint written; %s", signal.Signals(number).name, step, again
            )
        if self._before:  # the alarm finds an ending that takes long, such as a tracker's: nothing is lost without it
            signal.signal(signal.SIGALRM, lambda *_: os._exit(128 + number))
        raise SystemExit(128 + number)
