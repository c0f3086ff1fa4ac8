"""Every mode and format of image becomes the pixels that a person would see."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from selfsup.data.formats.image import files as decode
from tests.data.make import file, noise, tiff

RGB = Image.fromarray(noise(5, 7))
pytestmark = pytest.mark.filterwarnings(  # pytest puts its own filters over those of the module
    "ignore:Corrupt EXIF", "ignore::PIL.Image.DecompressionBombWarning"
)


def pixels(data: bytes, longest: int | None = None) -> np.ndarray:
    return np.asarray(decode.load(data, longest))


def grey16(values: np.ndarray, format: str) -> bytes:
    return file(Image.fromarray(values.astype(np.uint16)), format)


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_range(format):
    values = np.array([[0, 128, 129, 255, 256, 32767, 32768, 65535]])
    expected = [round(v * 255 / 65535) for v in values[0].tolist()]
    assert expected == [0, 0, 1, 1, 1, 127, 128, 255]
    assert np.asarray(decode.load(grey16(values, format), span=(0, 65535)))[0, :, 0].tolist() == expected


def test_numbers_beyond_8_bits_are_not_decoded_without_a_range():
    for values in (np.zeros((2, 2), np.uint16), np.zeros((2, 2), np.int32), np.zeros((2, 2), np.float32)):
        with pytest.raises(decode.Unsettled):
            decode.load(file(Image.fromarray(values), "TIFF"))


def test_transparency_lies_on_white():
    clear_red = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    assert pixels(file(clear_red, "PNG")).tolist() == [[[255, 255, 255]] * 2] * 2
    half_blue = Image.new("RGBA", (2, 2), (0, 0, 255, 128))
    assert pixels(file(half_blue, "PNG"))[0, 0].tolist() == [127, 127, 255]
    half_black = Image.new("LA", (2, 2), (0, 128))
    assert pixels(file(half_black, "PNG"))[0, 0].tolist() == [127, 127, 127]


def test_palette_with_transparency_lies_on_white():
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.putpixel((1, 0), 1)
    assert pixels(file(image, "PNG", transparency=0)).tolist() == [[[255, 255, 255], [0, 255, 0]]]
    assert pixels(file(image, "GIF", transparency=1)).tolist() == [[[255, 0, 0], [255, 255, 255]]]
    assert pixels(file(image, "PNG")).tolist() == [[[255, 0, 0], [0, 255, 0]]]
    assert pixels(file(image, "PNG", transparency=bytes([255, 128])))[0, 1].tolist() == [127, 255, 127]


def test_a_palette_of_8_bits_in_a_tiff_is_not_black():
    numbers, colours = np.array([[0, 1, 255]], np.uint8), np.zeros((3, 256), int)
    colours[:, 1], colours[:, 255] = (200, 100, 50), (7, 8, 255)
    for factor in (1, 257):
        content = tiff(numbers, photometric=3, colours=tuple((factor * colours).ravel().tolist()))
        assert pixels(content).tolist() == [[[0, 0, 0], [200, 100, 50], [7, 8, 255]]]


def test_one_transparent_colour_of_an_rgb_png_lies_on_white():
    image = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert pixels(file(image, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255], [4, 5, 6]]]


def test_transparent_borders_do_not_bleed_when_shrunk():
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))  # black, but not to be seen
    image.paste((255, 255, 255, 255), (0, 0, 4, 8))
    assert (pixels(file(image, "PNG"), 2) == 255).all()


def test_one_bit_and_cmyk():
    image = Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1")
    assert pixels(file(image, "PNG")).tolist() == [[[0, 0, 0], [255, 255, 255]]]
    for format in ("JPEG", "TIFF"):
        cyan = Image.new("CMYK", (8, 8), (255, 0, 0, 0))
        assert np.abs(pixels(file(cyan, format)).astype(int) - [0, 255, 255]).max() <= 3


@pytest.mark.parametrize("mode", ["LAB", "YCbCr"])
def test_other_colour_spaces(mode):
    grey = Image.new("RGB", (8, 8), (90, 90, 90))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = [ImageCms.ImageCmsProfile(ImageCms.createProfile(name)) for name in ("sRGB", "LAB")]
        image = ImageCms.profileToProfile(grey, *profiles, outputMode="LAB")
    else:
        image = grey.convert(mode)
    data = file(image, "TIFF")
    with Image.open(io.BytesIO(data)) as stored:
        assert stored.mode == mode
    assert np.abs(pixels(data).astype(int) - 90).max() <= 2


ORIENTED = {  # how the stored image is turned to be seen upright
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].transpose(1, 0, 2),
    8: lambda p: np.rot90(p, 1),
}


@pytest.mark.parametrize("orientation", sorted(ORIENTED))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation(format, orientation):
    exif = Image.Exif()
    exif[0x112] = orientation
    data = file(RGB, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    assert np.array_equal(pixels(data), ORIENTED[orientation](np.asarray(RGB)))


def test_exif_orientation_of_a_jpeg_that_is_decoded_at_a_fraction():
    top_red = np.zeros((320, 640, 3), np.uint8)
    top_red[:160] = [255, 0, 0]
    exif = Image.Exif()
    exif[0x112] = 6  # turn right: the red top comes to the right
    small = pixels(file(Image.fromarray(top_red), "JPEG", exif=exif, quality=95), 32)
    assert small.shape == (32, 16, 3)
    assert small[:, 12:, 0].min() > 200
    assert small[:, :4, 0].max() < 50


def test_damaged_exif_does_not_hide_the_image():
    data = file(RGB, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05broken")
    assert np.array_equal(pixels(data), np.asarray(RGB))


def test_animations_give_their_first_frame():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    for format in ("GIF", "PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if format == "WEBP" else {}
        data = file(frames[0], format, save_all=True, append_images=frames[1:], **options)
        assert pixels(data)[0, 0].tolist() == [200, 0, 0], format


def test_the_square_and_its_box():
    small = noise(3, 5)
    square, box = decode.decode(decode.png(small), 8)
    assert box == (3, 5)
    assert np.array_equal(square[:, :3, :5], small.transpose(2, 0, 1))
    assert square[:, 3:].max() == square[:, :, 5:].max() == 0
    for shape, expected in {(8, 8): (8, 8), (64, 32): (8, 4), (30, 90): (3, 8), (9, 8): (8, 7)}.items():
        square, box = decode.decode(decode.png(np.full((*shape, 3), 77, np.uint8)), 8)
        assert box == expected, shape
        assert (square[:, : box[0], : box[1]] == 77).all()


def test_shrinking_averages():
    """A checkerboard of single pixels becomes grey, where taking every n-th pixel would give black or white."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    for format in ("PNG", "JPEG"):
        small = pixels(file(Image.fromarray(board.astype(np.uint8)), format), 8)
        assert np.abs(small.astype(int) - 127).max() <= 3, format


