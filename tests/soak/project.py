"""A tiny copy of the project whose stages take seconds, and what the long checks do with its processes and files."""

import hashlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from ruamel.yaml import YAML

from tests.evaluation import workspace
from tests.helpers import ROOT, SMALL, values

ENDED = 10.0  # seconds within which every process of a killed command must be gone
MARK = "SELFSUP_SOAK"  # in the environment of all processes of one command
TIMES = "metrics/times/"  # the only outs that may differ

TINY = SMALL | {
    "data__limit": 200,
    "data__image__image_size": 8,
    "data__samples_per_shard": 50,
    "data__cache": "auto",
    "pretrain__epochs": 4,
    "pretrain__checkpoint_every": 2,
    "pretrain__knn_every": 2,
    **workspace.quick(),
    "tracking__enabled": False,
}


@dataclass(frozen=True)
class Stage:
    """One stage of dvc.yaml, a matrix written out."""

    name: str
    command: tuple[str, ...]
    outs: tuple[str, ...]  # files and folders, metrics and plots included


def stages() -> list[Stage]:
    """All stages in the order of dvc.yaml, which is an order in which they can run."""
    found = []
    choices = {"backbone": ["conv", "vit"], "protocol": values()["evaluation"]["protocols"]}
    for name, stage in YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"].items():
        entries = [entry for kind in ("outs", "metrics", "plots") for entry in stage.get(kind, [])]
        outs = [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]
        key = next(iter(stage.get("matrix", {})), None)
        for choice in choices[key] if key else [""]:
            text = [re.sub(r"\$\{item\.\w+\}", choice, words) for words in (stage["cmd"], *outs)]
            command = (sys.executable, *shlex.split(text[0])[1:])
            found.append(Stage(f"{name} {choice}".strip(), command, tuple(text[1:])))
    return found


def make(folder: Path, **overrides: Any) -> Path:
    """A copy of the code with parameters of its own."""
    folder.mkdir(parents=True)
    for name in ("ssl", "stages"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info"))
    parameters(folder, **overrides)
    return folder


def parameters(folder: Path, **overrides: Any) -> None:
    """Write the folder's params.yaml: `TINY` and the overrides."""
    YAML().dump(values(**(TINY | overrides)), folder / "params.yaml")


def workplace(name: str, last_words: Callable[[], str] = str) -> Path:
    """A temporary folder that an interruption takes away, with all processes that were started."""
    place = Path(tempfile.mkdtemp(prefix=name))

    def stop(number: int, _: object) -> None:
        for process in bearing(""):
            process.kill()
        shutil.rmtree(place, ignore_errors=True)
        print(last_words(), flush=True)
        os._exit(128 + number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return place


def start(folder: Path, command: tuple[str, ...], mark: str, processes: int, log: Path, cores: int = 0) -> Any:
    """Start a stage's command in a session of its own, on `cores` CPUs when that is not 0; it writes to `log`."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "DVC_ROOT")}
    environment |= {MARK: f"{os.getpid()}-{mark}", "NPROC": str(processes), "OMP_NUM_THREADS": "1"}
    if cores:
        kept = ",".join(str(cpu) for cpu in sorted(os.sched_getaffinity(0))[:cores])
        command = ("taskset", "-c", kept, *command)
    with log.open("wb") as file:
        return subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
            start_new_session=True,
        )  # fmt: skip


def bearing(mark: str) -> list[psutil.Process]:
    """All processes of the command that was started with `mark`, whoever their parent is now; of all, without one."""
    wanted = f"{MARK}={os.getpid()}-{mark}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
                if wanted in variables or (not mark and any(one.startswith(wanted) for one in variables)):
                    found.append(psutil.Process(int(entry.name)))
            except (OSError, psutil.NoSuchProcess):
                continue  # it has ended, or is another user's
    return found


def present(process: psutil.Process) -> bool:
    """Whether it runs, or is a zombie that its parent should have waited for (those of process 1 are the machine's)."""
    try:
        return process.is_running() and not (process.status() == psutil.STATUS_ZOMBIE and process.ppid() == 1)
    except psutil.NoSuchProcess:
        return False


def left_behind(mark: str, known: list[psutil.Process], patience: float = ENDED) -> list[str]:
    """What of a command is still there `patience` seconds after its end; it is killed."""
    until = time.monotonic() + patience
    while (left := [*{p.pid: p for p in [*known, *bearing(mark)] if present(p)}.values()]) and time.monotonic() < until:
        time.sleep(0.1)
    said = []
    for process in left:
        try:
            said.append(f"{process.pid} {process.status()} {' '.join(process.cmdline())[-120:]}")
            process.kill()
        except psutil.NoSuchProcess:
            continue
    return said


def files(folder: Path, names: tuple[str, ...] = ()) -> dict[str, tuple[int, int]]:
    """Modification time in ns and size of each file below `names`, by path; default: of all but the code and locks."""
    found = {}
    for name in names or sorted({entry.name for entry in folder.iterdir()} - {"ssl", "stages"}):
        place = folder / name
        inside = [Path(root, one) for root, _, own in os.walk(place) for one in own]  # folders may go meanwhile
        for path in [place] if place.is_file() else inside:
            relative = path.relative_to(folder).as_posix()
            try:
                status = path.stat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(status.st_mode) and not relative.endswith(".lock"):
                found[relative] = (status.st_mtime_ns, status.st_size)
    return found


def digests(folder: Path, outs: tuple[str, ...]) -> dict[str, str]:
    """SHA-256 of every file of the outs but `TIMES`."""
    found = {}
    for name in files(folder, outs):
        if not name.startswith(TIMES):
            found[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    return found


def remove(folder: Path, names: tuple[str, ...]) -> None:
    """Remove outs, as DVC does before it runs a stage."""
    for name in names:
        if (folder / name).is_dir():
            shutil.rmtree(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
