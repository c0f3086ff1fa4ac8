"""Run a command until it ends, or until the process that started it does, however that ends.

    python -I child.py LOG COMMAND...

The parent holds the other end of stdin. When that closes, the command and all processes that it started are sent
SIGINT, so that a training writes its checkpoint, and after `GRACE` seconds SIGKILL. DVC waits for its stage at a
SIGINT; at a SIGTERM it would leave it alone. The output goes to the file LOG.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

GRACE = 15  # seconds; a training takes at most 8 from the signal to its checkpoint
STOPPED = 130


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # requests come from the parent, through stdin
    place, *words = sys.argv[1:]
    wake, wakes = os.pipe()
    os.set_blocking(wakes, False)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with Path(place).open("ab") as log:
        child = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, preexec_fn=_usual
        )
    while child.poll() is None:
        ready, _, _ = select.select([sys.stdin.fileno(), wake], [], [], 60)
        if wake in ready:
            os.read(wake, 1024)
        if sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 1024):
            return stop(child)
    clear(child.pid)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _usual() -> None:
    """Ignored signals stay ignored in a new program: give the command the usual ones."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def stop(child: subprocess.Popen) -> int:
    """Ask all processes of the command to stop, and kill those that have not after `GRACE` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGINT)
    end = time.monotonic() + GRACE
    while child.poll() is None and time.monotonic() < end:
        time.sleep(0.05)
    clear(child.pid)
    child.wait()
    return STOPPED


def clear(group: int) -> None:
    """Kill what is left of a group of processes."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main())
