"""The section `data` of params.yaml: keys that all kinds of data share, and one block per kind.

A kind of data, such as images, belongs to a method. `Data.of(kind)` joins the shared keys and the kind's block into one
flat strict model.
"""

import re
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

from pydantic import ConfigDict, Field, PositiveInt, model_validator

from selfsup.config import Strict, parse, unknown
from selfsup.errors import UserError


class GroupTable(Strict):
    """A CSV file with a header: the group of each image file."""

    table: str  # the CSV file
    file: str  # the column of file names: the path below data.image.path, the name alone, or the name without extension
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


class ImageData(KindData):
    """Where images come from, and the size at which they are stored and seen."""

    kind = "image"
    noun = "images"
    reads = ("image_size", "store_size")
    source: Literal["digits", "image_folder", "torchvision", "webdataset"]
    path: str | None  # folder or archive; shards: a path, URL or `pipe:` with {000..009} ranges
    name: str | None  # class of torchvision.datasets, such as CIFAR10
    image_size: Annotated[int, Field(ge=8, le=1024)]  # side of the square that the network sees, pixels
    store_size: Annotated[int, Field(ge=8, le=2048)] | None  # side of the square decoded images are kept in
    resize: Annotated[int, Field(ge=8)] | None  # longest side of the images written to shards; null keeps the bytes
    range: (
        Literal["auto"] | Annotated[list[float], Field(min_length=2, max_length=2)]
    )  # mapped to 0..255 where not 8 bits

    @property
    def title(self) -> str:
        return self.name or Path(self.path or self.source).name

    @property
    def extent(self) -> str:
        return f"{self.image_size} px"

    def place(self, name: str) -> str:
        return str(Path(self.path, name)) if self.source == "image_folder" and self.path else super().place(name)

    @property
    def stored(self) -> int:
        """Side of the squares that decoded images are kept in, pixels."""
        return self.store_size or self.image_size

    @model_validator(mode="after")
    def _source_has_what_it_needs(self) -> Self:
        if self.source in ("image_folder", "webdataset") and self.path is None:
            raise ValueError(f"data.image.path: source {self.source} needs a path")
        if self.source == "torchvision" and self.name is None:
            raise ValueError("data.image.name: source torchvision needs the name of a data set, such as CIFAR10")
        return self

    @model_validator(mode="after")
    def _range_rises(self) -> Self:
        if self.range != "auto" and not self.range[0] < self.range[1]:
            raise ValueError(
                f"data.image.range: needs low < high, got [{self.range[0]:g}, {self.range[1]:g}]; swap them"
            )
        return self


BLOCKS: dict[str, type[KindData]] = {"image": ImageData}
"""The kinds of data and what their blocks hold. Tests add further kinds."""


class Data(Shared):
    """The section `data`: the shared keys, and one block `data.<kind>` per kind of data. `of` joins both."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, dict[str, Any]]

    @model_validator(mode="before")
    @classmethod
    def _keys_are_known(cls, values: Any) -> Any:
        for key in set(values) - set(cls.model_fields) - set(BLOCKS) if isinstance(values, dict) else ():
            if home := next((kind for kind, model in BLOCKS.items() if key in own_keys(model)), None):
                raise ValueError(f"data.{key}: is now data.{home}.{key}; move it there")
            raise ValueError(f"data.{key}: {unknown(str(key), [*cls.model_fields, *BLOCKS])}")
        return values

    @model_validator(mode="after")
    def _blocks_are_valid(self) -> Self:
        for kind in self.__pydantic_extra__:
            try:
                self.of(kind)
            except UserError as error:
                raise ValueError(str(error).removeprefix("params.yaml: ")) from None
        return self

    def of(self, kind: str) -> Any:
        """The shared keys and the block of `kind` as its `KindData`. Raises `UserError` without such a block."""
        if kind not in self.__pydantic_extra__:
            blocks = ", ".join(f"data.{name}" for name in self.__pydantic_extra__) or "none"
            raise UserError(f"params.yaml: data.{kind}: missing block; add it (there are: {blocks})")
        model, block = BLOCKS[kind], self.__pydantic_extra__[kind]
        for key in set(block) - own_keys(model):
            raise UserError(f"params.yaml: data.{kind}.{key}: {unknown(str(key), own_keys(model))}")
        for other, rival in BLOCKS.items():
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
