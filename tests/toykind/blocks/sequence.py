"""The block `data.sequence` of a kind of data that the package does not have."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from selfsup.blocks.base import KindData


class SequenceData(KindData):
    """Where sequences of whole numbers come from, and how many numbers of each a network sees."""

    kind = "sequence"
    noun = "sequences"
    reads = ("length",)
    source: Literal["sequence_folder", "steps"]
    path: str | None  # of source sequence_folder
    length: Annotated[int, Field(ge=1, le=64)]  # L: longer sequences are cut, shorter ones filled up

    @property
    def extent(self) -> str:
        return f"{self.length} numbers"

    @model_validator(mode="after")
    def _a_folder_needs_a_path(self) -> Self:
        if self.source == "sequence_folder" and self.path is None:
            raise ValueError("data.sequence.path: source sequence_folder needs a path")
        return self


Block = SequenceData
