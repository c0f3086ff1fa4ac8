"""The section `data` of params.yaml: keys that all kinds of data share, and one block per kind of data.

A kind of data, such as images, belongs to a method. `Data.of(kind)` joins the shared keys and the kind's block into one
flat strict model. The registry is the folder listing: a file `<kind>.py` with `Block`, a `KindData`, is a kind.
"""

from functools import cache
from importlib import import_module
from typing import Any, Self, get_args

from pydantic import ConfigDict, model_validator

from selfsup import kinds
from selfsup.blocks.base import GroupTable, KindData, Shared
from selfsup.config import known, parse, unknown
from selfsup.errors import UserError

__all__ = ["Data", "GroupTable", "KindData", "Shared", "models", "own_keys", "sources"]

DECLARED = ("kind", "noun", "reads")
"""The class variables of a kind's `Block`; `blocks.base.KindData` describes them."""


@cache
def models() -> dict[str, type[KindData]]:
    """The kinds of data and what their blocks hold. Raises `UserError`, which names a file without its declaration."""
    return {kind: _model(kind) for kind in known(__path__) if kind != "base"}


def _model(kind: str) -> type[KindData]:
    model = kinds.checked("blocks", kind, lambda: import_module(f"selfsup.blocks.{kind}"), ("Block",)).Block
    if lacking := [name for name in DECLARED if not hasattr(model, name)]:
        raise UserError(f"blocks/{kind}.py: {', '.join(lacking)} missing; a Block declares {', '.join(DECLARED)}")
    if model.kind != kind:
        raise UserError(f"blocks/{kind}.py: Block is of the kind {model.kind!r}; name it as the file")
    return model


class Data(Shared):
    """The section `data`: the shared keys, and one block `data.<kind>` per kind of data. `of` joins both."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        for key in set(values) - set(cls.model_fields) - set(models()) if isinstance(values, dict) else ():
            if home := next((kind for kind, model in models().items() if key in own_keys(model)), None):
                raise ValueError(f"data.{key}: is now data.{home}.{key}; move it there")
            raise ValueError(f"data.{key}: {unknown(str(key), [*cls.model_fields, *models()])}")
        return values

    @model_validator(mode="after")
    def _blocks_are_valid(self) -> Self:
        for kind in self.__pydantic_extra__:
            try:
                self.of(kind)
            except UserError as error:
                raise ValueError(str(error).removeprefix("params.yaml: ")) from None
        return self

    @property
    def first(self) -> str:
        """The kind of the first block."""
        return next(iter(self.__pydantic_extra__))

    def of(self, kind: str) -> Any:
        """The shared keys and the block of `kind` as its `KindData`. Raises `UserError` without such a block."""
        if kind not in self.__pydantic_extra__:
            blocks = ", ".join(f"data.{name}" for name in self.__pydantic_extra__) or "none"
            raise UserError(f"params.yaml: data.{kind}: missing block; add it (there are: {blocks})")
        model, block = models()[kind], self.__pydantic_extra__[kind]
        for key in set(block) - own_keys(model):
            raise UserError(f"params.yaml: data.{kind}.{key}: {unknown(str(key), own_keys(model))}")
        for other, rival in models().items():
            if block.get("source") in sources(rival) and block["source"] not in sources(model):
                raise UserError(
                    f"params.yaml: data.{kind}.source: {block['source']} is a source of the kind {other}; choose one "
                    f"of {', '.join(sources(model))}"
                )
        return parse(model, self.model_dump(include=set(Shared.model_fields)) | block, prefix=f"data.{kind}")


def own_keys(model: type[KindData]) -> set[str]:
    """The keys of a kind's block."""
    return set(model.model_fields) - set(Shared.model_fields)


def sources(model: type[KindData]) -> tuple[str, ...]:
    """The names that a kind's `source` may have."""
    return get_args(model.model_fields["source"].annotation)