@pytest.mark.parametrize(("width", "height"), [(1, 1), (20_000, 1), (1, 20_000), (1999, 3)])
def test_extreme_shapes_keep_a_pixel(width, height):
    square, box = decode.decode(file(Image.new("L", (width, height), 9), "PNG"), 16)
    assert min(box) >= 1
    assert max(box) == min(16, max(width, height))
    assert (square[:, : box[0], : box[1]] == 9).all()


def _png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def test_20000_pixels_square_is_the_largest():
    board = Image.new("1", (20_000, 20_000), 1)
    square, box = decode.decode(file(board, "PNG"), 8)
    assert box == (8, 8)
    assert (square == 255).all()
    for width, height in ((20_001, 20_000), (60_000, 60_000)):
        bomb = _png_header(width, height) + file(Image.new("1", (1, 1)), "PNG")[33:]
        with pytest.raises(decode.Unreadable, match="decompression bomb"):
            decode.load(bomb)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_truncated_and_empty_files_are_unreadable(format):
    data = file(Image.fromarray(noise(90, 90)), format)
    decode.load(data)
    for size in (0, 1, 20, len(data) // 2, len(data) - 100):
        for longest in (None, 8):
            with pytest.raises(decode.Unreadable) as caught:
                decode.load(data[:size], longest)
            assert "0x" not in str(caught.value)  # an address would differ from run to run
            assert "\n" not in str(caught.value)


def test_text_is_no_image():
    with pytest.raises(decode.Unreadable, match="not an image"):
        decode.load(b"<html>404 not found</html>")


def test_shrink_re_encodes_only_what_is_larger():
    image = Image.fromarray(noise(40, 20))
    assert decode.shrink(file(image, "PNG"), 40) is None
    for format, extension, kind in (("JPEG", ".jpg", "JPEG"), ("PNG", ".png", "PNG"), ("BMP", ".png", "PNG")):
        data, found = decode.shrink(file(image, format), 10) or (b"", "")
        assert found == extension
        with Image.open(io.BytesIO(data)) as small:
            assert (small.format, small.size) == (kind, (5, 10))
    with pytest.raises(decode.Unreadable):
        decode.shrink(file(image, "PNG")[:500], 100)


def test_shrink_keeps_grey_grey_and_turns_upright():
    data, _ = decode.shrink(grey16(np.full((30, 40), 40_000), "PNG"), 20, (0, 65535)) or (b"", "")
    with Image.open(io.BytesIO(data)) as small:
        assert (small.mode, small.size, small.getpixel((0, 0))) == ("L", (20, 15), 156)
    exif = Image.Exif()
    exif[0x112] = 6
    data, _ = decode.shrink(file(Image.fromarray(noise(20, 40)), "JPEG", exif=exif), 20) or (b"", "")
    with Image.open(io.BytesIO(data)) as small:
        assert small.size == (10, 20)
        assert 0x112 not in small.getexif()


def test_extensions_are_of_images_only():
    known = decode.extensions()
    assert {".jpg", ".jpeg", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".ppm"} <= known
    assert not known & {".txt", ".json", ".csv", ".h5", ".mpg", ".mp4", ".npy", ".pdf", ""}
