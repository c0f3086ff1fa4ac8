"""Whether an experiment is the one that is asked for, by its dvc.lock: what each of its stages was really run with.

A stage's entry has its command, its parameters and the checksums of its code, inputs and outputs. `Wanted` is what the
entries must be for given parameters and the code and data of now. Inputs that another stage makes must be what the same
dvc.lock has as that stage's output, all the way up to the data. Names of experiments decide nothing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup import digests, methods, needs
from selfsup.blocks import KindData
from selfsup.compare.git import Snapshot
from selfsup.config import parse, read_yaml
from selfsup.data.watch import watch
from selfsup.evaluation import protocols
from selfsup.params import Params

GIVEN = ("check", "watch")  # their outputs are known in advance; they are run with whole files that decide nothing else
Values = Mapping[str, Any]
Listing = Callable[[str], Mapping[str, str] | None]  # of a folder's checksum: its files' checksums, by path below it


@dataclass(frozen=True)
class Stage:
    """A stage with the parameters of one experiment filled in."""

    name: str
    cmd: str
    params: dict[str, Any]  # by file: values by name
    deps: tuple[str, ...]
    outs: tuple[str, ...]


def stages(pipeline: Values, values: Values, shards: Values) -> dict[str, Stage]:
    """The stages of dvc.yaml by name (`evaluate@knn`), for the parameters `values` and data/needs/shards.json."""
    found = {}
    for name, written in pipeline["stages"].items():
        for key, item in _instances(written.get("matrix", {}), values):
            whole = {**values, "item": item}
            fill = functools.partial(_filled, values=whole)
            title = f"{name}@{key}" if key else name
            params: dict[str, Any] = {}
            for entry in fill(written.get("params", [])):
                files = entry.items() if isinstance(entry, Mapping) else [("params.yaml", [entry])]
                for file, keys in files:
                    source = values if file == "params.yaml" else shards
                    params.setdefault(file, {}).update({one: _at(source, one) for one in keys})
            outs = [
                next(iter(out)) if isinstance(out, Mapping) else out
                for kind in ("outs", "metrics", "plots")
                for out in fill(written.get(kind, []))
            ]
            found[title] = Stage(title, fill(written["cmd"]), params, tuple(fill(written.get("deps", []))), tuple(outs))
    return found


def _instances(matrix: Values, values: Values) -> Iterator[tuple[str, dict[str, Any]]]:
    """The key and `item` of each stage of a matrix, one without either for a stage that has none."""
    axes = {axis: _filled(choices, values=values) for axis, choices in matrix.items()}
    for chosen in itertools.product(*axes.values()):
        yield "-".join(map(str, chosen)), dict(zip(axes, chosen, strict=True))


def _filled(part: Any, values: Values) -> Any:
    """`part` with every ${name} replaced by its value, as DVC does; a whole text may become a list."""
    if isinstance(part, Mapping):
        return {_filled(key, values): _filled(one, values) for key, one in part.items()}
    if isinstance(part, list):
        return [_filled(one, values) for one in part]
    if not isinstance(part, str):
        return part
    if whole := re.fullmatch(r"\$\{([^}]+)\}", part):
        return _at(values, whole[1])
    return re.sub(r"(?<!\\)\$\{([^}]+)\}", lambda found: str(_at(values, found[1])), part).replace("\\${", "${")


def _at(values: Any, path: str) -> Any:
    for step in re.findall(r"[^.\[\]]+", path):
        values = values[int(step)] if isinstance(values, list) else values[step]
    return values


@dataclass(frozen=True)
class Wanted:
    """What dvc.lock must hold for an experiment to be the one that is asked for."""

    finals: Sequence[str]  # the stages that a comparison asks for
    stages: Mapping[str, Stage]  # these, and those that they need
    code: Mapping[str, str]  # checksum by path of all that is in git
    given: Mapping[str, str]  # checksum by path of the outputs of `GIVEN`

    def digest(self) -> str:
        """Of all of it: equal where an experiment has the same outputs."""
        deps = {path: self.code.get(path) or self.given.get(path) for one in self.stages.values() for path in one.deps}
        return digests.of_values([{name: [one.cmd, one.params, one.outs] for name, one in self.stages.items()}, deps])

    def part(self, names: Sequence[str]) -> Wanted:
        """Only these stages and those that they need."""
        return Wanted(names, {name: self.stages[name] for name in upward(self.stages, names)}, self.code, self.given)


class Project:
    """The pipeline, the code and the data as they are now."""

    def __init__(self, root: Path, taken: Snapshot):
        self.root = root
        self.snapshot = taken
        self.pipeline = read_yaml(root / "dvc.yaml")
        self._sums: dict[str, str | None] = {}
        self._watched: dict[str, str] = {}
        self.pulled = False  # there are shards, but not the files that they were made of

    def wanted(self, values: Values) -> Wanted:
        """For an experiment with these parameters. Raises `UserError` where they are no valid params.yaml."""
        given, shards = self.given(values)
        every = stages(self.pipeline, values, shards)
        finals = [protocols.find(name).stage for name in parse(Params, dict(values)).evaluation.listed]
        chosen = upward(every, finals)
        kept = {name: every[name] for name in chosen if name not in GIVEN}
        made = {out for one in every.values() for out in one.outs}
        paths = {path for one in kept.values() for path in one.deps if not _made(path, made)}
        code = {path: total for path in paths if (total := self.checksum(path)) is not None}
        return Wanted(finals, kept, code, given)

    def given(self, values: Values) -> tuple[dict[str, str], dict[str, Any]]:
        """Checksums of what `check` and `watch` will write, by path, and the content of data/needs/shards.json."""
        params = parse(Params, dict(values))
        model, _ = methods.find(params.method)
        block = parse(model, params.methods[params.method], f"methods.{params.method}")
        kind = methods.kind_of(params.method, params)
        with tempfile.TemporaryDirectory() as folder:
            needs.write(params, kind, block.backbone, Path(folder))
            both = {str(path): Path(folder, path).read_bytes() for path in (needs.SHARDS, needs.BACKBONE)}
        shards = both[str(needs.SHARDS)].decode()
        if shards not in self._watched:
            self._watched[shards] = self._watch(params.data.of(kind))
        given = {path: _md5(content) for path, content in both.items()}
        return given | {"data/watched.txt": _md5(self._watched[shards].encode())}, json.loads(shards)

    def _watch(self, data: KindData) -> str:
        """What the stage `watch` will write."""
        with tempfile.TemporaryDirectory() as folder:
            recorded, place = self.root / "data/watched.txt", Path(folder, "watched.txt")
            if recorded.is_file():
                shutil.copyfile(recorded, place)
            said = watch(data, place, self.root / "data/shards")
            text = place.read_text(encoding="utf-8")
        self.pulled = self.pulled or said != text
        return text

    def checksum(self, path: str) -> str | None:
        """DVC's checksum of a file or folder that git tracks; None for others."""
        if path not in self._sums:
            self._sums[path] = self._checksum(path)
        return self._sums[path]

    def _checksum(self, path: str) -> str | None:
        if path in self.snapshot.files:
            return _md5((self.root / path).read_bytes())
        below = [name for name in self.snapshot.files if name.startswith(f"{path}/")]
        if not below:
            return None
        return of_folder({name.removeprefix(f"{path}/"): _md5((self.root / name).read_bytes()) for name in below})


