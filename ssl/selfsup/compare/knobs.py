"""The knobs that tuning varies, setups/tune/ranges.yaml: each has a range that holds the recipe's value."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from selfsup import methods
from selfsup.about import FAMILIES
from selfsup.config import Strict, choose, parse, shown, unknown
from selfsup.errors import UserError
from selfsup.params import MethodParams

FILE = "setups/tune/ranges.yaml"
Scalar = bool | int | float | str | None
Ends = Annotated[list[int | float], Field(min_length=2, max_length=2)]


class Range(Strict):
    """One of four forms."""

    times: Ends | None = None  # the recipe's own value times a factor, on a logarithmic scale
    log: Ends | None = None
    linear: Ends | None = None
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = None

    @property
    def forms(self) -> list[str]:
        return [name for name in Range.model_fields if getattr(self, name) is not None]


class Ranges(Strict):
    """The content of the file."""

    every: dict[str, Range] = Field(default={})
    families: dict[str, dict[str, Range]] = Field(default={})
    methods: dict[str, dict[str, Range | None]] = Field(default={})


@dataclass(frozen=True)
class Knob:
    """A knob of one method, and the values that it may have."""

    path: str  # below the method's block, such as optimizer.lr or momentum.0
    own: Scalar  # the recipe's value
    low: float = 0  # a whole number where all values are
    high: float = 0
    log: bool = False
    choices: tuple[Scalar, ...] = ()  # in place of an interval

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def settings(self) -> float:
        """How many values it may have."""
        if self.choices:
            return len(self.choices)
        return self.high - self.low + 1 if self.whole else math.inf

    def rounded(self, value: Any) -> Any:
        """A suggested value as a set-up shows it: three significant digits, inside the range."""
        if self.choices or self.whole or value == self.own:
            return value
        return min(max(_short(value), self.low), self.high)


def check(ranges: Ranges, blocks: Mapping[str, Mapping[str, Any]], file: str) -> None:
    """Raise `UserError` for a family or method that is not known, and for a knob that no method in its place has.

    `blocks` are the methods' blocks in params.yaml.
    """
    families = {name: methods.find(name)[1].about.family for name in blocks}
    try:
        for family in ranges.families:
            choose(f"{file}: families", family, list(FAMILIES))
        for name in ranges.methods:
            choose(f"{file}: methods", name, methods.names())
    except ValueError as error:
        raise UserError(str(error)) from None
    if set(methods.names()) <= set(blocks):  # else a block that was taken out of params.yaml may have the knob
        _known(f"{file}: every", ranges.every, blocks.values())
        for family, shared in ranges.families.items():
            of = [blocks[name] for name, own in families.items() if own == family]
            _known(f"{file}: families.{family}", shared, of)
    for name, varied in ranges.methods.items():
        if name in blocks:
            _known(f"{file}: methods.{name}", varied, [blocks[name]])


def _known(where: str, ranges: Mapping[str, Range | None], blocks: Iterable[Mapping[str, Any]]) -> None:
    """Raise `UserError` for a path that is in none of the blocks, and for a range that has not one form."""
    blocks = list(blocks)
    for path, one in ranges.items():
        if not any(_has(block, path) for block in blocks):
            known = {key for block in blocks for key in _paths(block)}
            raise UserError(f"{where}.{path}: {unknown(path, sorted(known))}")
        if one and len(one.forms) != 1:
            names = ", ".join(Range.model_fields)
            raise UserError(f"{where}.{path}: needs one of {names}, got {', '.join(one.forms) or 'none'}")


def of_method(ranges: Ranges, name: str, block: Mapping[str, Any], file: str) -> dict[str, Knob]:
    """The knobs of a method by path, for a recipe `block` that is valid. Raises `UserError` for a range that is not."""
    model, task = methods.find(name)
    shared = {**ranges.every, **ranges.families.get(task.about.family, {})}
    chosen = {path: _fitting(one, _get(block, path)) for path, one in shared.items() if _has(block, path)}
    chosen |= ranges.methods.get(name, {})
    found = {}
    for path, one in chosen.items():
        if one is None:
            continue
        _known(f"{file}: methods.{name}", {path: one}, [block])
        try:
            knob = _knob(path, one, _get(block, path))
        except ValueError as error:
            raise UserError(f"{file}: methods.{name}.{path}: {error}") from None
        for value in knob.choices or (knob.low, knob.high):
            _accepted(model, name, applied(block, {path: value}), path, value, file)
        found[path] = knob
    if not found:
        raise UserError(f"{file}: methods.{name}: has no knob to vary; add one")
    return found


def _fitting(one: Range, own: Any) -> Range | None:
    """A range that several methods share, widened to the recipe's value; None where it does not fit that value."""
    if len(one.forms) != 1:
        return one  # `of_method` refuses it
    if one.choices is not None:
        return None if isinstance(own, dict | list) else one
    if isinstance(own, bool) or not isinstance(own, int | float) or (one.linear is None and own <= 0):
        return None
    form = one.forms[0]
    low, high = getattr(one, form)
    if form == "times" or not low < high:
        return one
    return Range.model_validate({form: [min(low, own), max(high, own)]})


