"""What each stage costs before it works, and `dvc repro` with nothing to do: wall and CPU time, and imports.

    python benchmarks/stages.py                      # writes benchmarks/results/stages.md

The project is copied into a scratch folder and its pipeline run once on 400 digits for one epoch. Then every stage's
command is run again by itself, so that nearly all of its time is start-up, with `python -X importtime`; and `dvc repro`
and `dvc status` with nothing to do. CPU time is that of all processes. Imports are of the stage's first process, each
library with what it alone took to import; MLflow is imported in a process of its own, beside the stage's work.
"""

from __future__ import annotations

import collections
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import common
from ruamel.yaml import YAML

STAGES = [
    "check", "watch", "shard", "baseline pixels", "baseline backbone", "pretrain", "extract",
    "evaluate knn", "evaluate linear", "evaluate few_label", "report",
]  # fmt: skip


def copy_project(project: Path, folder: Path) -> None:
    """The project's files, without its history, with small values in params.yaml."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=project, check=True, capture_output=True, text=True).stdout
    for name in listed.splitlines():
        if (project / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(project / name, folder / name)
    yaml = YAML()
    values = yaml.load(folder / "params.yaml")
    values["data"]["limit"], values["pretrain"]["epochs"], values["pretrain"]["warmup_epochs"] = 400, 1, 0
    yaml.dump(values, folder / "params.yaml")
    subprocess.run(["dvc", "config", "core.no_scm", "true"], cwd=folder, check=True)


def timed(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command, and what it wrote on stderr."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} failed: {done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stderr


def imports(said: str) -> dict[str, float]:
    """Seconds that each top-level package took to import by itself, from the lines of `-X importtime`."""
    found: collections.Counter[str] = collections.Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", said):
        found[name.partition(".")[0]] += int(own) / 1e6
    return dict(found.most_common())


def main() -> None:
    parser = common.arguments(__doc__, "stages.md")
    parser.add_argument("--project", type=Path, default=common.ROOT, help="a checkout to measure instead of this one")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=STAGES)
    args = parser.parse_args()
    os.environ |= {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "true"}
    os.environ.pop("PYTHONPATH", None)  # stages find their own package
    runs: dict[str, list[tuple[float, float, str]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        copy_project(args.project, folder)
        timed(["dvc", "repro", "--quiet"], folder)
        for _ in range(args.rounds):  # before the stages write their outs anew
            for command in ("dvc repro", "dvc status"):
                runs.setdefault(f"`{command}`, nothing to do", []).append(timed(command.split(), folder))
        for _ in range(args.rounds):
            for stage in args.stages:
                script, *words = stage.split()
                command = [sys.executable, "-X", "importtime", f"stages/{script}.py", *words]
                runs.setdefault(stage, []).append(timed(command, folder))
                print(stage, *runs[stage][-1][:2], file=sys.stderr, flush=True)
    rows = []
    for name, found in runs.items():
        walls, cpus, said = zip(*found, strict=True)
        took = [imports(text) for text in said]
        total = statistics.median(sum(each.values()) for each in took)
        first = ", ".join(f"{package} {seconds:.2f}" for package, seconds in list(took[-1].items())[:10])
        rows.append([name, common.spread(walls, 1), common.spread(cpus, 1), f"{total:.1f}" if total else "", first])
    text = f"Seconds, median (minimum to maximum) of {args.rounds} rounds; one epoch of 400 digits."
    head = ["command", "wall", "CPU", "imports", "of which, the top ten"]
    where = common.conditions("dvc", "torch", "mlflow")
    common.write(args.out, "What stages cost before they work", text, where, common.table(head, rows))


if __name__ == "__main__":
    main()
