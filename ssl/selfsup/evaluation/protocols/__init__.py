"""One short file per protocol. The registry is the folder listing: a file with four declarations is a protocol.

    TITLE = "k-means"
    NEEDS = {"features", "labels"}
    class Params(Strict): ...
    def run(features, labels, params, seed) -> Result: ...

`TITLE` is shown to readers; no other protocol has the same. `NEEDS` are of `selfsup.evaluation.result.Need`: where the
data lack one, the protocol is skipped. `Params` validates the block `evaluation.<name>` of `params.yaml`. `run` takes
an argument per need, the block and the seed, and is called once per representation. It may raise `Unfit`.

Two further declarations are optional. `relate(results)` takes the results by row and returns them with figures that
hold a row against another. `REPEATABLE = False`: figures are measurements, such as times, and differ between two runs.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from selfsup.config import Strict, choose, parse
from selfsup.errors import UserError
from selfsup.evaluation.result import INSIDE, Need, Result
from selfsup.params import Evaluation


@dataclass(frozen=True)
class Protocol:
    """The declarations of a protocol's file."""

    name: str
    title: str
    needs: frozenset[str]
    params: type[Strict]
    run: Callable[..., Result]
    relate: Callable[[dict[str, Result]], dict[str, Result]] | None = None
    repeatable: bool = True

    @property
    def inside(self) -> bool:
        """It looks inside the frozen network."""
        return bool(self.needs & INSIDE)

    @property
    def stage(self) -> str:
        """The DVC stage that runs it."""
        return f"{'examine' if self.inside else 'evaluate'}@{self.name}"


def names() -> list[str]:
    """The known protocols."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def file_of(name: str) -> Path:
    """The file that declares a protocol."""
    return next(path for folder in __path__ if (path := Path(folder) / f"{name}.py").exists())


def find(name: str) -> Protocol:
    """Return what a protocol's file declares. Raises `UserError`: no such file, or a declaration is missing."""
    try:
        choose("protocol", name, names())
    except ValueError as error:
        raise UserError(str(error)) from None
    module, file = importlib.import_module(f"selfsup.evaluation.protocols.{name}"), f"evaluation/protocols/{name}.py"
    missing = [each for each in ("TITLE", "NEEDS", "Params", "run") if not hasattr(module, each)]
    if missing:
        raise UserError(f"{file}: {', '.join(missing)} missing; a protocol declares TITLE, NEEDS, Params and run")
    if not isinstance(module.TITLE, str) or not module.TITLE.strip():
        raise UserError(f"{file}: TITLE must be a text for readers, got {module.TITLE!r}")
    if not isinstance(module.NEEDS, set | frozenset) or not module.NEEDS:
        raise UserError(f"{file}: NEEDS must be a set of {', '.join(get_args(Need))}, got {module.NEEDS!r}")
    for need in sorted(map(str, module.NEEDS - set(get_args(Need)))):
        near = difflib.get_close_matches(need, get_args(Need), n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        raise UserError(f"{file}: NEEDS: unknown {need!r}{hint} Known: {', '.join(get_args(Need))}")
    if not (isinstance(module.Params, type) and issubclass(module.Params, Strict)):
        raise UserError(f"{file}: Params must be a subclass of selfsup.config.Strict")
    given = {*module.NEEDS, "params", "seed"}
    if not callable(module.run) or set(inspect.signature(module.run).parameters) != given:
        raise UserError(f"{file}: run must take exactly {', '.join([*sorted(module.NEEDS), 'params', 'seed'])}")
    relate, repeatable = getattr(module, "relate", None), getattr(module, "REPEATABLE", True)
    return Protocol(name, module.TITLE, frozenset(module.NEEDS), module.Params, module.run, relate, repeatable)


def blocks(evaluation: Evaluation, file: str = "params.yaml") -> dict[str, tuple[Protocol, Any]]:
    """Every protocol that has a block in `evaluation`, with the block as the protocol's own `Params`.

    Those that `evaluation` lists come first, in its order. Raises `UserError`: a name without a file, a protocol in the
    wrong list or without a block, a wrong value in a block, or two protocols with the same title.
    """
    written = evaluation.model_extra or {}
    lists = {"protocols": evaluation.protocols, "encoder_protocols": evaluation.encoder_protocols}
    try:
        for where, named in (("evaluation", written), *((f"evaluation.{key}", own) for key, own in lists.items())):
            for name in named:
                choose(where, name, names())
    except ValueError as error:
        raise UserError(f"{file}: {error}") from None
    found: dict[str, tuple[Protocol, Any]] = {}
    for name in dict.fromkeys([*evaluation.listed, *written]):
        if name not in written:
            raise UserError(f"{file}: evaluation.{name}: missing block; add it")
        protocol = find(name)
        wrong, right, does = ("protocols", "encoder_protocols", "looks")
        if not protocol.inside:
            wrong, right, does = right, wrong, "does not look"
        if name in lists[wrong]:
            line = f"evaluation.{wrong}: {name} {does} inside the network; move it to evaluation.{right}"
            raise UserError(f"{file}: {line}")
        for other, _ in found.values():
            if other.title == protocol.title:
                files = " and ".join(f"evaluation/protocols/{each.name}.py" for each in (other, protocol))
                raise UserError(f"{files}: have the same TITLE, {protocol.title!r}; change one of them")
        found[name] = protocol, parse(protocol.params, written[name], prefix=f"evaluation.{name}", file=file)
    return found


def chosen(name: str, evaluation: Evaluation) -> tuple[Protocol, Any]:
    """A protocol and its block. Raises `UserError` as `find` and `blocks` do, and where it has no block."""
    protocol, known = find(name), blocks(evaluation)
    if protocol.name not in known:
        raise UserError(f"params.yaml: evaluation.{name}: missing block; add it")
    return known[name]
