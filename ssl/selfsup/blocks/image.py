"""The block `data.image`."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfsup.blocks.base import KindData


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


Block = ImageData
