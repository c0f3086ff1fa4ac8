"""A comparison as it is asked for, compare/<name>.yaml: many experiments that differ in named settings, over seeds.

Every experiment is a cell: a row of the table (a method, a setting, or a pair of settings) and a seed. `cells` lists
them with all their parameters, every one checked before the first is run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from selfsup import digests, methods
from selfsup.compare import setup
from selfsup.compare.by_dvc import override
from selfsup.compare.comparison import Design
from selfsup.compare.readings import SOURCES
from selfsup.compare.setup import Overlay, merged
from selfsup.config import Strict, choose, parse, read_yaml
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.params import Params

FOLDER = "compare"
METHODS = "methods"  # the comparison of methods that needs no file of its own
Parameters = dict[str, Any]  # an overlay: some of the parameters, in the form of params.yaml


class Plan(Strict):
    """The content of `compare/<name>.yaml`."""

    title: str
    paper: str | None = None
    expect: str  # what the paper found
    axis: str  # what the settings are
    show: Annotated[dict[str, str], Field(min_length=1)]  # title: reading, such as knn.top1 or run.seconds
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1, default=[0])]
    setup: str | None = None  # a file of setups/
    defaults: Parameters = Field(default={})  # a set-up comes after these
    overrides: Parameters = Field(default={})  # after the set-up, before -S
    always: Parameters = Field(default={})  # after -S
    series: Annotated[dict[str, Parameters], Field(min_length=1, default={"": {}})]
    pairs: bool = False  # all pairs of settings, and each alone
    settings: dict[str, Parameters] = Field(default={})
    methods: bool | Annotated[list[str], Field(min_length=1)] = False  # instead of settings; true: every method


@dataclass(frozen=True)
class Cell:
    """One experiment of a comparison. `other` is the second setting of a pair, else `setting`."""

    row: str
    series: str
    setting: str
    other: str
    seed: int
    values: Mapping[str, Any]  # the whole params.yaml of the experiment

    @property
    def title(self) -> str:
        return f"{self.row}, seed {self.seed}"

    @property
    def method(self) -> str:
        return str(self.values["method"])


def names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def read(root: Path, name: str) -> Plan:
    """The comparison of that name, without its cells' parameters checked. Raises `UserError`."""
    file = f"{FOLDER}/{name}.yaml"
    try:
        choose(f"{FOLDER}/", name, names(root))
        plan = parse(Plan, read_yaml(root / file), file=file)
        for reading in plan.show.values():
            source, _, figure = reading.partition(".")
            choose(f"{file}: show", source, [*protocols.names(), *SOURCES])
            if source in SOURCES:
                choose(f"{file}: show: {source}", figure, list(SOURCES[source]))
    except ValueError as error:
        raise UserError(str(error)) from None
    if plan.pairs and (len(plan.series) > 1 or plan.methods):
        raise UserError(f"{file}: pairs: a study of pairs has one series, and is not of methods; remove the others")
    if bool(plan.settings) == bool(plan.methods):
        raise UserError(f"{file}: settings: name some, or have `methods: true` instead")
    return of_methods(plan, plan.methods, f"{file}: methods") if isinstance(plan.methods, list) else plan


def of_methods(plan: Plan, chosen: Sequence[str] | None, where: str = "--methods") -> Plan:
    """The plan with the chosen methods as settings; a plan of other settings is returned as it is.

    None are all methods that see no labels: the supervised one is a baseline, and would be the best of every table.
    Raises `UserError` for a method that is not known or named twice, and for methods where the plan is of others.
    """
    if not plan.methods:
        if chosen is None:
            return plan
        raise UserError(f"{where}: the rows of this comparison are {plan.axis}, not methods; leave {where} out")
    if chosen is None and isinstance(plan.methods, list):
        return plan
    _listed(where, chosen or (), methods.names())
    blind = [name for name, about in sorted(methods.declared().items()) if about.family != "with labels"]
    settings = {name: {"method": name} for name in chosen or blind}
    return plan.model_copy(update={"settings": settings, "methods": list(settings)})


def of_protocols(plan: Plan, chosen: Sequence[str] | None) -> Plan:
    """The plan with these protocols, None: those that it has. Raises `UserError` for one that is not known."""
    if chosen is None:
        return plan
    _listed("--protocols", chosen, protocols.names())
    listed = {
        key: [name for name in chosen if protocols.find(name).inside == inside]
        for key, inside in (("protocols", False), ("encoder_protocols", True))
    }
    if not listed["protocols"]:
        raise UserError(f"--protocols {' '.join(chosen)}: name one that judges features too, such as knn")
    return plan.model_copy(update={"always": merged(plan.always, {"evaluation": listed})})


