"""Compare methods, or the settings of a study, over seeds: run what is missing, judge all of it, write a page.

    python compare/run.py --methods simclr byol mae --seeds 0 1 2        # on the data and budget of params.yaml
    python compare/run.py --file compare/temperature.yaml --setup cifar10 -S pretrain.epochs=100 --jobs 2
    python compare/run.py --methods simclr byol --estimate               # time, memory and disk, before anything is run
    python compare/run.py --leaderboard                                  # everything that was run on this data

Every run is an experiment of DVC in a temporary workspace: params.yaml and the workspace stay as they are, uncommitted
changes take part. Experiments that were run before, by whichever command, are found by their parameters, data and code,
and are not run again. A comparison that was stopped or killed continues with the same command. The result is
compare/<name>/index.html, index.md and index.csv.
"""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from selfsup.compare import gather, git, locks, plan, setup, workspace
from selfsup.compare.by_dvc import Cache
from selfsup.compare.comparison import Absent, Comparison, Run
from selfsup.compare.gather import Experiment
from selfsup.compare.jobs import DONE, QUEUED, Job, Runner, dvc_command
from selfsup.compare.leaderboard import leaderboard
from selfsup.compare.locks import Project, Wanted
from selfsup.compare.plan import Cell, Plan
from selfsup.compare.progress import shown
from selfsup.compare.tuned import trials_of
from selfsup.errors import UserError, one_line_errors

NOT_YET = "not run yet"
_log = logging.getLogger("selfsup.compare")


def options(root: Path) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help=f"what is compared; default: {plan.FOLDER}/{plan.METHODS}.yaml")
    parser.add_argument(
        "--methods", nargs="+", metavar="METHOD", help="default: those of the file, else all without labels"
    )
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="default: those of the file, else 0")
    parser.add_argument("--setup", metavar="NAME", help=f"a file of {setup.FOLDER}/: {', '.join(setup.names(root))}")
    parser.add_argument("--protocols", nargs="+", metavar="PROTOCOL", help="in place of evaluation.protocols")
    parser.add_argument("-S", "--set-param", action="append", default=[], help="a further override, as of dvc exp run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, which share the cores; default: 1")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--estimate", action="store_true", help="run nothing; say what time, memory and disk it takes")
    what.add_argument("--done", action="store_true", help="run nothing; show the runs that are done")
    what.add_argument("--leaderboard", action="store_true", help="run nothing; show all experiments of this data set")
    return parser


@dataclass(frozen=True)
class Asked:
    """A comparison as it is asked for, and what is known of it before anything is run."""

    name: str
    plan: Plan
    project: Project
    cache: Cache
    jobs: Sequence[Job]
    base: Mapping[str, object]  # params.yaml
    known: Sequence[Experiment]
    command: str

    @property
    def rows(self) -> list[str]:
        return list(dict.fromkeys(job.cell.row for job in self.jobs))

    @property
    def seeds(self) -> list[int]:
        return list(dict.fromkeys(job.cell.seed for job in self.jobs))


def described(root: Path, args: argparse.Namespace) -> tuple[str, Plan]:
    """Name and plan of what the options ask for. Raises `UserError`."""
    name = _name(root, args.file)
    asked = plan.of_protocols(plan.of_methods(plan.read(root, name), args.methods), args.protocols)
    if asked.methods is True:
        asked = plan.of_methods(asked, None)
    chosen = {"seeds": args.seeds, "setup": args.setup}
    return name, asked.model_copy(update={key: value for key, value in chosen.items() if value is not None})


def ask(root: Path, args: argparse.Namespace, command: str) -> Asked:
    """Plan everything that the options ask for, and find what is done. Raises `UserError`."""
    name, asked = described(root, args)
    cells = plan.cells(root, name, asked, args.set_param)
    project, cache = Project(root, git.snapshot(root)), Cache(root)
    known, base = gather.experiments(root), setup.base_of(root)
    wanted = [project.wanted(cell.values) for cell in cells]
    comparable(asked, cells, wanted)
    jobs = [job(base, cell, one) for cell, one in zip(cells, wanted, strict=True)]
    for each in jobs:
        if done := gather.found(each.wanted, known, cache):
            each.found, each.state = done, DONE
    title = name + (f"-{args.setup}" if args.setup and args.setup != name else "")
    return Asked(title, asked, project, cache, jobs, base, known, command)


def _name(root: Path, file: Path | None) -> str:
    if file is None:
        return plan.METHODS
    if file.suffix == ".yaml" and file.resolve().parent == (root / plan.FOLDER).resolve():
        return file.stem
    raise UserError(f"--file {file}: must be a file {plan.FOLDER}/<name>.yaml; known: {', '.join(plan.names(root))}")


def job(base: Mapping[str, object], cell: Cell, wanted: Wanted) -> Job:
    """The run of a cell. Its name is for readers: it is found again by what dvc.lock says."""
    key = wanted.digest()
    row = re.sub(r"[^\w.]+|\.\.+", "-", cell.row)[:60].strip("-.") or "row"  # git takes neither `..` nor 256 bytes
    name = f"{row}-s{cell.seed}-{key[:6]}"
    return Job(cell, wanted, list(setup.changes(base, cell.values)), name, key, shared(wanted).digest())


def shared(wanted: Wanted) -> Wanted:
    """Of the stages those that no method decides: several methods share them."""
    own = [name for name, one in wanted.stages.items() if "method" in one.params.get("params.yaml", {})]
    free = [name for name in wanted.stages if not set(own) & set(locks.upward(wanted.stages, [name]))]
    return wanted.part(free)


