"""The largest memory of this process so far, in bytes: the system's, and a GPU's."""

import resource
import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak_memory() -> dict[str, int]:
    """Return `peak_memory_process`, the largest resident memory, and with CUDA `peak_memory_gpu`, of torch's tensors.

    The first counts what the process holds in main memory: code, decoded samples, and on a CPU the network. The second
    counts what tensors held on the process's GPU at the same time, without torch's reserve.
    """
    found = {"peak_memory_process": _resident()}
    return found | ({"peak_memory_gpu": torch.cuda.max_memory_allocated()} if torch.cuda.is_available() else {})


def _resident() -> int:
    if STATUS.exists():  # getrusage would count the process that started this one, too
        (line,) = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:")]
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