def _listed(where: str, chosen: Sequence[str], known: list[str]) -> None:
    for place, name in enumerate(chosen):
        try:
            choose(where, name, known)
        except ValueError as error:
            raise UserError(str(error)) from None
        if name in chosen[:place]:
            raise UserError(f"{where}: names {name} twice; remove one")


def design(plan: Plan) -> Design | None:
    """What the page needs to draw a study; None where the rows are methods."""
    if plan.methods:
        return None
    cells = {
        _row(series, setting, other): (series, setting, other)
        for series in plan.series
        for setting, other in _settings(plan)
    }
    return Design(plan.paper, plan.expect, plan.axis, plan.show, cells, plan.pairs)


def cells(root: Path, name: str, plan: Plan, more: Sequence[str] = ()) -> list[Cell]:
    """Every experiment of a comparison, checked, seed by seed. `more` are overrides in the form of `dvc exp run -S`.

    They come after the set-up, and before what the comparison varies. Raises `UserError`, which names the file, for a
    setting that is not a valid change of params.yaml, for settings that are the same, for a seed named twice, and for
    an override of the seed or of what the rows are.
    """
    file = f"{FOLDER}/{name}.yaml"
    instead = {"seed": "--seeds", **({"method": "--methods"} if plan.methods else {})}
    for word in more:
        if option := instead.get(_key(word)):
            raise UserError(f"-S {word}: a comparison sets this for each run; use {option} instead")
    before = start(root, plan, more)
    if len(set(plan.seeds)) < len(plan.seeds):
        raise UserError(f"--seeds: names a seed twice, got {' '.join(map(str, plan.seeds))}; remove one")
    found = []
    for series, of_series in plan.series.items():
        for (setting, other), own in _settings(plan).items():
            overlays = [plan.always, of_series, *own]
            values = _onto(before, overlays)
            touched = _onto({}, [plan.defaults, plan.overrides, *overlays])
            setup.check(values, touched, file)
            found.append((_row(series, setting, other), series, setting, other, values))
    _different(file, {row: values for row, *_, values in found})
    return [
        Cell(row, series, setting, other, seed, {**values, "seed": seed})
        for seed in plan.seeds
        for row, series, setting, other, values in found
    ]


def start(root: Path, plan: Plan, more: Sequence[str]) -> Overlay:
    """The parameters before what the comparison varies. Raises `UserError`."""
    base = setup.base_of(root)
    before = _onto(base, [plan.defaults])
    if plan.setup:
        before = merged(before, setup.read(root, plan.setup, base))
    before = merged(before, plan.overrides)
    after = overridden(before, more)
    if more and _valid(before):  # else the file is to blame
        setup.check(after, {}, "-S")
    return after


def _valid(values: Overlay) -> bool:
    try:
        parse(Params, values)
    except UserError:
        return False
    return True


def overridden(values: Overlay, words: Sequence[str]) -> Overlay:
    """`values` after overrides in the form of `-S`, as DVC itself applies them. Raises `UserError`."""
    if not words:
        return values
    for word in words:
        key = _key(word)
        if not word.startswith("+") and not _has(values, key):
            raise UserError(f"-S {word}: params.yaml has no {key}; correct the name")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "params.json")
        path.write_text(json.dumps(values))
        override(path, words)
        return json.loads(path.read_text())


def _key(word: str) -> str:
    """The name of the parameter in an override such as `++views.flip=0.5`."""
    return word.lstrip("+~").partition("=")[0]


def _has(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def relevant(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of params.yaml what decides the results of an experiment, its seed aside."""
    method = values["method"]
    block = values["methods"][method]
    kept = {key: values[key] for key in ("method", "data", "views", "pretrain", "evaluation")}
    return kept | {
        "knobs": block,
        "backbone": values["backbones"].get(block["backbone"]),
        "baselines": sorted(values["baselines"]),
    }


def _different(file: str, settings: Mapping[str, Overlay]) -> None:
    seen: dict[str, str] = {}
    for row, values in settings.items():
        first = seen.setdefault(digests.of_values(relevant(values)), row)
        if first != row:
            raise UserError(f"{file}: {first} and {row} are the same experiment; remove one, or let them differ")


def _settings(plan: Plan) -> dict[tuple[str, str], list[Overlay]]:
    """Overlays by setting, alone and then in pairs."""
    single = {(name, name): [own] for name, own in plan.settings.items()}
    pairs = combinations(plan.settings.items(), 2) if plan.pairs else ()
    return single | {(a, b): [first, second] for (a, first), (b, second) in pairs}


def _row(series: str, setting: str, other: str) -> str:
    value = setting if setting == other else f"{setting} and {other}"
    return f"{series}, {value}" if series else value


def _onto(base: Overlay, overlays: Sequence[Overlay]) -> Overlay:
    for overlay in overlays:
        base = merged(base, overlay)
    return base