def comparable(asked: Plan, cells: Sequence[Cell], wanted: Sequence[Wanted]) -> None:
    """Raise `UserError` where rows differ in data, or methods in their budget: they must not be ranked together."""
    must = [
        ("data", [one.given["data/watched.txt"] for one in wanted]),
        ("data", [one.given["data/needs/shards.json"] for one in wanted]),
    ]
    if asked.methods:
        must.append(("budget (`pretrain`)", [str(cell.values["pretrain"]) for cell in cells]))
    for what, differing in must:
        for cell, one in zip(cells, differing, strict=True):
            if one != differing[0]:
                raise UserError(
                    f"{cells[0].row} and {cell.row} differ in {what}, so their figures must not be ranked together; "
                    "compare them apart, or give both the same"
                )


def execute(asked: Asked, count: int) -> None:
    """Run what is missing. Raises `KeyboardInterrupt` and `SystemExit` at a request to stop."""
    missing = [one for one in asked.jobs if one.state != DONE]
    if not missing:
        return
    dvc_command()
    workspace.tidy(asked.project.root)
    try:
        with shown(count) as view:
            Runner(asked.project, asked.cache, count, view).run(asked.jobs, ready(asked))
    except (KeyboardInterrupt, SystemExit):
        _log.info("the same command continues; with --done it shows what is done")
        raise


def ready(asked: Asked) -> set[str]:
    """The digests `Job.shared` of what earlier runs have computed."""
    return {one.shared for one in asked.jobs if one.state == DONE or _ready(asked, one)}


def _ready(asked: Asked, one: Job) -> bool:
    part = shared(one.wanted)
    return any(locks.differs(each.lock, part, asked.cache.listing) is None for each in asked.known)


def collected(asked: Asked) -> Comparison:
    """All that is known of the comparison. Raises `UserError` where that is nothing."""
    root, runs, absent = asked.project.root, list[Run](), list[Absent]()
    readings = list(asked.plan.show.values())
    for one in asked.jobs:
        cell = one.cell
        if one.found is None:
            absent.append(Absent(cell.row, cell.seed, one.reason or NOT_YET))
            continue
        # dvc.lock shows that it was run with the cell's parameters. Its params.yaml may list more, or was edited after.
        as_asked = replace(one.found, values=cell.values)
        try:
            runs.append(gather.run(root, as_asked, cell.row, asked.cache, asked.base, readings))
        except UserError as error:
            absent.append(Absent(cell.row, cell.seed, str(error)))
    if not runs:
        why = next((one.reason for one in absent if one.reason != NOT_YET), "")
        raise UserError(f"no run of {asked.name} is done{': ' + why if why else '; leave --done out to run them'}")
    return Comparison(
        name=asked.name,
        title=asked.plan.title,
        rows=asked.rows,
        seeds=asked.seeds,
        runs=runs,
        absent=absent,
        command=asked.command,
        design=plan.design(asked.plan),
        tuned=tuned(asked),
    )


def tuned(asked: Asked) -> dict[str, int]:
    """Trials by row, of rows whose recipe is the one that `make tune` found."""
    name, root = asked.plan.setup, asked.project.root
    if name is None or not asked.plan.methods:
        return {}
    trials = trials_of(name, root)
    blocks = setup.merged(asked.base, setup.read(root, name, asked.base))["methods"]
    rows = {one.cell.row: one.cell for one in asked.jobs}
    same = {row for row, cell in rows.items() if cell.values["methods"][cell.method] == blocks[cell.method]}
    return {row: trials[cell.method] for row, cell in rows.items() if row in same and cell.method in trials}


def leaderboard_of(root: Path, args: argparse.Namespace, command: str) -> Comparison:
    """All runs on the data that the options name. Raises `UserError`."""
    values = plan.start(root, described(root, args)[1], args.set_param)
    return leaderboard(Project(root, git.snapshot(root)), Cache(root), values, command)


def write(root: Path, comparison: Comparison) -> Path:
    """Judge the comparison and write its page; the page's path."""
    from selfsup.compare import judge, page  # late: they import what draws

    judgement = judge.judge(comparison)
    with workspace.held(root / workspace.PLACE / f"{comparison.name}.page.lock", wait=True):
        return page.write(comparison, judgement, root / plan.FOLDER / comparison.name, root)


def main() -> None:
    root = Path()
    args = options(root).parse_args()
    if not (root / "dvc.yaml").exists():
        raise UserError("dvc.yaml: not found; run from the project's root")
    if args.jobs < 1:
        raise UserError(f"--jobs {args.jobs}: must be 1 or more")
    command = shlex.join(["python", "compare/run.py", *sys.argv[1:]])
    if args.leaderboard:
        for name in ("methods", "seeds", "protocols"):
            if getattr(args, name):
                raise UserError(f"--{name}: the leaderboard has every experiment of the data set; leave --{name} out")
        print(f"leaderboard: {write(root, leaderboard_of(root, args, command))}")
        return
    asked = ask(root, args, command)
    if args.estimate:
        from selfsup.compare.estimate import estimate  # late: it is the only option that needs it

        print(estimate(asked.cache, asked.jobs, asked.known, ready(asked), args.jobs))
        return
    if args.done:  # also while another process runs what is missing
        print(f"comparison: {write(root, collected(asked))}")
        return
    try:
        with workspace.held(root / workspace.PLACE / f"{asked.name}.lock"):
            execute(asked, args.jobs)
            print(f"comparison: {write(root, collected(asked))}")
    except workspace.InUse:
        raise UserError(
            f"{asked.name}: another process is making this comparison; wait, or stop it; --done shows what is done"
        ) from None
    failed = [one for one in asked.jobs if one.state not in (DONE, QUEUED)]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(asked.jobs)} runs failed; the first is {first.cell.title}: {first.reason}; fix it, "
            "then run the same command again: finished runs are kept"
        )


def command() -> None:
    with one_line_errors():
        main()


if __name__ == "__main__":
    command()
