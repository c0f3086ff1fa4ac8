"""Start a stage on NPROC processes through Accelerate, and print its error as one line.

NPROC=2 dvc repro                  two processes, on GPUs if there are any, else on CPUs
ACCELERATE_ARGS="--num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500" NPROC=16 ...
                                   this host's part of a run over several hosts; NPROC counts the processes of all hosts
RANK_TIMEOUT=60 ...                seconds until a process that does not answer counts as hung, and all stop (600)

A stage that is asked to stop (SIGTERM, Ctrl-C) writes a checkpoint and exits within 10 seconds. Processes whose parent
was killed behave as if asked to stop.
"""

import contextlib
import os
import random
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from selfsup.errors import WORKERS, UserError
from selfsup.logs import keep_fault
from selfsup.processes.signals import end_with_parent

_STDERR = "SELFSUP_STDERR"  # stderr of the launching process
_LEFT_ALONE = 75  # exit status of a process whose collective failed because of another process
_GRACE = 10.0  # seconds from the request to stop to the end
_REPORT = 5.0  # seconds in which all processes whose collectives failed leave their notes
_AGAIN = "run the same command again: it resumes from the last checkpoint"


def processes() -> int:
    """NPROC from the environment. Raises `UserError` unless it is a whole number from 1."""
    text = os.environ.get("NPROC", "1")
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"NPROC={text}: must be a whole number from 1")
    return int(text)


def check_devices(count: int) -> None:
    """Raise `UserError` if there are more processes than CUDA devices. Without CUDA, processes share the CPUs."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < count and "--num_machines" not in os.environ.get("ACCELERATE_ARGS", ""):
        raise UserError(f"NPROC={count}: only {devices} CUDA devices are present; set NPROC={devices}")


def first_process() -> bool:
    """Whether this process writes the outputs: the only process, or rank 0 of all hosts."""
    return os.environ.get("RANK", "0") == "0"


def inside() -> bool:
    """Whether this is a worker process. Connects a worker to the stage's own stderr instead of Accelerate's."""
    if _STDERR not in os.environ:
        return False
    with contextlib.suppress(OSError):  # without /proc it keeps Accelerate's stderr
        os.dup2(os.open(os.environ[_STDERR], os.O_WRONLY | os.O_APPEND), 2)
    end_with_parent()
    _note("pid").write_text(str(os.getpid()))
    return True


def _note(kind: str) -> Path:
    """A file that this worker leaves for the launching process."""
    return Path(os.environ[WORKERS], f"{os.environ['RANK']}.{kind}")


@contextlib.contextmanager
def quiet_when_left_alone() -> Iterator[None]:
    """End without an error message if a collective fails because of another process, which the launcher then names.

    Enter this context innermost: closing the tracker may take longer than the launcher waits for this process's note.
    """
    try:
        yield
    except RuntimeError as error:
        if WORKERS not in os.environ or not re.search(r"gloo|NCCL|Connection (closed|reset)", str(error)):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # Accelerate sends one, which would interrupt the wait
        _note("alone").touch()
        until = time.monotonic() + 2 * _REPORT
        while time.monotonic() < until and not Path(os.environ[WORKERS], "judged").exists():
            time.sleep(0.1)
        sys.stdout.flush()
        os._exit(_LEFT_ALONE)  # at once: shutting down the process group would wait for processes that do not answer


def free_port() -> int:
    """A free TCP port for the process group.

    It is outside the ephemeral range, so that the system cannot give it to an outgoing connection first.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port found between 20000 and 32000")


def relaunch(count: int) -> bool:
    """Run this same command on `count` processes. Returns whether rank 0 ran on this host. Exits if they fail."""
    from selfsup.processes.accelerator import rank_timeout

    patience = rank_timeout().total_seconds()
    extra = shlex.split(os.environ.get("ACCELERATE_ARGS", ""))
    given = {word.partition("=")[0] for word in extra}
    if "--num_machines" in given and "--main_process_port" not in given:
        raise UserError("ACCELERATE_ARGS: several hosts need one --main_process_port, the same on each")
    if "--main_process_port" not in given:
        extra += ["--main_process_port", str(free_port())]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launcher += ["--num_processes", str(count), "--mixed_precision", "no", "--dynamo_backend", "no", *extra]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryFile() as noise, tempfile.TemporaryDirectory() as folder:
        own = {_STDERR: f"/proc/{os.getpid()}/fd/2", WORKERS: folder, "OMP_NUM_THREADS": threads}
        # A separate session: the terminal's Ctrl-C, as a second signal, would end Accelerate before its workers.
        child = subprocess.Popen(
            [*launcher, *sys.argv],
            env=os.environ | own,
            stderr=noise,
            preexec_fn=end_with_parent,
            start_new_session=True,
        )
        stopped: list[int] = []

        def pass_on(number: int, _: object) -> None:
            if not stopped:
                child.send_signal(number)
            stopped.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        hung = wait(child, Path(folder), patience, lambda: bool(stopped))
        noise.seek(0)
        printed = noise.read().decode(errors="replace")
        first_was_here = (Path(folder) / "0.pid").exists()
    if child.returncode and stopped:
        sys.exit(128 + stopped[0])
    if child.returncode:
        sys.exit(cause(printed, hung, child.returncode) or 1)
    return first_was_here


