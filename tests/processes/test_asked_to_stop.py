"""The end of a process that was asked to stop: in time, and with the status that says so."""

import signal
import subprocess
import sys

import pytest

ASKED = """
import signal, sys, time
from datetime import timedelta
from selfsup.processes import interruption

interruption.GRACE = 1
with interruption.Interruption(timedelta(seconds=9)) as asked:
    signal.raise_signal(signal.{name})
    signal.raise_signal(signal.SIGTERM)  # and again, by someone impatient
    try:
        if {whole}:
            asked.leave(asked.agreed(), 7)
        time.sleep(60)
    finally:
        time.sleep(60)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
@pytest.mark.parametrize("whole", [True, False])
def test_the_end_comes_in_time_and_its_status_says_whether_the_checkpoint_was_written(name, whole):
    """An ending that takes long is cut short; a step that takes long is no stop after a checkpoint."""
    command = [sys.executable, "-c", ASKED.format(name=name, whole=whole)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.returncode == (128 + signal.Signals[name] if whole else -signal.SIGALRM)
    assert (f"stopped by {name} after step 7, checkpoint written" in done.stderr) == whole
