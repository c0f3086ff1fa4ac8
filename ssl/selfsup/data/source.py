"""Where samples come from: every source lists the samples of each split and gives a function that reads one file."""

import difflib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

SPLITS = ("train", "validation", "test")


@dataclass
class Samples:
    """One split of a source, in the source's own order."""

    names: Sequence[str]  # file names as the user knows them; the extension tells the format
    labels: np.ndarray  # int64 [N], -1: none
    refs: Sequence[Any] | np.ndarray  # what `Source.read` takes


@dataclass
class Source:
    """Splits `train` and, where the source has its own, `validation` and `test`; `read` can be sent to a process."""

    classes: list[str]
    splits: dict[str, Samples]
    read: Callable[[Any], bytes]
    left_out: dict[str, int] = field(default_factory=dict)  # files that are no samples, by extension
    notes: list[str] = field(default_factory=list)  # whole sentences on what was left out


class Watched(NamedTuple):
    """A source's files outside the project: those of `names` below `root`, a folder, or `root` itself, named ""."""

    root: Path | None  # None: nothing is watched
    place: str = ""  # the same as params.yaml has it
    names: Iterable[str] = ()
    why_not: str = ""


def resolve(path: str) -> Path:
    """A relative path that is not here is looked for in the main repository: experiments run in copies of it."""
    root = os.environ.get("DVC_ROOT")
    found = Path(path).expanduser()
    if root and not found.is_absolute() and not found.exists():
        return Path(root) / found
    return found


def array_samples(images: np.ndarray, labels: np.ndarray) -> Samples:
    """Images held in memory, uint8 [N H W] or [N H W 3]; read as PNG."""
    return Samples([f"{number:06d}.png" for number in range(len(images))], labels.astype(np.int64), images)


def not_read(left_out: Counter[str], noun: str) -> list[str]:
    """A sentence on files that are no samples."""
    if not left_out:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in few(left_out).items())
    remedy = f"; convert those that are {noun}" if set(left_out) - {"hidden"} else ""
    return [f"Files left out, as their names are not those of {noun}: {kinds}{remedy}."]


def few(counts: Counter[str]) -> dict[str, int]:
    """The most frequent kinds, at most 20, and all others as one."""
    most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    rest = sum(count for _, count in most[20:])
    return dict(most[:20]) | ({"others": rest} if rest else {})


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint for a misspelt name."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
