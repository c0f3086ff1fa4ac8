"""Steps/s of training while its tracking store is well, dead or slow, against no tracking.

    python benchmarks/tracking.py                   # writes benchmarks/results/tracking.md

Every arm is the project's own loop, with a run whose writer has imported MLflow before the clock starts: what that
costs, once a stage, is told apart. The arms take turns; the writers of the others stand still. The servers are
MLflow's own, on the same machine, in processes of their own; the slow one answers after 10 s, nothing listens at the
address of the dead one. Beside the ratio stand what hardly varies: the share of the loop's time spent in handing over
points, and the processor time of the writer a second of training.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import common
import psutil
import torch
from step import ours, speed
from workload import NETWORKS, image_folder, make_images, parameters

from selfsup.data.shards import write
from selfsup.params import Tracking
from selfsup.tracking import runs as tracking

DEAD = "http://127.0.0.1:9"
SLOW = 10.0  # seconds


def serve(folder: Path, delay: float, pipe: Connection) -> None:
    """MLflow's server until the process is ended; says where it is."""
    sys.path.insert(0, str(common.ROOT))
    from tests.faults.server import Server, late

    server = Server(folder)
    server.fault = late(delay) if delay else None
    pipe.send(server.uri)
    pipe.recv()


@contextlib.contextmanager
def server(folder: Path, delay: float) -> Iterator[str]:
    folder.mkdir()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=serve, args=(folder, delay, there))  # no threads yet
    process.start()
    try:
        yield here.recv()
    finally:
        process.kill()


@dataclass
class Arm:
    """A run whose writer works only in its turn."""

    run: tracking.Run
    writer: psutil.Process | None  # none: tracking is off
    started: float = 0.0  # processor seconds of the writer before the first turn
    handing: float = 0.0  # seconds in `log`
    training: float = 0.0  # seconds of turns
    used: float = 0.0  # processor seconds of the writer in its turns

    def log(self, row: Mapping[str, float], step: int) -> None:
        before = time.perf_counter()
        self.run.metrics(row, step)
        self.handing += time.perf_counter() - before

    def turn(self, *values: object) -> float:
        """Steps/s."""
        if self.writer:
            self.writer.resume()
        before, began = cpu(self.writer), time.perf_counter()
        steps = speed(partial(ours, log=self.log), 1, *values)
        self.training += time.perf_counter() - began
        self.used += cpu(self.writer) - before
        if self.writer:
            self.writer.suspend()
        return steps


def cpu(process: psutil.Process | None) -> float:
    return sum(process.cpu_times()[:2]) if process else 0.0


def start(uri: str | None, enabled: bool) -> Arm:
    before = psutil.Process().children()
    run = tracking.start(Tracking(enabled=enabled, uri=uri, experiment="benchmark"), "pretrain", "pretrain")
    writers = [process for process in psutil.Process().children() if process not in before]
    return Arm(run, *writers) if writers else Arm(run, None)


def settle(arms: Mapping[str, Arm]) -> None:
    """Wait until every writer has imported MLflow, the slow server's after its first answer, then stop them."""
    writers = [arm.writer for arm in arms.values() if arm.writer]
    used, quiet = -1.0, 0
    while quiet < SLOW + 2:
        time.sleep(1)
        now = sum(map(cpu, writers))
        quiet = quiet + 1 if now - used < 0.1 else 0
        used = now
    for arm in arms.values():
        arm.started = cpu(arm.writer)
        if arm.writer:
            arm.writer.suspend()


def main() -> None:
    parser = common.arguments(__doc__, "tracking.md")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4, help="of a turn")
    parser.add_argument("--warmup", type=int, default=5, help="steps before the clock starts")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        os.environ["DVC_ROOT"] = str(folder)
        places = {
            "sqlite": None,
            "local server": stack.enter_context(server(folder / "well", 0)),
            "dead server": DEAD,
            f"server that answers after {SLOW:g} s": stack.enter_context(server(folder / "slow", SLOW)),
        }
        data = image_folder(make_images(folder / "images", 1000, 16), 16)
        params = parameters(data, network=NETWORKS["ResNet-9 w8"], batch_size=args.batch, epochs=1000, log_every=10)
        write(params.data.of("image"), 0, folder / "shards", 1)
        arms = {"off": start(None, False)} | {name: start(uri, True) for name, uri in places.items()}
        settle(arms)
        timing = (args.seconds, args.warmup, params, folder)
        speeds = common.alternate({name: partial(arm.turn, *timing) for name, arm in arms.items()}, args.rounds)
        for arm in arms.values():
            if arm.writer:
                arm.writer.resume()
            arm.run.finish("KILLED")  # waits for 4 s at most
    rows = [
        [
            name,
            common.spread(speeds[name], 1),
            common.spread(common.ratios(speeds[name], speeds["off"]), 3),
            f"{arm.handing / arm.training:.3%}",
            f"{arm.used / arm.training:.1%}",
            f"{arm.started:.1f}" if arm.writer else "",
        ]
        for name, arm in arms.items()
    ]
    text = (
        f"Steps/s, median (minimum to maximum) of {args.rounds} turns of {args.seconds:g} s after {args.warmup} "
        f"steps; SimCLR, ResNet-9 width 8, 16 px, batch {args.batch}, {args.threads} threads, a row of some 20 curves "
        f"every 10 steps. Ratios are of the same round. A writer's start is that of its process, MLflow (once the "
        "server answers at all) and the first requests, once a stage."
    )
    head = [
        "store", "steps/s", "/ off", "of the loop's time spent on it",
        "processor of the writer, of one core", "its start, processor s",
    ]  # fmt: skip
    where = common.conditions("torch", "mlflow")
    common.write(args.out, "What tracking costs", text, where, common.table(head, rows))


if __name__ == "__main__":
    main()
