"""Start a stage on NPROC processes through Accelerate, and keep its last word to one line.

NPROC=2 dvc repro                  two processes, on GPUs when there are, else on CPUs
ACCELERATE_ARGS="--num_machines 2 --machine_rank 0 --main_process_ip 10.0.0.1 --main_process_port 29500" NPROC=16 ...
                                   this host's part of a run over several hosts; NPROC counts the processes of all
"""

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from selfsup.errors import UserError

_INSIDE = "SELFSUP_STDERR"
_LEFT_ALONE = 75  # exit status of a process whose collective failed


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
    if _INSIDE not in os.environ:
        return False
    with contextlib.suppress(OSError):  # no /proc: the launcher's stderr will do
        os.dup2(os.open(os.environ[_INSIDE], os.O_WRONLY | os.O_APPEND), 2)
    return True


@contextlib.contextmanager
def quiet_when_left_alone() -> Iterator[None]:
    """A collective that fails because another process died is no fault of this one: the launcher says whose it was."""
    try:
        yield
    except RuntimeError as error:
        if "RANK" not in os.environ or not re.search(r"gloo|NCCL|Connection (closed|reset)", str(error)):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the launcher's, which would interrupt the way out
        sys.exit(_LEFT_ALONE)


def relaunch(count: int) -> None:
    """Run this very command on `count` processes and exit with its status."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    extra = shlex.split(os.environ.get("ACCELERATE_ARGS", ""))
    given = {word.partition("=")[0] for word in extra}
    if "--num_machines" in given and "--main_process_port" not in given:
        raise UserError("ACCELERATE_ARGS: several hosts need one --main_process_port, the same on each")
    if "--main_process_port" not in given:
        extra += ["--main_process_port", str(port)]
    launcher = [sys.executable, "-m", "accelerate.commands.accelerate_cli", "launch", "--multi_gpu"]
    launcher += ["--num_processes", str(count), "--mixed_precision", "no", "--dynamo_backend", "no", *extra]
    threads = os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with tempfile.TemporaryFile() as noise:
        environment = os.environ | {_INSIDE: f"/proc/{os.getpid()}/fd/2", "OMP_NUM_THREADS": threads}
        child = subprocess.Popen([*launcher, *sys.argv], env=environment, stderr=noise)
        stopped: list[int] = []

        def pass_on(number: int, _: object) -> None:
            stopped.append(number)
            child.send_signal(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, pass_on)
        status = child.wait()
        noise.seek(0)
        said = noise.read().decode(errors="replace")
    if status and stopped:
        sys.exit(128 + stopped[0])
    if status:
        print(last_word(said), end="", file=sys.stderr)
    sys.exit(1 if status else 0)


def last_word(said: str) -> str:
    """What to add to the workers' own words: nothing when one of them ended by itself, having said why."""
    codes = [
        (int(rank), int(code)) for rank, code in re.findall(r"rank\s*:\s*(\d+).*?exitcode\s*:\s*(-?\d+)", said, re.S)
    ]
    killed = [(rank, -code) for rank, code in codes if code < 0 and -code != signal.SIGTERM]  # which ends the others
    if killed:
        rank, number = killed[0]
        again = "run the same command again: it goes on from the last checkpoint"
        return f"error: process {rank} was killed by signal {number}; {again}\n"
    if codes and all(code in (_LEFT_ALONE, -signal.SIGTERM) for _, code in codes):
        return "error: the processes lost one another; NCCL_DEBUG=INFO or GLOO_SOCKET_IFNAME may say and mend why\n"
    return "" if codes else said[-4000:]


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


ROOT = Path(os.environ.get("DVC_ROOT", "."))
