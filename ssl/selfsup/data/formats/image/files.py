"""The bytes of any image file that Pillow reads -> uint8 RGB pixels.

Transparent images lie on white, EXIF orientation is applied, and animations and multi-page files give their first
frame. Integers of more than 8 bits, signed ones and floats are mapped to 8 bits by one line for the whole set (see
`ranges`). Bands that are neither colour nor transparency, NaN and infinite pixels are refused.
"""

import io
import re
import warnings
from functools import cache

import numpy as np
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    COLORMAP,
    EXTRASAMPLES,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    SAMPLESPERPIXEL,
    ImageFileDirectory_v2,
)

from selfsup.data.format import Unreadable, Unsettled
from selfsup.data.formats.image.ranges import Span, Survey, to_8_bits

MAX_PIXELS = 20_000 * 20_000
_MAY_BE_WIDE = ("L", "I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # bands by a TIFF's photometric interpretation

Image.MAX_IMAGE_PIXELS = MAX_PIXELS  # Pillow refuses above twice that and warns above it, `_load` refuses above it
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")  # damaged EXIF and the like: the pixels count


def extensions() -> frozenset[str]:
    """Lower-case file name extensions, with the dot, of the image formats that Pillow decodes here."""
    known = set(_formats())
    return frozenset(extension for extension, name in Image.registered_extensions().items() if name in known)


@cache
def _formats() -> tuple[str, ...]:
    """The formats to decode, whatever a file's name is: not what Pillow only recognises, such as HDF5 and MPEG,
    nor EPS, which is a program that Ghostscript would run."""
    Image.preinit()  # first, so that `Image.open` tries the common formats before the others
    Image.init()
    return tuple(
        name
        for name, (factory, _) in Image.OPEN.items()
        if name not in ("EPS", "MPEG")
        and not (isinstance(factory, type) and issubclass(factory, ImageFile.StubImageFile))
    )


def load(
    data: bytes, longest: int | None = None, span: Span | None = None, survey: Survey | None = None
) -> Image.Image:
    """Decode an image file to mode RGB, shrunk with antialiasing until no side exceeds `longest` pixels.

    Numbers of more than 8 bits are mapped from the range `span`. The file's values are counted in `survey`.
    Raises `Unreadable`, and `Unsettled` where a range is needed and `span` is None.
    """
    try:
        return _load(data, longest, span, survey)
    except Unreadable:
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(f"more than {MAX_PIXELS:,} pixels, a decompression bomb?") from error
    except Image.UnidentifiedImageError as error:
        raise Unreadable(_unidentified(data)) from error
    except MemoryError as error:
        raise Unreadable("too large for the memory of this machine") from error
    except Exception as error:  # damaged files make Pillow's plugins raise nearly anything
        reason = re.sub(r"<[^>]* at 0x[0-9a-f]+>", "file", str(error)) or type(error).__name__
        raise Unreadable(" ".join(reason.split())) from error


def decode(
    data: bytes, size: int, span: Span | None = None, survey: Survey | None = None
) -> tuple[np.ndarray, tuple[int, int]]:
    """An image file as a square, uint8 [3 size size], and its box: the valid (height, width) at the top-left corner.

    Images larger than the square are shrunk with their aspect kept until the longer side is `size` pixels; smaller
    ones stay as they are. Outside the box the square is 0. `span`, `survey` and errors are those of `load`.
    """
    pixels = np.asarray(load(data, size, span, survey))  # [h w 3]
    height, width = pixels.shape[:2]
    square = np.zeros((3, size, size), np.uint8)
    square[:, :height, :width] = pixels.transpose(2, 0, 1)
    return square, (height, width)


def shrink(
    data: bytes, longest: int, span: Span | None = None, survey: Survey | None = None
) -> tuple[bytes, str] | None:
    """The file re-encoded with its longest side at `longest` pixels, and its extension; None when it is no larger.

    JPEG stays JPEG, at quality 95; every other format becomes PNG of 8 bits. `span`, `survey` and errors are those of
    `load`.
    """
    image = load(data, longest, span, survey)  # also tells an unreadable file, whatever its size
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


def _load(data: bytes, longest: int | None, span: Span | None, survey: Survey | None) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=_formats()) as image:
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError
        if 0 in image.size:
            raise ValueError("an image of no pixels")
        _check_bands(image, data)
        numbers, deep = _numbers(image), ";16" in str(image.tile)
        several = bool(survey) and image.format != "PSD" and getattr(image, "is_animated", False)  # layers are no pages
        direct = numbers == "uint8" and _direct(image)
        if direct:  # before it is loaded: JPEG then decodes at a fraction of its size, in little memory
            _shrink(image, longest)
        image.load()
        ImageOps.exif_transpose(image, in_place=True)
        if numbers != "uint8":
            plain = _mapped(image, numbers, span, survey)
        else:
            plain = image if direct else _plain(image)
        _shrink(plain, longest)
        opaque, transparent = _on_white(plain)
        if survey:
            survey.types[numbers] += 1
            survey.transparent += transparent
            survey.several += several
            if deep and numbers == "uint8":
                survey.deep += 1
                survey.deep_levels += np.bincount(np.asarray(plain).ravel(), minlength=256)
        return opaque


def _direct(image: Image.Image) -> bool:
    """Whether the mean of the image's values is the mean of its colours."""
    return image.mode in ("L", "LA", "RGB", "RGBA", "CMYK") and "transparency" not in image.info


