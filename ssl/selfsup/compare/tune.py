"""Tune every method alike: the same number of trials each, judged by kNN on held-out training images.

    python -m selfsup.compare.tune --methods simclr byol --trials 20 --setup digits
    python -m selfsup.compare.tune --file compare/digits.yaml --methods simclr byol    # under a comparison's conditions
    make compare METHODS="simclr byol" SEEDS="0 1 2" SETUP=tuned-digits

The first trial of every method is its recipe as it stands, so tuning cannot lose on the held-out images. A trial trains
on the training split and is judged by the validation split, which is held out of the training images. The test split
is never read: tuning deletes its shards before it begins.

The winners are written to setups/tuned-<set-up>.yaml, a report to compare/tuned-<set-up>/index.md, and all trials to
index.csv beside it. Trials are kept in .cache/tune: the same command continues after a kill, and Ctrl-C ends with the
trials that there are.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import re
import shlex
import shutil
import signal
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup import digests, methods
from selfsup.compare import knobs, plan, setup, tuned
from selfsup.compare.progress import duration
from selfsup.compare.run import described
from selfsup.compare.trials import Splits, Study, Trial, opened
from selfsup.compare.tuning import Tuning
from selfsup.config import parse, read_yaml
from selfsup.data.loader import open_split
from selfsup.data.shards import said, write
from selfsup.data.watch import watched
from selfsup.errors import UserError, one_line_errors
from selfsup.files import replaced
from selfsup.params import Params
from selfsup.processes import signals
from selfsup.report.page import commit
from selfsup.training import session
from selfsup.training.build import method_params

PLACE = Path(".cache", "tune")
_log = logging.getLogger("selfsup.compare")


@dataclass(frozen=True)
class Request:
    """What is tuned, and under which conditions."""

    methods: Sequence[str]
    trials: int
    seeds: Sequence[int]
    values: Mapping[str, Any]  # the parameters, in the form of params.yaml
    overlay: Mapping[str, Any]  # in what they differ from params.yaml
    ranges: knobs.Ranges
    file: str  # of the ranges
    name: str  # of the set-up that is written
    held_out: float | None  # share of the training images that judge; None: data.validation
    epochs: int | None  # of a trial; None: pretrain.epochs
    command: str

    def params(self, seed: int) -> Params:
        """The conditions of a trial, less `held_out` and `epochs`."""
        return parse(Params, self.values).model_copy(update={"seed": seed})


def requested(root: Path, args: argparse.Namespace, command: str) -> Request:
    """The checked request of the parsed arguments. Raises `UserError`."""
    compared, asked = described(root, argparse.Namespace(**vars(args), protocols=None))
    if not asked.methods:
        raise UserError(f"--file: the rows of {compared} are {asked.axis}, not methods; choose another file")
    chosen = list(asked.settings)
    base, values = setup.base_of(root), plan.start(root, asked, args.set_param)
    params = parse(Params, values)
    for name in chosen:
        method_params(params, name)  # raises
    if args.trials < 2:
        raise UserError(f"--trials: {args.trials} leaves nothing to choose: the first is the recipe as it is; raise it")
    if args.epochs is not None and args.epochs < 1:
        raise UserError(f"--epochs: {args.epochs} trains nothing; give a number from 1")
    if args.held_out is not None and not 0 < args.held_out < 0.5:
        raise UserError(f"--held-out: a share of the training images above 0 and below 0.5, got {args.held_out}")
    if any(seed < 0 for seed in asked.seeds) or len(set(asked.seeds)) < len(asked.seeds):
        raise UserError(f"--seeds: different whole numbers from 0, got {' '.join(map(str, asked.seeds))}")
    if not (root / args.ranges).exists():
        raise UserError(f"--ranges: {args.ranges}: not found; {knobs.FILE} is the project's own")
    ranges = parse(knobs.Ranges, read_yaml(root / args.ranges), file=args.ranges)
    knobs.check(ranges, values["methods"], args.ranges)
    tuned_from = [*([compared] if args.file else []), *([asked.setup] if asked.setup else [])]
    name = args.name or "-".join(["tuned", *dict.fromkeys(tuned_from)])
    if not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"--name: {name!r} is no name of a file in {setup.FOLDER}/; use letters, digits, - and _")
    request = Request(
        methods=chosen,
        trials=args.trials,
        seeds=asked.seeds,
        values=values,
        overlay=_overlay(root, asked, base, values),
        ranges=ranges,
        file=args.ranges,
        name=name,
        held_out=args.held_out,
        epochs=args.epochs,
        command=command,
    )
    _check_place(root, request)
    return request


def _overlay(root: Path, asked: plan.Plan, base: setup.Overlay, values: setup.Overlay) -> dict[str, Any]:
    """What makes `values` of params.yaml: all that the set-up and the file of the comparison say, and -S."""
    own: dict[str, Any] = {}
    for part in (asked.defaults, setup.read(root, asked.setup, base) if asked.setup else {}, asked.overrides):
        own = setup.merged(own, part)
    return setup.merged(own, setup.difference(setup.merged(base, own), values))


def _check_place(root: Path, request: Request) -> None:
    """Raise `UserError` where the new set-up would replace one that is not of these methods' tuning."""
    place = f"{setup.FOLDER}/{request.name}.yaml"
    if not (root / place).exists():
        return
    found = tuned.read(root, request.name)
    if found is None:
        raise UserError(f"{place}: would be replaced, and tuning did not write it; choose another --name")
    if lost := sorted(set(found.methods) - set(request.methods)):
        raise UserError(
            f"{place}: would lose {', '.join(lost)}; add to --methods (trials are kept), or choose another --name"
        )


