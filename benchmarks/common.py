"""What every benchmark shares: the conditions of a run, arms that take turns, medians with their spread, tables.

Importing it puts this checkout's `selfsup` first, so that what is measured is the code beside the benchmark.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LOAD = os.getloadavg()[0]  # before the benchmark itself adds to it

sys.path.insert(0, str(ROOT / "ssl"))


def arguments(doc: str | None, result: str) -> argparse.ArgumentParser:
    """A parser with `--out`, by default `result` under benchmarks/results, or None when its name has a <blank>."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = None if "<" in result else RESULTS / result
    parser.add_argument("--out", type=Path, default=default, help=f"default: benchmarks/results/{result}")
    return parser


def alternate(arms: Mapping[str, Callable[[], float]], rounds: int, title: str = "") -> dict[str, list[float]]:
    """What each arm gives in each round. The arms take turns: a machine that slows down slows all of them."""
    values: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            values[name].append(arm())
            print(f"{title} {name}: {values[name][-1]:.4g}", file=sys.stderr, flush=True)
    return values


def spread(values: Sequence[float], digits: int = 0) -> str:
    """`median (minimum to maximum)`."""
    numbers = (statistics.median(values), min(values), max(values))
    middle, low, high = (f"{number:,.{digits}f}" for number in numbers)
    return f"{middle} ({low} to {high})" if len(values) > 1 else middle


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """One arm over another, round by round."""
    return [a / b for a, b in zip(above, below, strict=True)]


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def conditions(*packages: str) -> str:
    """Under what the figures came about: command, machine, load, versions, commit; a Markdown list."""
    known = {name: _version(name) for name in packages}
    versions = ", ".join(f"{name} {number}" for name, number in known.items() if number)
    place, *words = sys.argv
    if "--out" in words:  # where it is written is no condition
        del words[words.index("--out") : words.index("--out") + 2]
    command = shlex.join(["python", f"benchmarks/{Path(place).name}", *words])
    return "\n".join(
        [
            f"- `{command}`, commit {_commit()}",
            f"- {processor()}, {cores()} cores, {device()}; load before the run {LOAD:.1f}",
            f"- Python {platform.python_version()}, {versions}",
        ]
    )


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:  # no git here
        return "unknown"
    return done.stdout.strip() or "unknown"


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def device() -> str:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else "no GPU used"


def write(path: Path, title: str, *parts: str) -> None:
    """Write and print a result: the title and its parts, a blank line between them."""
    text = "\n\n".join([f"# {title}", *parts]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)


def in_child(function: Callable, *values: Any) -> Any:
    """`function(*values)` in a fresh process, so that its peak memory is its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *values).result()


def peak_memory() -> float:
    """The most memory this process ever held, MB. `getrusage` would count what the parent held when it was started."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    held = next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)
    return (held or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) / 1e3
