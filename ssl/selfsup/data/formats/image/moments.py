"""Mean and deviation of the training images' channels, by which the network's input is normalised."""

from dataclasses import dataclass, field

import numpy as np

# A channel that varies by less than the rounding to 8 bits, uniform over a step of 1/255, holds nothing but rounding.
ROUNDING = 1 / (255 * 12**0.5)
_CHANNELS = ("red", "green", "blue")


@dataclass
class Moments:
    """Of a number of images, each weighted equally, by channel, [3]."""

    images: int = 0
    mean: np.ndarray = field(default_factory=lambda: np.zeros(3))  # sum of the images' means in 0..1
    square: np.ndarray = field(default_factory=lambda: np.zeros(3))  # sum of their mean squares
    low: np.ndarray = field(default_factory=lambda: np.full(3, 255))  # extremes in 0..255 until all channels varied
    high: np.ndarray = field(default_factory=lambda: np.zeros(3, int))
    varied: bool = False  # whether each channel has had two values

    def add(self, pixels: np.ndarray) -> None:
        """Count an image, uint8 [3 H W]. Its sums are of integers, so exact."""
        values = pixels.reshape(3, -1).astype(np.uint32)
        total, squares = values.sum(1, dtype=np.uint64), (values * values).sum(1, dtype=np.uint64)
        self.images += 1
        self.mean += total / (255 * values.shape[1])
        self.square += squares / (255**2 * values.shape[1])
        if not self.varied:
            self.low, self.high = np.minimum(self.low, values.min(1)), np.maximum(self.high, values.max(1))
            self.varied = bool((self.low < self.high).all())

    def merge(self, other: "Moments") -> None:
        """Add the sums of other images. Their order decides the last bit of the means."""
        self.images += other.images
        self.mean, self.square = self.mean + other.mean, self.square + other.square
        self.low, self.high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        self.varied |= other.varied


def measure(found: Moments) -> tuple[list[float], list[float], list[str]]:
    """Mean and divisor of each channel, and sentences on channels without variation, whose divisor is 1."""
    mean, square = found.mean / found.images, found.square / found.images
    std = np.sqrt(np.maximum(square - mean**2, 0))
    low, high = found.low, found.high
    constant = low == high
    mean = np.where(constant, low / 255, mean)
    flat = constant | (std < ROUNDING)
    channels: dict[str, list[str]] = {}
    for c, name in enumerate(_CHANNELS):
        if flat[c]:
            what = f"{low[c]} everywhere" if constant[c] else f"within rounding of {255 * mean[c]:.2f}"
            channels.setdefault(what, []).append(name)
    said = [
        f"{' and '.join(names).capitalize()} of the training images: {what} (of 0..255); normalised by 1, and says "
        "nothing of an image."
        for what, names in channels.items()
    ]
    return mean.tolist(), np.where(flat, 1.0, std).tolist(), said
