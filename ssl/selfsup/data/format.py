"""The contract of a format: what the files of one kind of data become, in shards and in batches.

A module `selfsup.data.formats.<kind>` declares:

    VERSION          of the arrays that a decoder gives: decoded caches of another version are not used
    Facts            a strict model of what sharding finds in the whole set and readers need; it is part of index.json
    Intake           what becomes of the source's files while shards are written
    decoder          (data, facts) -> Decoder, from the stored bytes of a sample to its arrays
    equality(data)   how two equal samples are equal, in words, such as "equal at 16 px"
    thumbnail        arrays of one sample, by name -> a picture of it for a page
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from selfsup.config import Strict

if TYPE_CHECKING:
    from PIL import Image

Arrays = Mapping[str, np.ndarray]
"""The signals of one sample by name."""


class Unreadable(Exception):
    """A file that is no sample of its kind, or is damaged. The message names the cause, without the file's name."""


class Unsettled(Unreadable):
    """A file that can be read only when `Intake.settle` has seen what all files hold."""


class Signal(NamedTuple):
    """What one array of a sample is."""

    shape: tuple[int, ...]
    dtype: type[np.generic]


class Decoder(Protocol):
    """From the stored bytes of a sample to its arrays. Its `repr` holds all that decides them."""

    @property
    def signals(self) -> Mapping[str, Signal]:
        """The names of the arrays and what each is, the same for every sample."""
        ...

    def __call__(self, file: bytes) -> Arrays:
        """Raises `Unreadable`."""
        ...


@dataclass
class Taken:
    """What becomes of a file that is in a shard."""

    file: bytes  # to store
    extension: str  # lower case, with the dot
    content: np.ndarray  # samples are equal, in `data.duplicates`, when the shape and bytes of this are


class Intake(Protocol):
    """What becomes of the files of a shard, and what they hold. One is made per shard and comes back from its process.

    It is made as `Intake(data, settled)`, with `settled` None at first. Where `take` raises `Unsettled`, the shard is
    read to its end but not written. When all other shards are written, `settle` of the merged findings on these tells
    what `settled` is, and they are read again with it.
    """

    def take(self, file: bytes, name: str, training: bool) -> Taken:
        """Raises `Unreadable`. `training`: whether the sample is of the training split, of which alone a network may
        learn."""
        ...

    def merge(self, other: Any) -> None:
        """Add what another shard held. Shards come in their order, but those to be read again as they are ready."""
        ...

    def settle(self) -> Any:
        """What must be known of all files to read those that raised `Unsettled`; it can be sent to a process."""
        ...

    def facts(self) -> tuple[Strict, list[str]]:
        """The `Facts`, and whole sentences on what a user should know of the files."""
        ...


class Format(Protocol):
    """A module of `selfsup.data.formats`; see the head of this file."""

    VERSION: int
    Facts: type[Strict]
    Intake: Callable[[Any, Any], Intake]
    decoder: Callable[[Any, Any], Decoder]
    equality: Callable[[Any], str]
    thumbnail: Callable[[Arrays], "Image.Image"]
