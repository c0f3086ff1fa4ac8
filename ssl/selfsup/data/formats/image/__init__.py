"""Images: files that Pillow reads, stored as they are; `image` uint8 [3 S S] and `box` int64 [2] in a batch.

S is `data.image.store_size`. `box` is the valid (height, width) at the top-left corner; outside of it the image is 0.
"""

from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated

import numpy as np
from PIL import Image
from pydantic import Field

from selfsup.blocks.image import ImageData
from selfsup.config import Strict
from selfsup.data.format import Arrays, Signal, Taken
from selfsup.data.formats.image import files
from selfsup.data.formats.image.moments import Moments, measure
from selfsup.data.formats.image.ranges import Range, Span, Survey, decide, notes

VERSION = 2


class Facts(Strict):
    """Mean and divisor of the training images' channels in 0..1, each image weighted equally; and their numbers' types.

    `std` is the divisor by which the network's input is normalised, so 1 for a channel without variation: everything
    that reads it, such as the backbone, its export and timm's configuration, then divides by the same number.
    """

    mean: Annotated[list[float], Field(min_length=3, max_length=3)]
    std: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]
    store_size: int  # pixels; the side of the squares in which mean and std were taken
    range: Range | None  # None: all images have 8 bits
    types: dict[str, int]  # images by the type of their numbers, such as uint8 and float32


class Intake:
    """Stores files as they are, or re-encoded where `data.image.resize` is set. What needs a range is read twice."""

    def __init__(self, data: ImageData, settled: Range | None = None):
        self.data = data
        self.range = settled
        if data.range != "auto":
            self.range = Range(low=data.range[0], high=data.range[1], rule="data.image.range")
        self.survey, self.moments = Survey(), Moments()

    def take(self, file: bytes, name: str, training: bool) -> Taken:
        span, longest, survey = self.range.span if self.range else None, self.data.resize, self.survey
        smaller = files.shrink(file, longest, span, survey) if longest else None
        stored, extension = smaller or (file, PurePosixPath(name).suffix.lower())
        square, (height, width) = files.decode(stored, self.data.stored, span, None if longest else survey)
        pixels = square[:, :height, :width]
        if training:
            self.moments.add(pixels)
        return Taken(stored, extension, pixels)

    def merge(self, other: "Intake") -> None:
        self.survey.merge(other.survey)
        self.moments.merge(other.moments)

    def settle(self) -> Range:
        return decide(self.survey)

    def facts(self) -> tuple[Facts, list[str]]:
        used = self.range if self.survey.wide() else None
        mean, std, flat = measure(self.moments)
        found = Facts(
            mean=mean,
            std=std,
            store_size=self.data.stored,
            range=used,
            types=dict(sorted(self.survey.types.items())),
        )
        return found, [*notes(self.survey, used, self.data.range != "auto"), *flat]


@dataclass(frozen=True)
class Decoder:
    """Squares of `size` pixels; numbers of more than 8 bits are mapped from `span`."""

    size: int
    span: Span | None

    @property
    def signals(self) -> dict[str, Signal]:
        return {"image": Signal((3, self.size, self.size), np.uint8), "box": Signal((2,), np.int64)}

    def __call__(self, file: bytes) -> Arrays:
        image, box = files.decode(file, self.size, self.span)
        return {"image": image, "box": np.array(box)}


def decoder(data: ImageData, facts: Facts) -> Decoder:
    return Decoder(data.stored, facts.range.span if facts.range else None)


def equality(data: ImageData) -> str:
    return f"equal at {data.stored} px"


def thumbnail(sample: Arrays) -> Image.Image:
    """The image, cut to its valid box."""
    height, width = sample["box"].tolist()
    return Image.fromarray(np.ascontiguousarray(sample["image"][:, :height, :width].transpose(1, 2, 0)))
