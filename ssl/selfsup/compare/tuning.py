"""What a tuning writes: a set-up with the winners, a report in Markdown, and all trials as CSV."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruamel.yaml import YAML

from selfsup import digests
from selfsup.compare import knobs, setup
from selfsup.compare.knobs import Scalar
from selfsup.compare.progress import duration
from selfsup.compare.trials import Study, Trial, checksum
from selfsup.compare.tuned import Tuned, Winner

COLUMNS = (
    "method", "trials (pruned, failed)", "the recipe as it is, %", "best, %", "gain, points", "best trial",
    "knobs changed", "seconds per trial",
)  # fmt: skip


@dataclass(frozen=True)
class Tuning:
    """A tuning that has ended: studies with at least `count` trials each, of which no later one counts."""

    studies: Sequence[Study]
    count: int
    name: str  # of the set-up that is written
    overlay: Mapping[str, Any]  # the set-up that was tuned, and -S
    file: str  # of the ranges
    ranges: str  # its digest
    command: str
    commit: str

    def set_up(self) -> str:
        """The text of the set-up: its head, the parameters and the section `tuned`. Every study has a best trial."""
        overlay: dict[str, Any] = dict(self.overlay)
        for study in self.studies:
            own = knobs.overlay(study.params.methods[study.method], self._best(study).values)
            overlay = setup.merged(overlay, {"methods": {study.method: own}})
        data = {"data": overlay.pop("data")} if "data" in overlay else {}
        yaml, text = YAML(pure=True), io.StringIO()
        yaml.width = 1000  # no line is broken
        yaml.dump({**data, **overlay, setup.TUNED: self._section().model_dump()}, text)
        return self._head() + text.getvalue()

    def _section(self) -> Tuned:
        winners = {}
        for study in self.studies:
            first, best = study.trials[0], self._best(study)
            winners[study.method] = Winner(
                trials=self.count,
                trial=best.number,
                recipe=first.accuracy if first.state == "finished" else None,
                best=best.accuracy,
                block=digests.of_values(study.block(best)),
            )
        study = self.studies[0]
        held_out = [splits["validation"].samples for splits in study.data.values()]
        return Tuned(
            seeds=list(study.data),
            epochs=study.params.pretrain.epochs,
            held_out=held_out,
            trained=[splits["train"].samples for splits in study.data.values()],
            data=[checksum(splits) for splits in study.data.values()],
            code=self.commit,
            ranges=self.ranges,
            methods=winners,
        )

    def _head(self) -> str:
        seconds = sum(trial.seconds for study in self.studies for trial in study.trials[: self.count])
        lines = [
            f"Recipes tuned alike: {self.count} trials per method, the first of which is the recipe as it was.",
            *self._conditions(),
            "",
            f"  dvc exp run $(python -m selfsup.compare.setup {self.name}) -S method={self.studies[0].method}",
            f"  {self.command}    # wrote this file",
            "",
            f"Time: the trials took {duration(seconds)}.",
            "Expect: kNN accuracy of the held-out images, %, of the recipe as it was and of the best trial:",
            *(f"  {study.method} {_percent(study.trials[0])}, {_percent(self._best(study))}" for study in self.studies),
            "The best of many readings of the same images is too high. Figures to believe are those of the test split.",
        ]
        return "".join(f"# {line}".rstrip() + "\n" for line in lines)

    def _conditions(self) -> list[str]:
        """On what trials were trained and judged: sentences."""
        study = self.studies[0]
        counts = [(splits["train"].samples, splits["validation"].samples) for splits in study.data.values()]
        smallest = min(number for _, number in counts)
        trained, held_out = (" and ".join(map(str, sizes)) for sizes in zip(*counts, strict=True))
        seeds, noun = " ".join(map(str, study.data)), next(iter(study.data.values()))["train"].data.noun
        return [
            f"A trial trains {study.params.pretrain.epochs} epochs on {trained} {noun} (seeds: {seeds}).",
            f"It is judged by kNN on {held_out} other {noun}, held out of the training {noun}.",
            f"One of these is {100 / smallest:.2f} points. The test split of the same seed was not read.",
        ]

    def report(self) -> str:
        """The report: what tuning changed, per method."""
        rows = [COLUMNS, ["---"] * len(COLUMNS), *map(self._row, self.studies)]
        lines = [
            f"# Tuning, {self.name}",
            "",
            *self._conditions(),
            "",
            *("| " + " | ".join(row) + " |" for row in rows),
            "",
            f"Trial 1 is the recipe as it is. A reading has a standard error of up to {self._error():.1f} points, so a",
            "smaller gain may be noise. The best of many readings of the same images is too high, and so is the gain.",
            "What tuning is worth is measured on the test split.",
            "",
            f"- `{self.command}`, commit {self.commit}",
            f"- ranges: `{self.file}`, digest {self.ranges}",
        ]
        return "\n".join(lines) + "\n"

    def _error(self) -> float:
        """The largest standard error of a best reading p of n held-out samples, points: 100 sqrt(p (1 - p) / n)."""
        found = [0.0]
        for study in self.studies:
            best = study.best(self.count)
            count = sum(splits["validation"].samples for splits in study.data.values())
            found += [100 * math.sqrt(best.accuracy * (1 - best.accuracy) / count)] if best else []
        return max(found)

    def _row(self, study: Study) -> list[str]:
        trials, best = study.trials[: self.count], study.best(self.count)
        states = [trial.state for trial in trials]
        gain = chosen = "-"
        if best:
            changed = self._changed(study).items()
            chosen = ", ".join(f"{path} {study.knobs[path].own} to {new}" for path, new in changed) or "none"
            if trials[0].state == "finished":
                gain = f"{100 * (best.accuracy - trials[0].accuracy):+.1f}"
        return [
            study.method,
            f"{len(trials)} ({states.count('pruned')}, {states.count('failed')})",
            _percent(trials[0]),
            _percent(best) if best else "-",
            gain,
            str(best.number) if best else "-",
            chosen,
            f"{statistics.mean(trial.seconds for trial in trials):.0f}",
        ]

    def csv(self) -> str:
        """All trials, one line each; a knob that a method does not have is an empty cell."""
        paths = list(dict.fromkeys(path for study in self.studies for path in study.knobs))
        columns = ["method", "trial", "state", "knn", "last_epoch_read", "last_reading", "seconds", "reason", *paths]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for study in self.studies:
            for trial in study.trials[: self.count]:
                last = max(trial.readings, default=None)
                cells = {
                    "method": study.method,
                    "trial": trial.number,
                    "state": trial.state,
                    "knn": trial.accuracy if trial.state == "finished" else None,
                    "last_epoch_read": last,
                    "last_reading": None if last is None else trial.readings[last],
                    "seconds": trial.seconds,
                    "reason": trial.reason,
                }
                writer.writerow(cells | trial.values)
        return text.getvalue()

    def _best(self, study: Study) -> Trial:
        best = study.best(self.count)
        if best is None:
            raise ValueError(f"{study.method}: no trial was trained to its end")
        return best

    def _changed(self, study: Study) -> dict[str, Scalar]:
        """The best trial's values that differ from the recipe's."""
        return {path: value for path, value in self._best(study).values.items() if value != study.knobs[path].own}


def _percent(trial: Trial) -> str:
    return f"{100 * trial.accuracy:.1f}" if trial.state == "finished" else trial.state
