"""The keys of `data` that every kind of data has, and how a kind's block joins them."""

import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from selfsup.config import Strict
from selfsup.errors import UserError


class GroupTable(Strict):
    """A CSV file with a header: the group of each file of a source."""

    table: str  # the CSV file
    file: str  # the column of file names: the path below the source's folder, the name, or the name without extension
    group: str  # the column of groups


class Shared(Strict):
    """The keys of `data` that every kind of data has: how samples are split, checked, stored and watched."""

    labels: Literal["folder", "none"]  # `none` ignores the labels that a source has
    validation: Annotated[float, Field(gt=0, lt=0.5)]  # share of the training samples held out for choices
    test: Annotated[float, Field(gt=0, lt=0.5)]  # share held out for the final figures when the source has no test
    duplicates: Literal["warn", "drop", "fail"]  # samples whose decoded signals equal those of another split's sample
    group: str | GroupTable | None  # what must stay in one split: a regular expression on file names, or a table
    rare: Literal["keep", "drop", "fail"]  # classes with too few samples for a sample in every split
    limit: PositiveInt | None  # number of training samples to use, a seeded stratified draw
    on_error: Literal["fail", "skip"]  # an unreadable file: stop and name it, or list it and continue
    samples_per_shard: PositiveInt
    verify: Literal["full", "size"]  # check shards by SHA-256 or only by size and count before use
    cache: Literal["auto", "memory", "disk", "none"]  # where decoded samples are kept
    watch: Literal["listing", "content", "none"]  # how a change of the source's files and of the table is noticed

    @model_validator(mode="after")
    def _group_is_an_expression(self) -> Self:
        if isinstance(self.group, str):
            try:
                re.compile(self.group)
            except re.error as error:
                raise ValueError(f"data.group: {self.group!r} is no regular expression: {error}; fix it") from None
        return self


class KindData(Shared):
    """The shared keys and the block of one kind, flat: what the code that handles one kind reads.

    A subclass has the keys of `data.<kind>`. `reads` are those of them that decide what a network sees of the shards;
    the others act while shards are written.
    """

    kind: ClassVar[str]
    noun: ClassVar[str]  # what several samples are called in messages
    reads: ClassVar[tuple[str, ...]]
    source: str

    @property
    def title(self) -> str:
        """What the data are called in a report."""
        return self.source

    @property
    def extent(self) -> str:
        """How much of a sample a network sees, in words."""
        return ", ".join(f"{name} {value}" for name, value in self.read().items())

    def place(self, name: str) -> str:
        """Where a user finds the source's file `name`."""
        return f"{self.source}: {name}"

    def of(self, kind: str) -> Self:
        """Itself, where it is of that kind. Raises `UserError`."""
        if kind != self.kind:
            raise UserError(f"data: of the kind {self.kind}, but {kind} is needed; run dvc repro shard")
        return self

    def read(self) -> dict[str, Any]:
        """The keys in `reads` and their values."""
        return self.model_dump(include=set(self.reads))
