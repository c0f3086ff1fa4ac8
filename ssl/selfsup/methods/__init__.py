"""One short file a method. The registry is the folder listing: a file with one `Task` and its `Params` is a method."""

import importlib

from selfsup.config import choose, known
from selfsup.errors import UserError
from selfsup.params import METHODS, MethodParams
from selfsup.task import Task


def names() -> list[str]:
    """The known methods."""
    return known(METHODS)


def find(name: str) -> tuple[type[MethodParams], type[Task]]:
    """A method's `Params` and `Task`. Raises `UserError` that lists the known methods."""
    try:
        choose("method", name, names())
    except ValueError as error:
        raise UserError(f"params.yaml: {error}") from None
    module = importlib.import_module(f"selfsup.methods.{name}")
    tasks = [x for x in vars(module).values() if isinstance(x, type) and issubclass(x, Task) and x is not Task]
    own = [task for task in tasks if task.__module__ == module.__name__]
    if len(own) != 1 or not hasattr(module, "Params"):
        raise UserError(f"methods/{name}.py: needs exactly one Task and a class Params")
    return module.Params, own[0]