def wait(child: subprocess.Popen, folder: Path, patience: float, stopping: Callable[[], bool]) -> list[int]:
    """Wait until the workers have exited, kill those that do not stop in time, and return the ranks that hung.

    When a process hangs, the collectives of the others fail, and each of them leaves a note in `folder`. A live process
    that left no note is the one that hangs. After some processes have exited, one that uses no CPU for `patience`
    seconds counts as hung, too.
    """
    import psutil

    hung: list[int] = []
    end = judge = float("inf")
    busy, spent = time.monotonic(), -1.0  # when the remaining workers last used the CPU, and their CPU seconds then
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(0.2)
            return hung
        now = time.monotonic()
        end = min(end, now + _GRACE - 1.0) if stopping() else end
        if now > end:
            for process in psutil.Process(child.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            child.kill()
        workers = {int(path.stem): working(path.read_text()) for path in folder.glob("*.pid")}
        alive = {rank: process for rank, process in workers.items() if process}
        alone = [int(path.stem) for path in folder.glob("*.alone")]
        with contextlib.suppress(psutil.NoSuchProcess):
            used = sum(sum(process.cpu_times()[:2]) for process in alive.values())
            if len(alive) == len(workers) or used != spent:
                busy, spent = now, used
        if alone and not (folder / "judged").exists():
            judge = min(judge, now + _REPORT)
            silent = sorted(alive.keys() - alone)
            if now > judge or not silent:
                hung = silent
                (folder / "judged").touch()
        elif alive and not alone and not hung and now > busy + patience:
            hung = sorted(alive)
        for rank in alive.keys() & set(hung):
            with contextlib.suppress(psutil.NoSuchProcess):
                alive[rank].kill()


def working(pid: str) -> Any:
    """The `psutil.Process` with this id, None if it has exited."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, ValueError):  # the id is still being written
        process = psutil.Process(int(pid))
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    return None


def cause(printed: str, hung: list[int], status: int = 1) -> str:
    """The error message of the launcher, from what Accelerate printed. Empty if a worker has printed its own."""
    entry = re.compile(r"^\s+rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.M | re.S)
    codes = [(int(rank), int(code)) for rank, code in entry.findall(printed)]
    if hung:
        return f"error: process {hung[0]} did not answer for RANK_TIMEOUT and was stopped; {_AGAIN}"
    # Accelerate itself ends the other processes by SIGTERM.
    killed = [(rank, -code) for rank, code in codes if code < 0 and -code != signal.SIGTERM]
    if killed:
        rank, number = killed[0]
        return f"error: process {rank} was killed by signal {number}; {_AGAIN}"
    if codes and all(code in (_LEFT_ALONE, -signal.SIGTERM) for _, code in codes):
        return (
            "error: the processes lost their connections; set NCCL_DEBUG=INFO to see why, "
            "or GLOO_SOCKET_IFNAME to choose the network"
        )
    if status < 0:
        return f"error: the launcher of the processes was killed by signal {-status}; {_AGAIN}"
    if codes:
        return ""
    lines = [line for line in printed.splitlines() if line.strip()] or ["it printed nothing"]
    return (
        f"error: the processes could not be started ({lines[-1].strip()[:300]}); check ACCELERATE_ARGS; "
        f"the launcher's whole output is in {keep_fault(printed)}"
    )


def assert_world(count: int) -> None:
    """Raise `UserError` unless `count` processes run: some arguments make Accelerate start one process silently."""
    from selfsup.nn.distributed import world

    if world() != count:
        raise UserError(f"NPROC={count}: {world()} processes run instead; check ACCELERATE_ARGS")
