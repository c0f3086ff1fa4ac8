"""One value range for the whole set: the line from the numbers of files of more than 8 bits to 0..255.

Files of 8 bits need none and are never mapped. All others, integers of more than 8 bits, signed ones and floats, are
mapped by v -> (v - low) * 255 / (high - low), rounded, clipped to 0..255: one line for every file of every split, at
sharding and at every later decode. `data.image.range: auto` decides low and high once, while sharding, from the types
and values of all files (`decide`); `data.image.range: [low, high]` gives them.
"""

from collections import Counter
from dataclasses import dataclass, field, fields
from functools import lru_cache

import numpy as np

from selfsup.config import Strict

Span = tuple[float, float]  # low, high

FEW_LEVELS = 32  # of 256; with fewer in use after the mapping, sharding warns
POOR = 8  # levels; mapped files with fewer are counted
_TAIL = 1e-4  # share of the pixels at either end that may be outliers
_STRETCH = 4  # outliers are cut off if they make the range this many times wider than that of all other pixels
_FULL = (1.0, 255.0, 65535.0)  # the usual full scales of floats


class Range(Strict):
    """The range that is mapped to 0..255 in every file whose numbers 8 bits do not hold."""

    low: float
    high: float
    rule: str  # why these

    @property
    def span(self) -> Span:
        return self.low, self.high


@dataclass
class Survey:
    """What decoding has met in a set of files. Counts are integers, so the order of merging does not matter."""

    types: Counter[str] = field(default_factory=Counter)  # files by the type of their numbers: uint8, uint16, float32
    transparent: int = 0  # files with pixels that are not opaque
    several: int = 0  # files of more than one frame or page
    deep: int = 0  # files with 16 bits per colour channel, of which Pillow gives the upper 8
    low: float = np.inf  # extremes of all mapped numbers
    high: float = -np.inf
    histogram: np.ndarray | None = None  # int64 [65536], of the upper 16 bits of the numbers as float32
    levels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # pixels by level after the mapping
    deep_levels: np.ndarray = field(default_factory=lambda: np.zeros(256, np.int64))  # pixels of deep files by level
    clipped_pixels: int = 0
    clipped_files: int = 0
    poor: int = 0  # mapped files with fewer than `POOR` levels

    def meet(self, values: np.ndarray) -> None:
        """Count the numbers of a file that has to be mapped, any shape, finite."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        bins = values.astype("<f4").ravel().view(np.uint32) >> 16
        counts = np.bincount(bins, minlength=65536)
        self.histogram = counts if self.histogram is None else self.histogram + counts

    def mapped(self, values: np.ndarray, levels: np.ndarray, span: Span) -> None:
        """Count the levels, uint8, that a file's numbers became, and the numbers outside the range."""
        counts = np.bincount(levels.ravel(), minlength=256)
        self.levels += counts
        self.poor += int(np.count_nonzero(counts)) < POOR
        outside = int(np.count_nonzero((values < span[0]) | (values > span[1])))
        self.clipped_pixels += outside
        self.clipped_files += outside > 0

    def merge(self, other: "Survey") -> None:
        """Add the counts of other files."""
        for each in fields(self):
            if each.name not in ("low", "high", "histogram"):
                setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        if other.histogram is not None:
            self.histogram = other.histogram if self.histogram is None else self.histogram + other.histogram

    def wide(self) -> Counter[str]:
        """Files that have to be mapped, by type."""
        return Counter({name: count for name, count in self.types.items() if name != "uint8"})

    def inner(self) -> Span:
        """The extremes of all pixels but the outermost 1 in 10,000 at either end, truncated to 8 significant bits."""
        assert self.histogram is not None
        centres = np.arange(65536, dtype=np.uint32) << 16
        order = np.argsort(centres.view("<f4"), kind="stable")  # NaN comes last, and is never met
        below = np.cumsum(self.histogram[order])
        cut = int(below[-1] * _TAIL)
        edges = centres.view("<f4")[order[np.searchsorted(below, [cut, below[-1] - cut - 1], side="right")]]
        return float(edges[0]), float(edges[1])