def of_folder(files: Mapping[str, str]) -> str:
    """DVC's checksum of a folder, from those of its files by path below it."""
    entries = [{"md5": files[path], "relpath": path} for path in sorted(files)]
    return _md5(json.dumps(entries, sort_keys=True).encode()) + ".dir"


def _md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def upward(every: Mapping[str, Stage], names: Sequence[str]) -> list[str]:
    """The stages `names` and all that make what they need, in the order of dvc.yaml."""
    found, waiting = set(), list(names)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            deps = every[name].deps
            waiting += [one.name for one in every.values() if any(_touch(out, dep) for out in one.outs for dep in deps)]
    return [name for name in every if name in found]


def _touch(out: str, dep: str) -> bool:
    return out == dep or out.startswith(f"{dep}/") or dep.startswith(f"{out}/")


def _made(path: str, outs: set[str]) -> bool:
    return any(_touch(out, path) for out in outs)


def differs(lock: Values, wanted: Wanted, listing: Listing) -> str | None:
    """In what the experiment with the stages `lock` of dvc.lock is not the one that is wanted; None: it is."""
    made = outs(lock)
    for name, stage in wanted.stages.items():
        entry = lock.get(name)
        if entry is None:
            return f"{name} was not run"
        if entry.get("cmd") != stage.cmd:
            return f"{name} had another command"
        if not _same(entry.get("params", {}), stage.params):
            return f"{name} had other parameters"
        deps = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}
        if set(deps) != set(stage.deps):
            return f"{name} had other inputs"
        for path, checksum in deps.items():
            now = wanted.given.get(path) or wanted.code.get(path)
            if now is not None and checksum != now:
                return f"{path} has changed" if path in wanted.code else f"{name} had other data"
            if now is None and checksum != _of_outs(path, made, listing):
                return f"{name} was run on {path} of another run"
    return None


def outs(lock: Values) -> dict[str, str]:
    """Checksums of all outputs in dvc.lock, by path."""
    return {out["path"]: out.get("md5") for entry in lock.values() for out in entry.get("outs", [])}


def _of_outs(path: str, made: Mapping[str, str], listing: Listing) -> str | None:
    """The checksum that a path has if it consists of outputs."""
    if path in made:
        return made[path]
    files: dict[str, str] = {}
    for out, checksum in made.items():
        if not out.startswith(f"{path}/"):
            continue
        below = out.removeprefix(f"{path}/")
        if not checksum.endswith(".dir"):
            files[below] = checksum
            continue
        own = listing(checksum)
        if own is None:
            return None
        files |= {f"{below}/{name}": one for name, one in own.items()}
    return of_folder(files)


def _same(a: Any, b: Any) -> bool:
    """Equal values, where a whole number equals the same number written with a point, as in YAML's `1` and `1.0`."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def of_code(entry: Values, but: str = "") -> str:
    """Digest of the code that a stage's entry in dvc.lock was run with, without the file `but`."""
    deps = entry.get("deps", [])
    return digests.of_values(
        {
            dep["path"]: dep.get("md5")
            for dep in deps
            if dep["path"].startswith(("ssl/", "stages/")) and dep["path"] != but
        }
    )


def stages_of(content: Any) -> dict[str, Any]:
    """The stages in the content of a dvc.lock; {} where it is none."""
    found = content.get("stages") if isinstance(content, Mapping) else None
    return dict(found) if isinstance(found, Mapping) else {}


def flat(values: Values, prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return out
