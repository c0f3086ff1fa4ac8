"""Freed memory is kept: the next step does not fetch its pages anew. And the most that was held is known."""

import os
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource, sys
import torch
from selfsup.processes.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for step in range(6):
    if step == 3:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [torch.ones(2_000_000) for _ in range(6)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc")
def test_no_page_is_fetched_anew():
    def faults(word: str, **settings: str) -> int:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")} | settings
        command = [sys.executable, "-c", SCRIPT, word]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    assert faults("keep") < 100
    # where something lies right above the heap, the C library cannot give anything back either
    assert any(faults("give back") > 100 for _ in range(5))
    settings = {"MALLOC_MMAP_THRESHOLD_": "100000", "MALLOC_TRIM_THRESHOLD_": "100000"}
    assert faults("keep", **settings) > 100  # the user's own settings go first


PEAK = """
import torch
from selfsup.processes.memory import peak_memory

before = peak_memory()
held = torch.ones(50_000_000)
del held
after = peak_memory()
assert set(after) == {"peak_memory_process"} | ({"peak_memory_gpu"} if torch.cuda.is_available() else set())
print(after["peak_memory_process"] - before["peak_memory_process"])
"""


def test_the_peak_counts_what_was_freed():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert 200_000_000 <= int(done.stdout) + 1_000_000 <= 220_000_000