def decide(survey: Survey) -> Range:
    """The range of a set, from what all its files hold.

    1. The extremes of all files. Where outliers, at most 1 pixel in 10,000 at either end, make them more than four
       times as wide as the extremes of all other pixels, the latter.
    2. Integers from 0 on: the fewest bits, at least 8, that hold them. Floats from 0 on whose greatest value lies in
       the upper half of 0..1, 0..255 or 0..65535: that scale. All others: the extremes themselves.
    """
    low, high, cut = survey.low, survey.high, ""
    inner = survey.inner()
    if high - low > _STRETCH * (inner[1] - inner[0]) > 0:
        (low, high), cut = inner, ", outliers aside"
    if low >= 0 and not any(name.startswith("float") for name in survey.types):
        bits = max(8, int(high).bit_length())
        return Range(low=0, high=2**bits - 1, rule=f"the fewest bits that hold all values ({bits}){cut}")
    for top in _FULL:
        if low >= 0 and top / 2 < high <= top:
            return Range(low=0, high=top, rule=f"the full scale of floats that holds all values{cut}")
    if low == high:
        high = low + 1
    return Range(low=low, high=high, rule=f"the least and the greatest value{cut}")


def to_8_bits(values: np.ndarray, span: Span) -> np.ndarray:
    """The line of the module's head: finite numbers of any type -> uint8 of the same shape."""
    if values.dtype == np.uint16:
        return _table(span)[values]
    return _line(values, span)


@lru_cache(maxsize=4)
def _table(span: Span) -> np.ndarray:
    return _line(np.arange(65536), span)


def _line(values: np.ndarray, span: Span) -> np.ndarray:
    low, high = span
    return np.clip(np.floor((values.astype(np.float64) - low) * 255 / (high - low) + 0.5), 0, 255).astype(np.uint8)


def notes(survey: Survey, chosen: Range | None, given: bool) -> list[str]:
    """What a user should know of the files' values and extra channels, as whole sentences."""
    said, wide, files = [], survey.wide(), survey.types.total()
    if chosen and wide:
        types = ", ".join(f"{count:,} {name}" for name, count in sorted(wide.items()))
        said.append(
            f"The values of {wide.total():,} images ({types}) are mapped from [{chosen.low:g}, {chosen.high:g}] to "
            f"0..255; rule: {chosen.rule}."
        )
        if len(survey.types) > 1:
            eight = survey.types["uint8"]
            other = f"; {eight:,} images of 8 bits keep 0..255" if eight else ""
            said.append(
                f"The images are of mixed types{other}; convert them to one type if their values differ in scale."
            )
        if survey.clipped_pixels:
            said.append(
                f"{survey.clipped_pixels:,} pixels in {survey.clipped_files:,} images lie outside "
                f"[{chosen.low:g}, {chosen.high:g}] and are clipped."
            )
        if (levels := int(np.count_nonzero(survey.levels))) < FEW_LEVELS:
            said.append(
                f"Only {levels} of 256 grey levels are in use after the mapping; set data.image.range: [low, high] to "
                "the values that matter."
            )
        elif survey.poor:
            said.append(
                f"{survey.poor:,} of {wide.total():,} mapped images have fewer than {POOR} of 256 levels; do all have "
                "one scale?"
            )
    elif given:
        said.append("data.image.range has no effect: all images have 8 bits.")
    if survey.deep:
        said.append(f"{survey.deep:,} of {files:,} images have 16 bits per colour channel; the upper 8 are used.")
        if (levels := int(np.count_nonzero(survey.deep_levels))) < FEW_LEVELS:
            said.append(f"Only {levels} of 256 levels are in use in these images; convert them to 8 bits.")
    if survey.transparent:
        said.append(f"{survey.transparent:,} of {files:,} images have transparent pixels; these are laid on white.")
    if survey.several:
        said.append(f"{survey.several:,} of {files:,} images have several frames or pages; the first of each is used.")
    return said
