"""How a process answers requests to stop (SIGTERM, Ctrl-C), outside of the training steps (`interruption.py`)."""

import contextlib
import ctypes
import signal
import time
from typing import Any, NoReturn


def stop_on_sigterm() -> Any:
    """Let SIGTERM end the process as Ctrl-C does, with its cleanup. Returns the handler that it replaces."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the cleanup
        raise SystemExit(128 + number)

    return signal.signal(signal.SIGTERM, stop)


def ignore_requests() -> None:
    """Ignore SIGTERM and Ctrl-C from here on."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def wait_to_be_stopped() -> NoReturn:
    """Leave the error message to rank 0: the launcher stops the other ranks when rank 0 has ended."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(60)
    raise SystemExit(1)


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
