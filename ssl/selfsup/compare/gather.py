"""From finished experiments to the runs of a comparison."""

from __future__ import annotations

import csv
import json
import logging
import shlex
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup import digests
from selfsup.compare import git, locks, setup
from selfsup.compare.by_dvc import Cache
from selfsup.compare.comparison import Conditions, Run
from selfsup.compare.locks import Values
from selfsup.compare.readings import of_features
from selfsup.compare.table import not_of_it
from selfsup.config import parse
from selfsup.errors import UserError
from selfsup.evaluation import folder, protocols
from selfsup.evaluation.folder import Found
from selfsup.params import Params

WORKSPACE = "workspace"
BUDGET = ("epochs", "batch_size", "precision")
_log = logging.getLogger("selfsup.compare")


@dataclass(frozen=True)
class Experiment:
    """What a commit, or the workspace, says was run."""

    name: str  # DVC's name; `workspace`, or the commit's first digits
    revision: str
    lock: Values  # the stages of dvc.lock
    values: Values  # params.yaml

    @property
    def made(self) -> dict[str, str]:
        return locks.outs(self.lock)


def experiments(root: Path) -> list[Experiment]:
    """All experiments of DVC, the newest first, then the commit HEAD and the workspace, as far as they were run."""
    head = git.git(root, "rev-parse", "HEAD").strip()
    revisions = [*git.experiments(root), (head[:7], head)]
    found = [experiment(root, name, revision) for name, revision in revisions]
    own = _of_workspace(root, head)
    return [one for one in [*found, own] if one is not None]


def experiment(root: Path, name: str, revision: str) -> Experiment | None:
    """The experiment of a commit; None where nothing was run."""
    objects = git.files_at(root, revision, ("dvc.lock", "params.yaml"))
    if len(objects) < 2:
        return None
    lock, values = (git.parsed(root, objects[name]) for name in ("dvc.lock", "params.yaml"))
    return _checked(name, revision, lock, values)


def _of_workspace(root: Path, head: str) -> Experiment | None:
    try:
        texts = [(root / name).read_text(encoding="utf-8") for name in ("dvc.lock", "params.yaml")]
    except OSError:
        return None
    return _checked(WORKSPACE, head, *map(git.of_yaml, texts))


def _checked(name: str, revision: str, lock: Any, values: Any) -> Experiment | None:
    kept = locks.stages_of(lock)
    if not kept or not isinstance(values, Mapping):
        return None
    return Experiment(name, revision, kept, values)


def found(wanted: locks.Wanted, known: Sequence[Experiment], cache: Cache) -> Experiment | None:
    """The first experiment that is the one wanted, and whose figures DVC's cache has."""
    for one in known:
        if locks.differs(one.lock, wanted, cache.listing) is None:
            made = one.made
            if all(cache.has(made.get(path)) for path in _read(wanted)):
                return one
    return None


def _read(wanted: locks.Wanted) -> list[str]:
    """The outputs that `run` reads."""
    kept = ("metrics/", "evaluations/", "plots/pretrain.csv")
    return [path for stage in wanted.stages.values() for path in stage.outs if path.startswith(kept)]


def run(root: Path, one: Experiment, row: str, cache: Cache, base: Values, readings: Sequence[str] = ()) -> Run:
    """What an experiment found. `base` are today's parameters, from which the line that reproduces it starts.

    `readings` are names of figures of no protocol, `features.<name>`. Raises `UserError`, which says why there are no
    figures at all; protocols that have none, or whose figures are of other weights, are in `skipped`.
    """
    made = one.made
    try:
        pretrain = cache.json(made["metrics/pretrain.json"])
        times = cache.json(made["metrics/times/pretrain.json"])
        shards = cache.listing(made["data/shards"])
        curve = _curve(cache.path(made["plots/pretrain.csv"]))
        params = parameters(one)
        stated = conditions(one, params, cache)
    except KeyError as error:
        raise UserError(f"{one.name}: has no {error.args[0]}; it stopped before") from None
    except OSError as error:
        raise UserError(f"{one.name}: DVC's cache does not have its figures ({error.filename}); `dvc fetch`") from None
    found, skipped = _found(one, params, pretrain, cache)
    try:
        classes = cache.json((shards or {})["index.json"])["classes"]
    except (KeyError, OSError):
        classes = []
    return Run(
        row=row,
        seed=params.seed,
        method=params.method,
        backbone=pretrain["backbone"],
        experiment=one.name,
        revision=one.revision,
        command=command(base, one.values),
        tracked=_tracked(root, pretrain.get("weights")),
        conditions=stated,
        images=made["data/shards"],
        found=found,
        skipped=skipped,
        pretrain=pretrain,
        times=times,
        curve=curve,
        classes=classes,
        readings=_readings(one, cache, readings),
    )


