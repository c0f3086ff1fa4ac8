"""Start a stage on NPROC processes through Accelerate, and keep its error to one line.

NPROC=2 dvc repro                  two processes, on GPUs when there are, else on CPUs
ACCELERATE_ARGS="--num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500" NPROC=16 ...
                                   this host's part of a run over several hosts; NPROC counts the processes of all
RANK_TIMEOUT=60 ...                seconds that processes wait for one that does not answer, before they all stop (600)

A stage that is asked to stop (SIGTERM, Ctrl-C) writes a checkpoint and is gone within 10 seconds. Processes whose
parent was killed end as if asked to stop.
"""

import contextlib
import ctypes
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

_STDERR = "SELFSUP_STDERR"  # of the process that launched
_LEFT_ALONE = 75  # exit status of a process whose collective failed
_GRACE = 10.0  # seconds from a polite signal to the end
_REPORT = 5.0  # seconds in which processes that were left alone all say so
_AGAIN = "run the same command again: it goes on from the last checkpoint"


def processes() -> int:
    """NPROC from the environment, checked. Raises `UserError`."""
    text = os.environ.get("NPROC", "1")
    if not text.isdigit() or int(text) < 1:
        raise UserError(f"NPROC={text}: must be a whole number from 1")
    return int(text)


def check_devices(count: int) -> None:
    """Refuse more processes than CUDA devices; without CUDA, processes share the CPUs."""
    import torch

    devices = torch.cuda.device_count()
    if 0 < devices < count and "--num_machines" not in os.environ.get("ACCELERATE_ARGS", ""):
        raise UserError(f"NPROC={count}: only {devices} CUDA devices are present; set NPROC={devices}")


def first_process() -> bool:
    """True in the process that writes: the only one, or rank 0 over all hosts."""
    return os.environ.get("RANK", "0") == "0"


def inside() -> bool:
    """True in a worker process. Also lets the worker speak on the stage's own stderr, not the launcher's."""
    if _STDERR not in os.environ:
        return False
    with contextlib.suppress(OSError):  # no /proc: the launcher's stderr will do
        os.dup2(os.open(os.environ[_STDERR], os.O_WRONLY | os.O_APPEND), 2)
    end_with_parent()
    _note("pid").write_text(str(os.getpid()))
    return True


def _note(kind: str) -> Path:
    """What this worker leaves for the process that launched it."""
    return Path(os.environ[WORKERS], f"{os.environ['RANK']}.{kind}")


def end_with_parent() -> None:
    """Have the kernel send SIGTERM when the parent dies, however it dies."""
    with contextlib.suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


@contextlib.contextmanager
def quiet_when_left_alone() -> Iterator[None]:
    """A collective that fails because another process died is no fault of this one: the launcher says whose it was.

    To be entered last, as the end of a tracker may take longer than the launcher waits to hear of it.
    """
    try:
        yield
    except RuntimeError as error:
        if WORKERS not in os.environ or not re.search(r"gloo|NCCL|Connection (closed|reset)", str(error)):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which would interrupt the way out
        _note("alone").touch()
        until = time.monotonic() + 2 * _REPORT
        while time.monotonic() < until and not Path(os.environ[WORKERS], "judged").exists():
            time.sleep(0.1)
        sys.stdout.flush()
        os._exit(_LEFT_ALONE)  # at once: no process answers when collectives shut down


def free_port() -> int:
    """A free TCP port for processes to meet at.

    None of those that the system gives to outgoing connections, which might take it before it is listened on.
    """
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise OSError("no free port found between 20000 and 32000")


def relaunch(count: int) -> bool:
    """Run this very command on `count` processes; whether rank 0 was one of this host's. Exits where they fail."""
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
        # in a session of its own: a second signal, the terminal's own Ctrl-C, would end the launcher before its workers
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
        said = noise.read().decode(errors="replace")
        first_was_here = (Path(folder) / "0.pid").exists()
    if child.returncode and stopped:
        sys.exit(128 + stopped[0])
    if child.returncode:
        sys.exit(last_word(said, hung, child.returncode) or 1)
    return first_was_here


def wait(child: subprocess.Popen, folder: Path, patience: float, stopping: Callable[[], bool]) -> list[int]:
    """Wait for the workers' end, enforce it where they do not stop, and return the ranks that did not answer.

    When a process dies or does not answer, the others' collectives fail and they say so in `folder`: who does not say
    it, and is alive, is the one. When some have ended, nobody waits for the others any more: who then does nothing for
    `patience` seconds does not answer either.
    """
    import psutil

    hung: list[int] = []
    end = judge = float("inf")
    busy, spent = time.monotonic(), -1.0  # when the workers that are left were last seen to do something
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
    """The `psutil.Process` of that number, None when it has ended."""
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess, ValueError):  # a number that is being written yet
        process = psutil.Process(int(pid))
        return process if process.status() != psutil.STATUS_ZOMBIE else None
    return None


def last_word(said: str, hung: list[int], status: int = 1) -> str:
    """The line to add to the workers' own: none when one of them ended by itself, having printed its error."""
    entry = re.compile(r"^\s+rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", re.M | re.S)
    codes = [(int(rank), int(code)) for rank, code in entry.findall(said)]
    if hung:
        return f"error: process {hung[0]} did not answer for RANK_TIMEOUT and was stopped; {_AGAIN}"
    killed = [(rank, -code) for rank, code in codes if code < 0 and -code != signal.SIGTERM]  # which ends the others
    if killed:
        rank, number = killed[0]
        return f"error: process {rank} was killed by signal {number}; {_AGAIN}"
    if codes and all(code in (_LEFT_ALONE, -signal.SIGTERM) for _, code in codes):
        return "error: the processes lost one another; NCCL_DEBUG=INFO shows why, GLOO_SOCKET_IFNAME names the network"
    if status < 0:
        return f"error: the processes' launcher was killed by signal {-status}; {_AGAIN}"
    if codes:
        return ""
    lines = [line for line in said.splitlines() if line.strip()] or ["it printed nothing"]
    return (
        f"error: the processes could not be started ({lines[-1].strip()[:300]}); check ACCELERATE_ARGS; "
        f"all that the launcher printed is in {keep_fault(said)}"
    )


def stop_on_sigterm() -> None:
    """Let a polite kill end the run like Ctrl-C does: clean-up runs, the tracker says KILLED."""

    def stop(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the clean-up
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, stop)


def assert_world(count: int) -> None:
    """A launcher that silently starts one process must not pass unnoticed."""
    from selfsup.nn.distributed import world

    if world() != count:
        raise UserError(f"NPROC={count} was asked for but {world()} processes run; see ACCELERATE_ARGS")