def _accepted(model: type[MethodParams], name: str, block: dict[str, Any], path: str, value: Scalar, file: str) -> None:
    try:
        parse(model, block, f"methods.{name}", file)
    except UserError as error:  # it may name another parameter of the block
        raise UserError(f"{error} (from the range of {path}, at {shown(value)})") from None


def applied(block: Mapping[str, Any], values: Mapping[str, Scalar]) -> dict[str, Any]:
    """The block with `values` by path; the block itself is not changed."""
    out = copy.deepcopy(dict(block))
    for path, value in values.items():
        *parents, last = path.split(".")
        section: Any = out
        for step in parents:
            section = section[_step(section, step)]
        section[_step(section, last)] = value
    return out


def overlay(block: Mapping[str, Any], values: Mapping[str, Scalar]) -> dict[str, Any]:
    """What a set-up says below the method's block so that it has `values`; a list is given whole."""
    changed = applied(block, values)
    out: dict[str, Any] = {}
    for path in values:
        section, new = out, changed
        steps = path.split(".")
        for i, step in enumerate(steps):
            if i == len(steps) - 1 or not isinstance(new[step], dict):
                section[step] = new[step]
                break
            section, new = section.setdefault(step, {}), new[step]
    return out


def _knob(path: str, one: Range, own: Any) -> Knob:
    """Raises `ValueError`."""
    if one.choices is not None:
        if isinstance(own, dict | list):
            raise ValueError("is a section or a list in the recipe; name one value in it")
        if len({(type(value), value) for value in one.choices}) < len(one.choices):
            raise ValueError(f"names a choice twice, got {shown(one.choices)}; remove one")
        kept = tuple(one.choices) if own in one.choices else (own, *one.choices)
        if len(kept) < 2:
            raise ValueError(f"leaves nothing to choose, got {shown(one.choices)}; add a value")
        return Knob(path, own, choices=kept)
    if isinstance(own, bool) or not isinstance(own, int | float):
        raise ValueError(f"is {shown(own)} in the recipe, which is no number; use choices")
    low, high = one.times or one.log or one.linear or [0, 0]
    if not low < high:
        raise ValueError(f"needs low < high, got [{low}, {high}]")
    if one.linear is None and low <= 0:
        raise ValueError(f"a logarithmic scale begins above 0, got [{low}, {high}]")
    if one.times is not None:
        low, high = _times(own, low, high)
    elif isinstance(own, float):
        low, high = float(low), float(high)
    if not low <= own <= high:
        raise ValueError(f"the recipe's own value, {own}, is not in [{low}, {high}]; widen the range")
    return Knob(path, own, low, high, log=one.linear is None)


def _times(own: float, low: float, high: float) -> tuple[float, float]:
    if own <= 0:
        raise ValueError(f"the recipe's own value is {own}, which no factor changes; use log or linear")
    if isinstance(own, int):
        ends: tuple[float, float] = (max(1, math.ceil(own * low)), math.floor(own * high))
    else:
        ends = (_short(own * low), _short(own * high))
    if not ends[0] < ends[1]:
        raise ValueError(f"leaves nothing to choose, [{ends[0]}, {ends[1]}]; widen the range")
    return ends


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _step(section: Any, step: str) -> Any:
    return int(step) if isinstance(section, list) and step.isdigit() else step


def _get(block: Any, path: str) -> Any:
    for step in path.split("."):
        block = block[_step(block, step)]
    return block


def _has(block: Mapping[str, Any], path: str) -> bool:
    try:
        _get(block, path)
    except (KeyError, IndexError, TypeError):
        return False
    return True


def _paths(block: Any, prefix: str = "") -> list[str]:
    """The paths of all single values."""
    if not isinstance(block, dict | list):
        return [prefix[:-1]]
    parts = block.items() if isinstance(block, dict) else enumerate(block)
    return [path for key, value in parts for path in _paths(value, f"{prefix}{key}.")]