def parameters(one: Experiment) -> Params:
    """The experiment's parameters. Raises `UserError` for those of another version."""
    return parse(Params, dict(one.values), file=f"{one.name}: params.yaml")


def command(base: Values, values: Values) -> str:
    """The line that runs an experiment again."""
    words = [word for change in setup.changes(base, values) for word in ("-S", change)]
    inside = values.get("evaluation", {}).get("encoder_protocols")
    return shlex.join(["dvc", "exp", "run", "evaluate", *(["examine"] if inside else []), *words])


def _found(one: Experiment, params: Params, pretrain: Values, cache: Cache) -> tuple[dict[str, Found], dict[str, str]]:
    """The figures of every protocol that the experiment asks for, and why others have none."""
    made, found, skipped = one.made, {}, {}
    for name in params.evaluation.listed:
        try:
            written = cache.json(made[f"metrics/evaluate/{name}.json"])
            extracted = cache.json(made["metrics/extract.json"])
            if why := not_of_it(name, written, pretrain, extracted, one.values):
                skipped[name] = f"the figures are {why}"
                continue
            with tempfile.TemporaryDirectory() as scratch:
                place = cache.place(made[f"evaluations/{name}"], Path(scratch, name))
                details = json.loads((place / "details.json").read_text(encoding="utf-8"))
                if "skipped" in details:
                    skipped[name] = str(details["skipped"])
                else:
                    found[name] = folder.read(place)
        except KeyError:
            skipped[name] = "not run"
        except UserError:
            skipped[name] = "written by another version"
        except OSError:
            skipped[name] = "not in DVC's cache"
    return found, skipped


def _curve(path: Path) -> list[dict[str, float]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in line.items() if value} for line in csv.DictReader(file)]


def conditions(one: Experiment, params: Params, cache: Cache) -> Conditions:
    """What the experiment must share with others to be ranked with them."""
    lock = one.lock
    stages = {name: protocols.find(name).stage for name in params.evaluation.listed}
    evaluated = {name: lock[stage] for name, stage in stages.items() if stage in lock}
    own = f"ssl/selfsup/methods/{params.method}.py"
    return Conditions(
        data=data_words(one, cache),
        budget=budget_words(params),
        code=digests.of_values(
            [
                locks.of_code(lock.get("shard", {})),
                locks.of_code(lock["pretrain"], but=own),
                locks.of_code(lock.get("extract", {}), but=own),
            ]
        ),
        protocols={
            name: digests.of_values([_own(entry, name), locks.of_code(entry, but=own)])
            for name, entry in evaluated.items()
        },
    )


def _own(entry: Values, protocol: str) -> Any:
    """A protocol's own parameters; the seed and the choice of baselines change no figure of the method's."""
    return entry.get("params", {}).get("params.yaml", {}).get(f"evaluation.{protocol}")


def data_words(one: Experiment, cache: Cache) -> str:
    """Source and size, with a digest of everything that decides the samples but the seed."""
    made = one.made
    needs = cache.json(made["data/needs/shards.json"])
    data = needs["data"]
    name = data.get("name") or data.get("path")
    parts = [f"{data['source']} {name}" if name and data["source"] != "digits" else data["source"]]
    parts += [f"{data['image_size']} px"] if "image_size" in data else [needs["kind"]]
    parts += [f"{data['limit']:,} training samples"] if data.get("limit") else []
    code = digests.of_values([made["data/needs/shards.json"], made.get("data/watched.txt")])
    return f"{', '.join(parts)} (data {code[:6]})"


def budget_words(params: Params) -> str:
    budget = params.pretrain
    epochs = f"{budget.epochs} epoch{'s' * (budget.epochs > 1)}"
    return f"{epochs}, batches of {budget.batch_size}, {budget.precision}"


def _tracked(root: Path, weights: str | None) -> str | None:
    """The key of the training in the tracker, where it was recorded from here."""
    try:
        notes = json.loads((root / f".cache/runs/{weights}.json").read_text(encoding="utf-8"))
        return str(notes["trainings"][-1]["parent"])
    except (OSError, ValueError, LookupError):
        return None


def _readings(one: Experiment, cache: Cache, wanted: Sequence[str]) -> dict[str, float]:
    if not any(name.startswith("features.") for name in wanted):
        return {}
    made = one.made
    with tempfile.TemporaryDirectory() as scratch:
        for path in ("features/pretrained", "data/shards"):
            if not cache.has(made.get(path)):
                raise UserError(f"{one.name}: DVC's cache does not have its {path}; `dvc fetch`")
            cache.place(made[path], Path(scratch, path))
        values = of_features(Path(scratch), parameters(one))
    return {f"features.{name}": value for name, value in values.items()}
