"""The trials of one method: a setting is suggested, trained, read on held-out training images, and kept on disk.

A method's study is a folder that is named by a digest of all that decides its trials. Every trial there is a file, and
what a trial tries depends on the files of the trials before it, on the first seed and on its number: no sampler has a
state. A tuning that was killed therefore continues as if it had not been, and more trials continue a study of fewer.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import PositiveInt
from torch import nn

from selfsup import digests, methods
from selfsup.compare import knobs
from selfsup.compare.knobs import Knob, Scalar
from selfsup.config import Strict
from selfsup.data.loader import Split
from selfsup.errors import UserError
from selfsup.files import write_json
from selfsup.imports import PACKAGE
from selfsup.params import MethodParams, Params
from selfsup.processes.accelerator import make_accelerator
from selfsup.training import session
from selfsup.training.build import method_params
from selfsup.training.probe import knn_probe

FIRST = 5  # trials that are drawn at random, the recipe among them, and that none is pruned among
READINGS = 5  # about, of a training, by which a trial may be pruned
SHARE = 1 / 3  # of the epochs before which no trial is pruned
AGAIN = 50  # draws of a setting until one is new
JUDGES = ("training/probe.py", "evaluation/neighbours.py", "features/encode.py", "compare/trials.py")
_log = logging.getLogger("selfsup.compare")
State = Literal["finished", "pruned", "failed"]
Splits = Mapping[str, Split]  # train, and validation: the held-out images


class Trial(Strict):
    """A trial that has ended: the content of its file."""

    number: PositiveInt  # 1: the recipe as it stands
    values: dict[str, Scalar]  # of the knobs, by path
    state: State
    reason: str | None  # why it was pruned or failed
    accuracies: list[float]  # kNN accuracy of the held-out images, one per seed that was trained to its end
    readings: dict[int, float]  # kNN accuracy by epoch, of the first seed
    seconds: float

    @property
    def accuracy(self) -> float:
        """Of a finished trial, the mean over seeds."""
        return statistics.mean(self.accuracies)


class Pruned(Exception):
    """Ends a training whose readings are below the median."""


@dataclass
class Study:
    """The trials of one method. `params` holds the conditions of a trial and the recipe as it stands."""

    params: Params
    method: str
    knobs: dict[str, Knob]
    data: dict[int, Splits]  # by seed
    folder: Path
    trials: list[Trial] = field(default_factory=list)

    def load(self) -> None:
        """Read the trials that are on disk, and remove what a killed process left of them."""
        self.trials = kept(self.folder)
        for work in self.folder.glob("work-*"):
            if work != self._work(len(self.trials) + 1):
                shutil.rmtree(work, ignore_errors=True)

    def _work(self, number: int) -> Path:
        return self.folder / f"work-{number:03d}"

    def best(self, count: int) -> Trial | None:
        """The best of the first `count` trials, of equal ones the earliest; None: none was trained to its end."""
        finished = [trial for trial in self.trials[:count] if trial.state == "finished"]
        return max(finished, key=lambda trial: (trial.accuracy, -trial.number), default=None)

    def block(self, trial: Trial) -> dict[str, Any]:
        return knobs.applied(self.params.methods[self.method], trial.values)

    def run(self, title: str) -> Trial:
        """Run the next trial, keep it and return it. An interrupted trial resumes from its checkpoint.

        Raises `OSError`, and `UserError` for a checkpoint that could not be written.
        """
        number = len(self.trials) + 1
        pruner, values = self._suggested(number)
        work = self._work(number)
        state: State = "finished"
        reason, accuracies, readings = None, [], {}
        start = time.monotonic()

        def hear(epoch: int, accuracy: float) -> None:
            if epoch not in readings:
                readings[epoch] = accuracy
                pruner.report(accuracy, epoch)
                if epoch < self.params.pretrain.epochs and pruner.should_prune():
                    raise Pruned(f"below the median of earlier trials after {epoch} epochs")

        try:
            params, block = self._setting(values)
            for seed, splits in self.data.items():
                first = seed == next(iter(self.data))
                found = trained(
                    params.model_copy(update={"seed": seed}), self.method, block, splits, work / f"seed-{seed}", title,
                    hear if first else lambda *_: None,
                )  # fmt: skip
                accuracies.append(found)
        except Pruned as end:
            state, reason = "pruned", str(end)
        except (UserError, ValueError, ArithmeticError, RuntimeError) as error:
            if isinstance(error.__cause__, OSError):
                raise
            _log.debug("the trial failed", exc_info=error)
            state, reason = "failed", str(error) or type(error).__name__
        seconds = time.monotonic() - start
        trial = Trial(
            number=number, values=values, state=state, reason=reason, accuracies=accuracies, readings=readings,
            seconds=round(seconds, 1),
        )  # fmt: skip
        write_json(self.folder / f"trial-{number:03d}.json", trial.model_dump())
        shutil.rmtree(work, ignore_errors=True)
        self.trials.append(trial)
        return trial

    def _setting(self, values: Mapping[str, Scalar]) -> tuple[Params, MethodParams]:
        """The conditions with the method's block changed, and that block. Raises `UserError`."""
        block = knobs.applied(self.params.methods[self.method], values)
        params = self.params.model_copy(update={"methods": {**self.params.methods, self.method: block}})
        return params, method_params(params, self.method)

    def _suggested(self, number: int) -> tuple[Any, dict[str, Scalar]]:
        """Optuna's trial, which hears of readings and judges them, and the values of the knobs: the recipe's at first,
        then those that TPE suggests, if they are new."""
        import optuna

        known = [trial.values for trial in self.trials]
        for again in range(AGAIN):
            study = self._of_optuna(number, again)
            if number == 1:
                study.enqueue_trial({path: knob.own for path, knob in self.knobs.items()})
            asked = study.ask({path: distribution(optuna, knob) for path, knob in self.knobs.items()})
            values = {path: knob.rounded(asked.params[path]) for path, knob in self.knobs.items()}
            if values not in known:
                return asked, values
        every = itertools.product(*(settings(knob) for knob in self.knobs.values()))
        left = (dict(zip(self.knobs, one, strict=True)) for one in every)
        return asked, next((values for values in left if values not in known), values)

    def _of_optuna(self, number: int, again: int) -> Any:
        """Optuna's study, with the trials so far."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        key = f"{next(iter(self.data))} {self.method} {number} {again}"
        sampler = optuna.samplers.TPESampler(
            n_startup_trials=FIRST, seed=int(hashlib.sha256(key.encode()).hexdigest()[:8], 16)
        )
        warm_up = math.ceil(SHARE * self.params.pretrain.epochs)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=FIRST, n_warmup_steps=warm_up)
        study = optuna.create_study(direction="maximize", sampler=sampler, pruner=pruner)
        of = {path: distribution(optuna, knob) for path, knob in self.knobs.items()}
        for trial in self.trials:
            done = trial.state == "finished"
            # A failed trial is for TPE a pruned one without a reading: worse than all others.
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.values),
                    distributions=of,
                    value=trial.accuracy if done else None,
                    intermediate_values=trial.readings if trial.state != "failed" else {},
                    state=optuna.trial.TrialState.COMPLETE if done else optuna.trial.TrialState.PRUNED,
                )
            )
        return study


def distribution(optuna: Any, knob: Knob) -> Any:
    """A knob's range in Optuna's words."""
    if knob.choices:
        return optuna.distributions.CategoricalDistribution(knob.choices)
    if knob.whole:
        return optuna.distributions.IntDistribution(int(knob.low), int(knob.high), log=knob.log)
    return optuna.distributions.FloatDistribution(knob.low, knob.high, log=knob.log)


def settings(knob: Knob) -> Sequence[Scalar]:
    """All values of a knob that has finitely many, else its own."""
    if knob.choices:
        return knob.choices
    return range(int(knob.low), int(knob.high) + 1) if knob.whole else (knob.own,)


def judge(splits: Splits) -> Callable[[nn.Module], Mapping[str, float]]:
    """The kNN reading of the held-out images, a function of the encoder. Raises `UserError`."""
    probe = knn_probe(splits["train"], splits["validation"])
    if probe is None:
        raise UserError("data.labels: tuning compares settings by kNN, which needs labels; add class folders")
    return probe


def trained(
    params: Params,
    method: str,
    block: MethodParams,
    splits: Splits,
    folder: Path,
    title: str,
    hear: Callable[[int, float], None],
) -> float:
    """Train one setting with one seed; the kNN accuracy of the held-out images after the last step.

    `hear(epoch, accuracy)` is called for each reading during training, also for those from before an interruption.
    Checkpoints are kept in `folder`. Raises `UserError` for a loss that is not finite and for a collapse.
    """
    probe = judge(splits)
    curves = folder / "curves.jsonl"
    lines = curves.read_text().splitlines() if curves.exists() else []

    per_epoch = splits["train"].samples // params.pretrain.batch_size

    def heard(row: Mapping[str, float], step: int) -> None:
        if "knn_validation" in row:
            hear(step // per_epoch, row["knn_validation"])

    for line in lines:
        if line.endswith("}"):  # the last line may be incomplete
            row = json.loads(line)
            heard(row, row["step"])
    accelerator = make_accelerator(params.pretrain.precision)  # one per training, as it keeps its models
    task, result = session.run(params, method, block, splits, folder, title, heard, accelerator)
    if result.alarm:
        raise UserError(result.alarm)
    return dict(probe(task.eval().encoder()))["knn_validation"]


def opened(params: Params, method: str, ranges: dict[str, Knob], data: dict[int, Splits], place: Path) -> Study:
    """The study of a method in `place`; `load` reads its trials. Raises `UserError`."""
    import optuna

    for splits in data.values():
        judge(splits)  # raises
    epochs = params.pretrain.epochs
    pretrain = params.pretrain.model_copy(update={"knn_every": max(1, round(epochs / READINGS))})
    params = params.model_copy(update={"pretrain": pretrain})
    block = method_params(params, method)
    decided = {
        "method": method,
        "recipe": params.methods[method],
        "knobs": {path: [knob.own, knob.low, knob.high, knob.log, knob.choices] for path, knob in ranges.items()},
        "data": {seed: checksum(splits) for seed, splits in data.items()},
        "reads": params.data.of(methods.kind_of(method, params)).read(),
        "backbone": params.backbones[block.backbone].model_dump(),
        **{name: getattr(params, name).model_dump() for name in ("views", "pretrain")},
        "code": session.code_checksum(method),
        "judges": digests.of_files(*(PACKAGE / name for name in JUDGES)),
        "optuna": optuna.__version__,
    }
    folder = place / f"{method}-{digests.of_values(decided)}"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "study.json", decided)
    return Study(params, method, ranges, data, folder)


def kept(folder: Path) -> list[Trial]:
    """The trials in a study's folder, up to the first that is missing. A damaged file is a missing one."""
    found: list[Trial] = []
    while (path := folder / f"trial-{len(found) + 1:03d}.json").exists():
        try:
            found.append(Trial.model_validate_json(path.read_text(encoding="utf-8")))
        except ValueError:
            _log.warning("warning: %s is damaged; the trial is run again", path)
            break
    return found


def checksum(splits: Splits) -> str:
    """Digest of the bytes of the training and held-out shards; the test shards are not in it."""
    files = [[shard.sha256, shard.table.sha256] for name in sorted(splits) for shard in splits[name].shards]
    return digests.of_values(files)
