"""All experiments of the present data set: those run by hand, those of comparisons, and the workspace.

Runs of other code, another budget, other protocols' parameters or another backbone of the same name differ in their
conditions, and are therefore shown in blocks that are never ranked together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from selfsup import digests
from selfsup.compare import gather, locks
from selfsup.compare.by_dvc import Cache
from selfsup.compare.comparison import Comparison, Run
from selfsup.compare.gather import BUDGET, Experiment
from selfsup.compare.locks import Project, Values
from selfsup.errors import UserError

NAME = "leaderboard"
DATA = ("data/needs/shards.json", "data/watched.txt")


def leaderboard(project: Project, cache: Cache, values: Values, command: str) -> Comparison:
    """Every finished run on the data that `values` name. Raises `UserError` where there is none."""
    given, _ = project.given(values)
    every = gather.experiments(project.root)
    known = [one for one in every if all(one.made.get(path) == given[path] for path in DATA)]
    others = len(every) - len(known)
    runs: list[tuple[Run, Values]] = []
    left, seen = [], set[str]()
    for one in known:
        try:
            run = read(project.root, one, cache, values)
        except UserError as error:
            left.append(str(error))
            continue
        same = digests.of_values([run.pretrain.get("weights"), run.method, run.seed, dict(run.conditions.protocols)])
        if same not in seen:  # the newest of equal ones: experiments come in that order
            seen.add(same)
            runs.append((run, one.values))
    if not runs:
        raise UserError(
            f'no experiment of this data set is done; run one: `make compare METHODS="simclr byol"`'
            f"{_elsewhere(others)}{f'; {left[0]}' if left else ''}"
        )
    told = told_apart(runs)
    return Comparison(
        name=NAME,
        title="All experiments of this data set",
        rows=sorted({run.row for run in told}),
        seeds=sorted({run.seed for run in told}),
        runs=told,
        notes=[*(f"Left out: {line}." for line in left), *([f"Not shown{_elsewhere(others)}."] if others else [])],
        command=command,
    )


def _elsewhere(others: int) -> str:
    return f": {others} experiment{'s' * (others > 1)} of other data" if others else ""


def read(root: Path, one: Experiment, cache: Cache, base: Values) -> Run:
    """The run of an experiment, whose training must be of its parameters. Raises `UserError`."""
    run = gather.run(root, one, str(one.values.get("method")), cache, base)
    params = gather.parameters(one)
    of_it = (run.pretrain["method"], run.pretrain["seed"]) == (params.method, params.seed)
    if not of_it or not digests.same_training(params, params.method, run.pretrain):
        raise UserError(
            f"{one.name}: was not trained with its parameters; it stopped before, or they were edited after"
        )
    if not run.found:
        why = next(iter(run.skipped.values()), "no protocol is listed")
        raise UserError(f"{one.name}: no protocol has figures of {run.method} ({why})")
    return run


def told_apart(runs: Sequence[tuple[Run, Values]]) -> list[Run]:
    """The runs with rows and conditions that say in what recipes, budgets and backbones differ."""
    recipes = [locks.flat({"views": values["views"]} | values["methods"][values["method"]]) for _, values in runs]
    budgets = [
        locks.flat({name: part for name, part in values["pretrain"].items() if name not in BUDGET})
        for _, values in runs
    ]
    networks = [locks.flat({run.backbone: values["backbones"][run.backbone]}) for run, values in runs]
    methods = [run.method for run, _ in runs]
    backbones = [run.backbone for run, _ in runs]
    told = []
    for (run, _), recipe, budget, network in zip(
        runs, differing(recipes, methods), differing(budgets), differing(networks, backbones), strict=True
    ):
        row = f"{run.row} ({recipe})" if recipe else run.row
        more = ", ".join(part for part in (run.conditions.budget, budget, network) if part)
        told.append(replace(run, row=row, conditions=replace(run.conditions, budget=more)))
    kept: dict[tuple[str, int, str], Run] = {}
    for run in told:
        kept.setdefault((run.row, run.seed, repr(run.conditions)), run)
    return list(kept.values())


def differing(every: Sequence[Mapping[str, Any]], groups: Sequence[str] | None = None) -> list[str]:
    """For each of some flat parameters, those in which it differs from others of its group, as `name=value, ...`."""
    groups = groups or [""] * len(every)
    keys: dict[str, list[str]] = {}
    for group in groups:
        own = [one for one, name in zip(every, groups, strict=True) if name == group]
        known = sorted(set().union(*own))
        keys[group] = [key for key in known if any(one.get(key) != own[0].get(key) for one in own)]
    return [", ".join(f"{key}={one.get(key)}" for key in keys[group]) for one, group in zip(every, groups, strict=True)]
