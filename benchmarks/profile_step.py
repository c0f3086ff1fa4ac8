"""Where the time of a training step goes: torch's profiler over the project's own loop, as a table and a picture.

    python benchmarks/profile_step.py                # writes benchmarks/results/profile.md and profile.png

Every part of the loop is labelled from here; what has no label is `other`. A profiler slows small operations down, so
shares count and not the step's time; the table says both. On a GPU the times are those of the CPU that feeds it, and a
second column has the device's. `--trace` keeps the whole trace for chrome://tracing.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import torch
from step import Clock, Stop, ours
from torch.profiler import ProfilerActivity, profile, record_function
from workload import NETWORKS, image_folder, make_images, parameters

from selfsup import methods
from selfsup.data.shards import write
from selfsup.training import loop, monitors

# label -> what does it, in the namespace where the loop looks it up
PARTS = {
    "random numbers of the step": [(loop, "reseed"), (loop, "Draw")],
    "forward": [],
    "views": [],
    "backward": [],
    "optimiser": [(loop, "apply_schedules")],
    "monitors": [(loop, "layer_norms"), (loop, "reading"), (monitors, "read")],
    "finite check": [(loop, "finite"), (loop, "stop_if_not_finite")],
    "checkpoint": [(loop, "save")],
}


def labelled(function: Callable, label: str) -> Callable:
    def run(*values: Any, **named: Any) -> Any:
        with record_function(label):
            return function(*values, **named)

    return run


def waiting(batches: Callable) -> Callable:
    """`train_batches` whose waits for the next batch, gathered in another thread, are labelled."""

    def run(*values: Any, **named: Any) -> Iterator:
        source = iter(batches(*values, **named))
        while True:
            with record_function("wait for the batch"):
                batch = next(source, None)
            if batch is None:
                return
            yield batch

    return run


def label_everything(method: str) -> None:
    _, task = methods.find(method)
    places = [(label, *place) for label, found in PARTS.items() for place in found]
    places += [("views", task, "views"), ("forward", task, "forward"), ("forward", task, "embed")]
    places += [("moving average", task, "after_step")]
    places += [("backward", torch.Tensor, "backward"), ("optimiser", torch.optim.SGD, "step")]
    for label, owner, name in places:
        if hasattr(owner, name):
            setattr(owner, name, labelled(getattr(owner, name), label))
    loop.train_batches = waiting(loop.train_batches)


class Profiled(Clock):
    """Starts the profiler when the warm-up is over."""

    def __init__(self, seconds: float, warmup: int, profiler: profile):
        super().__init__(seconds, warmup)
        self.profiler = profiler

    def tick(self) -> None:
        if self.ticks + 1 == self.warmup:
            self.profiler.start()
        super().tick()


def shares(profiler: profile, labels: set[str], step: float, steps: int) -> dict[str, tuple[float, float]]:
    """Milliseconds a step of every label, on the CPU and on a GPU; a label inside another is the other's."""
    found: dict[str, tuple[float, float]] = {}
    for event in profiler.events():
        if event.name not in labels or _inside_a_label(event, labels):
            continue
        cpu, gpu = found.get(event.name, (0.0, 0.0))
        found[event.name] = cpu + event.cpu_time_total / 1e3 / steps, gpu + event.device_time_total / 1e3 / steps
    found["other"] = max(0.0, step * 1e3 - sum(cpu for cpu, _ in found.values())), 0.0
    return dict(sorted(found.items(), key=lambda item: -item[1][0]))


def _inside_a_label(event: Any, labels: set[str]) -> bool:
    parent = event.cpu_parent
    return parent is not None and (parent.name in labels or _inside_a_label(parent, labels))


def picture(found: dict[str, tuple[float, float]], title: str, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.4 * len(found) + 1), layout="constrained")
    axes = figure.add_subplot()
    names = list(found)[::-1]
    bars = axes.barh(names, [found[name][0] for name in names], color="#4477aa")
    axes.bar_label(bars, fmt="%.1f", padding=3)
    axes.set_xlabel("ms a step")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = common.arguments(__doc__, "profile.md")
    parser.add_argument("--method", choices=("simclr", "byol"), default="simclr")
    parser.add_argument("--network", choices=NETWORKS, default="ResNet-9 w8")
    parser.add_argument("--size", type=int, default=32, help="pixels")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--images", type=int, default=8192)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--trace", type=Path, help="file for the whole trace, .json")
    args = parser.parse_args()
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        images = make_images(folder / "images", args.images, args.size)
        settings = {"batch_size": args.batch, "precision": args.precision, "compile": args.compile}
        params = parameters(
            image_folder(images, args.size), args.method, NETWORKS[args.network], epochs=1000, **settings
        )
        write(params.data.of("image"), 0, folder / "shards")
        quiet = Clock(args.seconds, 4)
        with contextlib.suppress(Stop):
            ours(params, folder, quiet)  # without the profiler
        label_everything(args.method)
        profiler = profile(activities=activities)
        clock = Profiled(args.seconds, 4, profiler)
        with contextlib.suppress(Stop):
            ours(params, folder, clock)
        profiler.stop()
    if args.trace:
        profiler.export_chrome_trace(str(args.trace))
    labels = {*PARTS, "wait for the batch", "moving average"}
    found = shares(profiler, labels, clock.step, clock.ticks - clock.warmup)
    title = f"{args.method}, {args.network}, {args.size} px, batch {args.batch}: {clock.step * 1e3:.0f} ms a step"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture(found, title, args.out.with_suffix(".png"))
    rows = [[name, f"{cpu:.1f}", f"{gpu:.1f}", f"{cpu / clock.step / 10:.1f} %"] for name, (cpu, gpu) in found.items()]
    text = f"{title} under the profiler, {quiet.step * 1e3:.0f} ms without it.\n\n![shares]({args.out.stem}.png)"
    operators = [event for event in profiler.key_averages() if event.key not in labels]
    operators.sort(key=lambda event: -(event.self_cpu_time_total + event.self_device_time_total))
    steps = clock.ticks - clock.warmup
    top = [
        [f"`{o.key}`", f"{o.self_cpu_time_total / 1e3 / steps:.1f}", f"{o.count / steps:.1f}"] for o in operators[:12]
    ]
    where = common.conditions("torch", "accelerate")
    parts = common.table(["part", "CPU, ms a step", "GPU, ms a step", "share"], rows)
    most = common.table(["operator, main thread", "own CPU time, ms a step", "calls a step"], top)
    common.write(args.out, "Where a step's time goes", text, where, parts, most)


if __name__ == "__main__":
    main()
