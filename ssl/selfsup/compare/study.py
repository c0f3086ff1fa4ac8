"""A study, compare/<name>.yaml: many experiments that differ in named settings, repeated over seeds.

Every experiment is a cell: a series, a setting (or a pair of settings) and a seed. `cells` lists them with their
overrides, all checked before the first one is run, and `run` runs them one after another.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from selfsup import methods
from selfsup.compare import setup
from selfsup.compare.experiment import SOURCES, Outcome, experiment, outcome
from selfsup.compare.setup import Overlay
from selfsup.config import Strict, choose, parse, read_yaml
from selfsup.errors import UserError
from selfsup.evaluation import protocols

FOLDER = "compare"
_log = logging.getLogger("selfsup.compare")
Parameters = dict[str, Any]  # an overlay: some of the parameters, in the form of params.yaml


class Study(Strict):
    """The content of `compare/<name>.yaml`."""

    title: str
    paper: str | None = None
    expect: str  # what the paper found
    axis: str  # what the settings are
    show: Annotated[dict[str, str], Field(min_length=1)]  # title: reading, such as knn.top1 or run.seconds
    defaults: Parameters = Field(default={})  # a set-up and -S come after these
    always: Parameters = Field(default={})  # and before these
    series: dict[str, Parameters] = Field(default={"": {}})
    pairs: bool = False  # all pairs of settings, and each alone
    settings: dict[str, Parameters] = Field(default={})
    methods: bool = False  # instead of settings: every method is one


@dataclass(frozen=True)
class Cell:
    """One experiment of a study. `other` is the second setting of a pair, else `setting`."""

    series: str
    setting: str
    other: str
    seed: int
    title: str
    overrides: tuple[str, ...]  # in the form of `dvc exp run -S`


@dataclass(frozen=True)
class Found:
    """A cell and what its experiment found."""

    cell: Cell
    outcome: Outcome


def names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def read(root: Path, name: str) -> Study:
    """The study of that name, without its cells' parameters checked. Raises `UserError`."""
    file = f"{FOLDER}/{name}.yaml"
    try:
        choose(f"{FOLDER}/", name, names(root))
        study = parse(Study, read_yaml(root / file), file=file)
        for reading in study.show.values():
            source, _, figure = reading.partition(".")
            choose(f"{file}: show", source, [*protocols.names(), *SOURCES])
            if source in SOURCES:
                choose(f"{file}: show: {source}", figure, list(SOURCES[source]))
    except ValueError as error:
        raise UserError(str(error)) from None
    if study.pairs and (len(study.series) > 1 or study.methods):
        raise UserError(f"{file}: pairs: a study of pairs has one series, and is not of methods; remove the others")
    if bool(study.settings) == study.methods:
        raise UserError(f"{file}: settings: name some, or have `methods: true` instead")
    return study


def of_methods(study: Study, chosen: Sequence[str] | None) -> Study:
    """The study with the chosen methods as settings, None: all; a study of other settings is returned as it is.

    Raises `UserError` for a method that is not known, and for methods where the study is of other settings.
    """
    if not study.methods:
        if chosen is None:
            return study
        raise UserError(f"--methods: the settings of this study are {study.axis}, not methods; leave --methods out")
    try:
        for name in chosen or ():
            choose("--methods", name, methods.names())
    except ValueError as error:
        raise UserError(str(error)) from None
    settings = {name: {"method": name} for name in dict.fromkeys(chosen or methods.names())}
    return study.model_copy(update={"settings": settings})


def cells(
    root: Path, name: str, study: Study, seeds: Sequence[int], set_up: str | None = None, more: Sequence[str] = ()
) -> list[Cell]:
    """Every experiment of a study, checked, seed by seed. `more` are overrides between the set-up and the study's own.

    Raises `UserError`, which names the file, for a setting that is not a valid change of params.yaml.
    """
    base = setup.base_of(root)
    before = [study.defaults, *([setup.read(root, set_up, base)] if set_up else [])]
    found = []
    for series, of_series in study.series.items():
        for (setting, other), own in _settings(study).items():
            after = [study.always, of_series, *own]
            both = [*before, *after]
            setup.check(_onto(base, both), _onto({}, both), f"{FOLDER}/{name}.yaml")
            words = [*_overrides(base, before), *more, *_overrides(_onto(base, before), after)]
            value = setting if setting == other else f"{setting} and {other}"
            title = f"{series + ', ' if series else ''}{study.axis} {value}"
            found.append((series, setting, other, title, words))
    return [
        Cell(series, setting, other, seed, f"{title}, seed {seed}", (*words, f"seed={seed}"))
        for seed in seeds
        for series, setting, other, title, words in found
    ]


def run(
    root: Path,
    name: str,
    plan: Sequence[Cell],
    sources: Sequence[str],
    write: Callable[[Sequence[Found]], object],
) -> list[Found]:
    """Run the cells one after another, and `write` after each what was found so far.

    Raises `UserError` at the first that fails. The same call again continues there: DVC restores finished runs.
    """
    found: list[Found] = []
    for number, cell in enumerate(plan, start=1):
        _log.info("%s, run %d of %d: %s", name, number, len(plan), cell.title)
        with experiment(root, cell.overrides, f"{FOLDER}/{name}.yaml: {cell.title}"):
            found.append(Found(cell, outcome(root, sources)))
        write(found)
    return found


def _settings(study: Study) -> dict[tuple[str, str], list[Overlay]]:
    """Overlays by setting, alone and then in pairs."""
    single = {(name, name): [own] for name, own in study.settings.items()}
    pairs = combinations(study.settings.items(), 2) if study.pairs else ()
    return single | {(a, b): [first, second] for (a, first), (b, second) in pairs}


def _onto(base: Overlay, overlays: Sequence[Overlay]) -> Overlay:
    for overlay in overlays:
        base = setup.merged(base, overlay)
    return base


def _overrides(base: Overlay, overlays: Sequence[Overlay]) -> list[str]:
    words: list[str] = []
    for overlay in overlays:
        words += setup.overrides(base, overlay)
        base = setup.merged(base, overlay)
    return words