def _tag(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a tag of a TIFF file."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return value[0] if isinstance(value, tuple) else value


def _numbers(image: Image.Image) -> str:
    """The type of a file's numbers; uint8 also stands for all whose 8 bits Pillow gives as a person would see them."""
    if image.mode not in _MAY_BE_WIDE:
        return "uint8"
    if image.mode == "F":
        return "float32"
    if image.mode.startswith("I;16"):
        return "uint16"
    signed = _tag(image, SAMPLEFORMAT, 1) == 2
    if image.mode == "L" and signed:
        return "int8"
    if image.mode == "I":
        kind = "int" if signed or not hasattr(image, "tag_v2") else "uint"
        return f"{kind}{_tag(image, BITSPERSAMPLE, 32)}"
    return "uint8"


def _mapped(image: Image.Image, numbers: str, span: Span | None, survey: Survey | None) -> Image.Image:
    """The image in mode L, by the line of its set."""
    # Pillow shows 8 signed bits as 0..255 and 32 unsigned ones with a sign: the conversion takes the same bits.
    values = np.asarray(image).astype(numbers, copy=False)
    if unusable := values.size - int(np.count_nonzero(np.isfinite(values))):
        raise Unreadable(f"{unusable:,} of its {values.size:,} pixels are NaN or infinite")
    if span is None:
        if survey:
            survey.types[numbers] += 1
            survey.meet(values)
        raise Unsettled("its values need a range")
    levels = to_8_bits(values, span)
    if _tag(image, PHOTOMETRIC_INTERPRETATION, 1) == 0:  # white is zero, which Pillow sees to in 8 bits only
        levels = 255 - levels
    if survey:
        survey.mapped(values, levels, span)
    return Image.fromarray(levels)


def _check_bands(image: Image.Image, data: bytes) -> None:
    """Raise `Unreadable` for bands that are neither colour nor, as the file says, transparency."""
    if image.format not in ("TIFF", "JPEG2000", "FITS"):
        return
    if image.format == "FITS" and (image.mode == "I;16" or re.search(rb"BZERO|BSCALE", data[:28_800])):
        raise Unreadable("signed or scaled numbers of FITS, which Pillow reads wrong; convert it to TIFF")
    bands = usable = len(image.getbands())
    if image.format == "TIFF":
        bands = _tag(image, SAMPLESPERPIXEL, 1)
        usable = _COLOURS.get(_tag(image, PHOTOMETRIC_INTERPRETATION, 1), bands)
        alpha = image.tag_v2.get(EXTRASAMPLES, ()) in ((1,), (2,))  # type: ignore[attr-defined]
        usable += alpha and _tag(image, BITSPERSAMPLE, 1) == 8
    elif image.format == "JPEG2000" and image.mode in ("LA", "RGBA"):
        head = max(0, data.find(b"jp2c"))  # a colour profile of any length lies before the pixels, too
        usable -= data.find(b"cdef", 0, head) < 0  # the box that defines the channels
    if bands > usable:
        raise Unreadable(
            f"{bands} bands, of which {bands - usable} are neither colour nor transparency of 8 bits by the file's own "
            "word; keep 1 or 3 of them"
        )


def _unidentified(data: bytes) -> str:
    """Why Pillow knows no such image."""
    if data[:4] not in (b"II*\0", b"MM\0*"):
        return "not an image" if data else "an empty file"
    try:
        tags, file = ImageFileDirectory_v2(data[:8]), io.BytesIO(data)
        file.seek(tags.next)
        tags.load(file)
        bits, bands = tags[BITSPERSAMPLE], tags.get(SAMPLESPERPIXEL, 1)
        kind = {1: "unsigned", 2: "signed", 3: "float"}.get(tags.get(SAMPLEFORMAT, (1,))[0], "unknown")
        white = ", white is zero" if tags.get(PHOTOMETRIC_INTERPRETATION) == 0 else ""
        bands = f"{bands} band{'s' * (bands > 1)}"
        return f"a TIFF of {bands} of {bits[0]} bits ({kind}{white}), which Pillow does not read; convert it"
    except Exception:  # noqa: BLE001 - damaged tags make the parser raise nearly anything
        return "not an image"


def _plain(image: Image.Image) -> Image.Image:
    """The image in mode L, RGB or RGBA."""
    if image.mode == "La":  # Pillow turns premultiplied grey into nothing else
        image = image.convert("LA")
    colours = getattr(image, "tag_v2", {}).get(COLORMAP, ())
    if (
        image.mode == "P" and colours and max(colours) < 256
    ):  # 8 bits where TIFF has 16, of which Pillow takes the upper
        image.putpalette(np.array(colours, np.uint8).reshape(3, -1).T.tobytes())
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image.convert("L" if image.mode == "1" else "RGB")


def _shrink(image: Image.Image, longest: int | None) -> None:
    """Shrink in place; large reductions take two steps, as Pillow's fast reduction is inaccurate beyond about 100x."""
    for side in (64 * longest, longest) if longest else ():
        if max(image.size) > side:
            image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)


def _on_white(image: Image.Image) -> tuple[Image.Image, bool]:
    """The image in mode RGB, and whether any of its pixels was not opaque."""
    transparent = False
    if image.has_transparency_data:
        image = image.convert("RGBA")
        transparent = image.getchannel("A").getextrema()[0] != 255
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image)
        image = white
    return (image if image.mode == "RGB" else image.convert("RGB")), transparent