def studies(root: Path, request: Request) -> list[Study]:
    """One study per method, with the data of every seed. Raises `UserError` before anything is trained."""
    place, found = root / PLACE, []
    data: dict[tuple[str, int], Splits] = {}
    for name in request.methods:
        params = request.params(request.seeds[0])
        block = params.methods[name]
        varied = knobs.of_method(request.ranges, name, block, request.file)
        if (most := _settings(varied)) < request.trials:
            raise UserError(f"{request.file}: {name} has only {most:.0f} settings; lower --trials or add knobs")
        kind = methods.kind_of(name, params)
        for seed in request.seeds:
            if (kind, seed) not in data:
                data[kind, seed] = held_out(request.params(seed), kind, request.held_out, place)
        own = {seed: data[kind, seed] for seed in request.seeds}
        params = budget(params, next(iter(own.values())), request.held_out, request.epochs)
        found.append(opened(params, name, varied, own, place))
    return found


def _settings(varied: Mapping[str, knobs.Knob]) -> float:
    most = 1.0
    for knob in varied.values():
        most *= knob.settings
    return most


def held_out(params: Params, kind: str, share: float | None, place: Path) -> Splits:
    """The training split and the held-out images (`validation`) of a seed, `share` of the training images.

    The shards are tuning's own, below `place`; those of the test split are deleted. Raises `UserError`.
    """
    data = params.data.of(kind)
    if share is not None:
        data = data.model_copy(update={"validation": share})
    decided = data.model_dump(mode="json", exclude={"verify", "cache"})
    folder = place / "shards" / digests.of_values([decided, params.seed, watched(data)])
    with session.owned(folder):
        if not (folder / "index.json").exists():
            _log.info("shards of seed %d: %s", params.seed, "; ".join(said(write(data, params.seed, folder))))
        shutil.rmtree(folder / "test", ignore_errors=True)
    return {name: open_split(folder, name, data) for name in ("train", "validation")}


