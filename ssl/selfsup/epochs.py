"""Parameters that count epochs, shortened in a run that is too short for them."""

from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import BaseModel, Field

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class AtMost:
    """Marks a parameter that counts epochs: `fitted` limits it to `share` of the run."""

    share: float  # of the run
    whole: bool = False  # a period, which is a whole number of epochs from 1


Epochs = Annotated[int, Field(ge=0), AtMost(1 / 2)]  # the first ones of a run
WarmUp = Annotated[float, Field(ge=0), AtMost(1 / 2)]
Readings = Annotated[int, Field(ge=0), AtMost(1, whole=True)]  # epochs between two readings during training; 0: none
Period = Annotated[int, Field(ge=1), AtMost(1 / 2, whole=True)]  # epochs between two events of the training


def shortened(section: BaseModel, epochs: int) -> dict[str, float]:
    """The shorter values, by name, of the section's parameters that are too long for a run of `epochs`."""
    found: dict[str, float] = {}
    for name, field in type(section).model_fields.items():
        for mark in field.metadata:
            if isinstance(mark, AtMost) and getattr(section, name) > epochs * mark.share:
                found[name] = max(1, int(epochs * mark.share)) if mark.whole else epochs * mark.share
    return {name: value for name, value in found.items() if value != getattr(section, name)}


def fitted(section: M, epochs: int) -> M:
    """The section for a run of `epochs`: with the values of `shortened`."""
    return section.model_copy(update=shortened(section, epochs))
