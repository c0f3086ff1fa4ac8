"""Sections of `params.yaml` that admit no unknown keys; every mistake is reported in one line."""

import difflib
import pkgutil
import reprlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML, YAMLError
from ruamel.yaml.nodes import MappingNode, SequenceNode

from selfsup.errors import UserError

M = TypeVar("M", bound=BaseModel)
LARGEST = 100_000  # bytes of params.yaml
MOST = 10_000  # values in it

_short = reprlib.Repr()  # of what may be long or nested
_short.maxstring = _short.maxother = _short.maxlong = 80


class Strict(BaseModel):
    """A section of `params.yaml`: no unknown keys, no silent conversions, no changes after loading."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def known(folders: Iterable[str]) -> list[str]:
    """The names that folders of modules offer: their public modules."""
    return sorted(module.name for module in pkgutil.iter_modules(folders) if not module.name.startswith("_"))


def choose(where: str, name: str, names: list[str]) -> str:
    """Return `name` if it is one of `names`, else raise with the known names and the nearest one."""
    if name in names:
        return name
    near = difflib.get_close_matches(name.lower(), names, n=1)
    hint = f"; did you mean {near[0]}?" if near else "."
    raise ValueError(f"{where}: unknown {name!r}{hint} Known: {', '.join(names)}")


def unknown(key: str, keys: Iterable[str]) -> str:
    """The error on a key that is not in `keys`, with the nearest of them."""
    near = difflib.get_close_matches(key, list(keys), n=1)
    return "unknown parameter" + (f"; did you mean {near[0]}?" if near else "; remove it")


def fault_of(error: ValidationError, prefix: str, model: type[BaseModel]) -> str:
    """The first failure of a validation as `where: what`, a misspelt key, which is a missing one too, first."""
    first, *rest = sorted(error.errors(include_url=False), key=lambda each: each["type"] != "extra_forbidden")
    steps = [str(step) for step in first["loc"] if step not in ("sgd", "lars", "adamw")]
    more = f" (and {len(rest)} more)" if rest else ""
    match first["type"]:
        case "extra_forbidden":
            what = unknown(steps[-1], set(_keys(model, steps[:-1])) - {steps[-1]})  # another optimiser may have it
        case "missing":
            what = "missing parameter; add it"
        case "union_tag_not_found":
            what = "missing parameter name; add it"
        case "union_tag_invalid":
            what = f"unknown name {first['ctx']['tag']!r}. Known: {first['ctx']['expected_tags']}"
        case "model_type" | "dict_type":
            what = f"must be a section of `name: value` lines, got {shown(first['input'])}"
        case "value_error":
            what = first["msg"].removeprefix("Value error, ")  # a method's model names parameters below its block
            return f"{what if what.startswith(prefix) else f'{prefix}.{what}'}{more}"
        case _:
            what = f"{first['msg'].replace(' after validation', '')}, got {shown(first['input'])}"
            what = what[0].lower() + what[1:]
    where = ".".join([*([prefix] if prefix else []), *steps])
    return f"{where}: {what}{more}".removeprefix(": ")


def shown(value: Any) -> str:
    """A value as YAML has it, cut to what a line can hold."""
    text = _short.repr(value)
    return {"None": "null", "True": "true", "False": "false"}.get(text, text)[:80]


def _keys(model: Any, steps: list[str]) -> list[str]:
    """The keys that the section at `steps` may have, of any of its kinds."""
    for step in steps:
        model = next((kind.model_fields[step].annotation for kind in _kinds(model) if step in kind.model_fields), None)
    return [key for kind in _kinds(model) for key in kind.model_fields]


def _kinds(annotation: Any) -> list[Any]:  # the models in a type: SGD of `SGD | None`
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _kinds(part)]


def parse(model: type[M], values: Any, prefix: str = "", file: str = "params.yaml") -> M:
    """Validate `values`, of a file, as `model`. Raises `UserError` with one line that names the parameter."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{file}: {fault_of(error, prefix, model)}") from None


def read_yaml(path: Path | str) -> Any:
    """A file of parameters (YAML 1.2, so 1e-4 is a number). Raises `UserError` and `FileNotFoundError`."""
    with Path(path).open("rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UserError(f"{path}: more than {LARGEST:,} bytes; are these parameters?")
    try:
        text = data.decode("utf-8-sig")
        yaml = YAML(typ="safe", pure=True)
        _count(yaml.compose(text), {})
        return yaml.load(text)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); save it as UTF-8") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UserError(f"{path}:{line} is not valid YAML: {problem}") from None
    except Exception as error:  # an impossible date, a number of a million digits, a thousand brackets, ...
        problem = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: is not valid YAML: {problem}") from error


def _count(node: Any, known: dict[int, int]) -> int:
    """How many values a YAML node stands for, its aliases written out. Raises `ValueError` beyond `MOST`."""
    if id(node) not in known:
        known[id(node)] = MOST  # of a node inside itself
        children = node.value if isinstance(node, SequenceNode | MappingNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_count(part, known) for part in parts)
    if known[id(node)] > MOST:
        raise ValueError(f"its aliases stand for more than {MOST:,} values")
    return known[id(node)]