def budget(params: Params, splits: Splits, share: float | None, epochs: int | None) -> Params:
    """The conditions of a trial of `epochs`, None: `pretrain.epochs`. The warm-up keeps its share of them.

    With another `share` held out, a trial has as many steps as a run on all images of the training split. Raises
    `UserError`.
    """
    pretrain, trained = params.pretrain, splits["train"].samples
    longer = (epochs or pretrain.epochs) / pretrain.epochs
    if share is not None:
        batch, kind = pretrain.batch_size, splits["train"].kind
        whole = int((trained + splits["validation"].samples) * (1 - params.data.of(kind).validation))
        if trained < batch:
            raise UserError(f"--held-out: leaves {trained} training images, fewer than a batch of {batch}; lower it")
        longer *= (whole // batch) / (trained // batch)
    change = {"epochs": round(pretrain.epochs * longer), "warmup_epochs": pretrain.warmup_epochs * longer}
    return params.model_copy(update={"pretrain": pretrain.model_copy(update=change)})


def run(found: Sequence[Study], trials: int) -> None:
    """Run the trials that are missing, in turns, so that all methods have equally many whenever it is stopped."""
    for study in found:
        study.load()
        if study.trials:
            _log.info("%s: trials kept from before: %d", study.method, min(len(study.trials), trials))
    for number in range(1, trials + 1):
        for study in found:
            if len(study.trials) >= number:
                continue
            trial = study.run(f"{study.method}, trial {number} of {trials}")
            _log.info("%s", progress(found, study, trial, trials))


def progress(found: Sequence[Study], study: Study, trial: Trial, trials: int) -> str:
    """The line after a trial: what it found, the best so far, the rate and the time that is left."""
    what = f"{100 * trial.accuracy:.2f} %" if trial.state == "finished" else f"{trial.state} ({trial.reason})"
    best = study.best(trials)
    best_so_far = f"best {100 * best.accuracy:.2f} % in trial {best.number}" if best else "none finished"
    states = [one.state for one in study.trials]
    done = sum(min(len(one.trials), trials) for one in found)
    seconds = [one.seconds for each in found for one in each.trials]
    left = sum((trials - len(one.trials)) * _seconds(one, statistics.mean(seconds)) for one in found)
    return (
        f"trial {done} of {trials * len(found)}: {study.method}, trial {trial.number} of {trials}: {what}; "
        f"{best_so_far}, pruned {states.count('pruned')}, failed {states.count('failed')}; "
        f"{trial.seconds:.0f} s, about {duration(left)} left"
    )


def _seconds(study: Study, otherwise: float) -> float:
    """Mean time of the study's trials."""
    return statistics.mean([trial.seconds for trial in study.trials]) if study.trials else otherwise


def conclude(root: Path, request: Request, found: Sequence[Study], out: Path) -> None:
    """Write the report, the trials and the set-up, from as many trials as every method has.

    Raises `UserError` where some method has fewer than two trials, or none that was trained to its end.
    """
    count = min(request.trials, *(len(study.trials) for study in found))
    if count < 2:
        raise UserError("stopped before every method had two trials: no set-up is written; the same command continues")
    ranges = digests.of_values(request.ranges.model_dump())
    tuning = Tuning(
        found, count, request.name, request.overlay, request.file, ranges, request.command, commit() or "unknown"
    )
    for path, text in ((out, tuning.report()), (out.with_suffix(".csv"), tuning.csv())):
        with replaced(path) as new:
            new.write_text(text, encoding="utf-8")
    print(f"tuning: {out}, all trials: {out.with_suffix('.csv')}")
    if failed := [study for study in found if study.best(count) is None]:
        names = ", ".join(study.method for study in failed)
        raise UserError(
            f"{names}: no trial was trained to its end, so no set-up is written; the first of {failed[0].method} ended "
            f"with: {failed[0].trials[0].reason}"
        )
    with replaced(root / setup.FOLDER / f"{request.name}.yaml") as new:
        new.write_text(tuning.set_up(), encoding="utf-8")
    print(f"set-up: {setup.FOLDER}/{request.name}.yaml, {count} trials per method")


@contextlib.contextmanager
def owned(found: Sequence[Study]) -> Iterator[None]:
    """Hold the locks of all studies: another process that tunes one of them waits."""
    with contextlib.ExitStack() as stack:
        for folder in sorted(
            study.folder for study in found
        ):  # always in this order, so that no two wait for each other
            stack.enter_context(session.owned(folder))
        yield


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, help="a comparison of methods, whose conditions are tuned for")
    parser.add_argument("--methods", nargs="+", metavar="METHOD", help="default: those of the file, else all")
    parser.add_argument("--trials", type=int, default=20, help="per method; the first is the recipe as it is (20)")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="a trial is the mean over these (0)")
    parser.add_argument("--setup", metavar="NAME", help=f"a file of {setup.FOLDER}/: {', '.join(setup.names(Path()))}")
    parser.add_argument("-S", "--set-param", action="append", default=[], help="a further override, as of dvc exp run")
    parser.add_argument("--epochs", type=int, help="of a trial; default: pretrain.epochs, as in a run")
    parser.add_argument("--held-out", type=float, metavar="SHARE",
                        help="of the training images, which judge; default: data.validation")  # fmt: skip
    parser.add_argument("--ranges", default=knobs.FILE, help=f"the knobs and their ranges ({knobs.FILE})")
    parser.add_argument("--name", help="of the set-up that is written (tuned-<set-up>)")
    parser.add_argument("--out", type=Path, help="the report (compare/tuned-<set-up>/index.md)")
    return parser


def main() -> None:
    args = arguments().parse_args()
    root = Path()
    request = requested(root, args, shlex.join(["python", "-m", "selfsup.compare.tune", *sys.argv[1:]]))
    out = args.out or Path(plan.FOLDER, request.name, "index.md")
    found = studies(root, request)
    signals.stop_on_sigterm()
    stopped = False
    with owned(found):
        try:
            run(found, request.trials)
        except (KeyboardInterrupt, SystemExit) as end:
            if isinstance(end, SystemExit) and end.code != 128 + signal.SIGINT:
                raise
            signal.alarm(0)  # set by the training that was interrupted, to end a process that does not end
            stopped = True
        conclude(root, request, found, out)
    if stopped:
        raise SystemExit(128 + signal.SIGINT)


if __name__ == "__main__":
    with one_line_errors():
        main()
