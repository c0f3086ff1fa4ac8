"""One short file per method. The registry is the folder listing: a file with ABOUT, `Params` and one `Task`."""

import importlib
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from selfsup.about import ANY, FAMILIES, About
from selfsup.config import choose, fault_of, known, parse
from selfsup.errors import KnobError, UserError
from selfsup.params import METHODS, MethodParams, Params
from selfsup.task import Facts, Task

__path__ = METHODS

BY_HAND = {  # what the training loop reads of a block, and a loop written by hand need not give
    "backbone": "conv",
    "optimizer": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0},
}


def names() -> list[str]:
    """The known methods."""
    return known(__path__)


def find(name: str) -> tuple[type[MethodParams], type[Task]]:
    """A method's `Params` and `Task`.

    Raises `UserError` that lists the known methods, or that names the file and what it does not declare.
    """
    try:
        choose("method", name, names())
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    try:
        module = importlib.import_module(f"selfsup.methods.{name}")
    except ValidationError as error:
        where = "ABOUT.paper" if error.title == "Paper" else "ABOUT"
        raise UserError(f"methods/{name}.py: {fault_of(error, where, About)}") from None
    tasks = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Task) and x is not Task]
    own = [task for task in tasks if task.__module__ == module.__name__]
    if len(own) != 1 or not hasattr(module, "Params"):
        raise UserError(f"methods/{name}.py: needs exactly one Task and a class Params")
    about = getattr(module, "ABOUT", None)
    if not isinstance(about, About):
        fields = ", ".join(About.model_fields)
        raise UserError(f"methods/{name}.py: has no declaration; add ABOUT = About(...) with {fields}")
    if getattr(own[0], "about", None) is not about:
        raise UserError(f"methods/{name}.py: {own[0].__name__} does not refer to the declaration; add about = ABOUT")
    if own[0].about.couples_batch and (own[0].embed is Task.embed or own[0].loss is Task.loss):
        raise UserError(f"methods/{name}.py: ABOUT.couples_batch is true, so {own[0].__name__} needs embed and loss")
    return module.Params, own[0]


def kind_of(name: str, params: Params) -> str:
    """The kind of data that a method sees. One that takes any kind sees that of the chosen method.

    Where the chosen method takes any kind, too, it is the first block in `data`. Raises `UserError`.
    """
    kinds = [find(each)[1].about.kind for each in (name, params.method)]
    return next((kind for kind in kinds if kind != ANY), params.data.first)


def declared() -> dict[str, About]:
    """The declarations of all methods, in the order of tables: by family, year and name.

    Raises `UserError` for a file without one, and where two methods have the same title.
    """
    found = {name: find(name)[1].about for name in names()}
    titles: dict[str, str] = {}
    for name, about in found.items():
        other = titles.setdefault(about.title.casefold(), name)
        if other != name:
            raise UserError(f"methods/{name}.py: ABOUT.title: {about.title!r} is methods/{other}.py's; choose another")

    def place(name: str) -> tuple[int, int, str]:
        about = found[name]
        return FAMILIES.index(about.family), about.paper.year if about.paper else 0, name

    return {name: found[name] for name in sorted(found, key=place)}


def build(name: str, knobs: Mapping[str, Any] | MethodParams, facts: Facts) -> Task:
    """The method with new weights from torch's generator. `knobs` is its block: a plain mapping, or its `Params`.

    `backbone` and `optimizer`, which the training loop reads, may be left out of a mapping. Raises `UserError` that
    names the parameter.
    """
    params, task = find(name)
    block = f"methods.{name}"
    if not isinstance(knobs, MethodParams):
        knobs = parse(params, {**BY_HAND, **knobs}, prefix=block, file="knobs")
    try:
        return task(knobs, facts)
    except KnobError as error:
        raise error.of(block) from None
