"""The bytes of any image file that Pillow reads -> uint8 RGB pixels.

Transparent images lie on white, EXIF orientation is applied, 16-bit and float images are scaled to 8 bits, and
animations and multi-page files give their first frame.
"""

import io
import re
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageFile, ImageOps

VERSION = 1  # of the pixels that this file gives: decoded caches of another version are not used
MAX_PIXELS = 20_000 * 20_000
_TO_8_BITS = np.floor(np.arange(65536) * 255 / 65535 + 0.5).astype(np.uint8)

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow refuses above twice that and warns above it, `_load` refuses above it
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged EXIF and the like: the pixels count


class Unreadable(Exception):
    """A file that is no image, is truncated or is too large. The message says which, without the file's name."""


def extensions() -> frozenset[str]:
    """Lower-case file name extensions, with the dot, of the image formats that Pillow decodes here."""
    known = set(_formats())
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in known)


@cache
def _formats() -> tuple[str, ...]:
    """The formats to decode, whatever a file's name says: not what Pillow only recognises, such as HDF5 and MPEG,
    nor EPS, which is a program that Ghostscript would run."""
    Image.preinit()  # first, so that `Image.open` tries the common formats before the others
    Image.init()
    return tuple(
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in ("EPS", "MPEG")
        and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))
    )


def load(data: bytes, longest: int | None = None) -> Image.Image:
    """Decode an image file to mode RGB, shrunk with antialiasing until no side exceeds `longest` pixels.

    Raises `Unreadable`.
    """
    try:
        return _load(data, longest)
    except Image.DecompressionBombError as error:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels, a decompression bomb?") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable("not an image" if data else "an empty file") from error
    except MemoryError as error:
        raise Unreadable("too large for the memory of this machine") from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "file", str(error)) or type(error).__name__
        raise Unreadable(" ".join(reason.split())) from error


def decode(data: bytes, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image file as a square, uint8 [3 size size], and its box: the valid (height, width) at the top-left corner.

    Images larger than the square are shrunk with their aspect kept until the longer side is `size` pixels; smaller
    ones stay as they are. Outside the box the square is 0. Raises `Unreadable`.
    """
    pixels = np.asarray(load(data, size))  # [h w 3]
    height, width = pixels.shape[:2]
    square = np.zeros((3, size, size), np.uint8)
    square[:, :height, :width] = pixels.transpose(2, 0, 1)
    return square, (height, width)


def shrink(data: bytes, longest: int) -> tuple[bytes, str] | None:
    """The file re-encoded with its longest side at `longest` pixels, and its extension; None when it is no larger.

    JPEG stays JPEG, at quality 95; every other format becomes PNG. Raises `Unreadable`.
    """
    image = load(data, longest)  # also tells an unreadable file, whatever its size
    with Image.open(io.BytesIO(data), formats=_formats()) as original:
        if max(original.size) <= longest:
            return None
        jpeg = original.format in ("JPEG", "MPO")
        grey = original.mode in ("1", "L", "I", "F") or original.mode.startswith("I;16")
    if grey:
        image = image.convert("L")
    return encode(image, "JPEG" if jpeg else "PNG"), ".jpg" if jpeg else ".png"


def encode(image: Image.Image, format: str) -> bytes:
    """An image as PNG or as JPEG of quality 95."""
    file = io.BytesIO()
    image.save(file, format, **({"quality": 95} if format == "JPEG" else {}))
    return file.getvalue()


def png(pixels: np.ndarray) -> bytes:
    """An array, uint8 [H W] or [H W 3], as a PNG file."""
    return encode(Image.fromarray(pixels), "PNG")


def _load(data: bytes, longest: int | None) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if 0 in image.size:
            raise ValueError("an image of no pixels")
        if _direct(image):  # before it is loaded: JPEG then decodes at a fraction of its size, in little memory
            _shrink(image, longest)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        plain = image if _direct(image) else _plain(image)
        _shrink(plain, longest)
        return _on_white(plain)


def _direct(image: Image.Image) -> bool:
    """Whether the mean of the image's values is the mean of its colours."""
    return image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in image.info


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_to_8_bits(np.asarray(image)))
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _shrink(image: Image.Image, longest: int | None) -> None:
    """In place. In two steps when it is by far, as Pillow's fast reduction is inexact beyond some 100 times."""
    for side in (64 * longest, longest) if longest else ():
        if max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _on_white(image: Image.Image) -> Image.Image:
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_8_bits(values: np.ndarray) -> np.ndarray:
    """Grey values of any range -> uint8.

    Integers are 16-bit values, 0..65535. Floats are 0..1, 0..255 or 0..65535, the first of these that holds them all.
    What lies outside all of these is stretched from its own least to its own greatest value.
    """
    if values.dtype == np.uint16 or values.dtype == np.dtype(">u2"):
        return _TO_8_BITS[values]
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    values = np.nan_to_num(values, nan=0.0, posinf=high, neginf=low)
    if low < 0 or high > 65535:
        values, scale = values - low, 255 / ((high - low) or 1.0)
    elif values.dtype.kind in "iu" or high > 255:
        scale = 255 / 65535
    else:
        scale = 255.0 if high <= 1 else 1.0
    return np.clip(np.floor(values * scale + 0.5), 0, 255).astype(np.uint8)
