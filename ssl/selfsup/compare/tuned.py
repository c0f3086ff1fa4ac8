"""What a set-up that `make tune` wrote says of its recipes: how many trials each had, and on what they were judged.

It stands in the set-up's section `tuned`, which holds no parameters of the pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, PositiveInt

from selfsup import digests
from selfsup.compare import setup
from selfsup.config import Strict, parse, read_yaml

Accuracy = Annotated[float, Field(ge=0, le=1)]


class Winner(Strict):
    """The best of a method's trials."""

    trials: PositiveInt
    trial: PositiveInt  # the number of the best one; 1: the recipe as it was
    recipe: Accuracy | None  # reading of the recipe as it was; null: its trial failed
    best: Accuracy  # reading of the best trial
    block: str  # digest of the method's block that the best trial had


class Tuned(Strict):
    """The budget of a tuning, and the winner of each method."""

    seeds: Annotated[list[int], Field(min_length=1)]
    epochs: PositiveInt  # of a trial
    trained: Annotated[list[PositiveInt], Field(min_length=1)]  # images that a trial trains on, by seed
    held_out: Annotated[list[PositiveInt], Field(min_length=1)]  # other images, that judge it, by seed
    data: Annotated[list[str], Field(min_length=1)]  # checksum of the training and held-out shards, by seed
    code: str  # git commit
    ranges: str  # digest of the file of ranges
    methods: dict[str, Winner]


def read(root: Path, name: str) -> Tuned | None:
    """The section `tuned` of the set-up `name`, None where it has none. Raises `UserError`."""
    return _both(root, name)[0]


def trials_of(name: str, root: Path = Path()) -> dict[str, int]:
    """The number of trials by method of the set-up `name`; a method that is not there was not tuned.

    A method whose block was edited after the tuning, in the set-up or in params.yaml, counts as not tuned. Raises
    `UserError`.
    """
    found, blocks = _both(root, name)
    return {
        method: winner.trials
        for method, winner in (found.methods.items() if found else ())
        if method in blocks and digests.of_values(blocks[method]) == winner.block
    }


def _both(root: Path, name: str) -> tuple[Tuned | None, dict[str, Any]]:
    """The section `tuned` of a set-up, and the methods' blocks with it."""
    base, file = setup.base_of(root), f"{setup.FOLDER}/{name}.yaml"
    blocks = setup.merged(base, setup.read(root, name, base))["methods"]
    values = read_yaml(root / file).get(setup.TUNED)
    return None if values is None else parse(Tuned, values, setup.TUNED, file), blocks
