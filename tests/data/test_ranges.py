"""One line from numbers to 0..255 for every file of a set, whatever the files hold, and what is said of it."""

from fractions import Fraction
from math import floor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsup.data.formats.image import files as decode
from selfsup.data.formats.image.ranges import Survey, decide
from selfsup.data.index import Index, load_index
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.errors import UserError
from selfsup.training.build import fresh_backbone
from tests.data.make import contents, data, file, noise, shards, tiff
from tests.helpers import SMALL, params

COUNT = 12  # images a set


def put(root: Path, images: list[np.ndarray | bytes]) -> Path:
    """Two class folders with these images in turn, TIFF where they are arrays."""
    for number, image in enumerate(images):
        folder = root / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:03d}.tif").write_bytes(image if isinstance(image, bytes) else tiff(image))
    return root


def written(root: Path, **overrides) -> Index:
    out = root.parent / f"shards of {root.name}"
    return write(data(source="image_folder", path=str(root), image_size=16, **overrides), 0, out, 1)


def reference(value: float, low: float, high: float) -> int:
    """The line in exact fractions."""
    exact = (Fraction(float(value)) - Fraction(low)) * 255 / (Fraction(high) - Fraction(low))
    return min(255, max(0, floor(exact + Fraction(1, 2))))


def uniform(low: float, high: float, kind: type, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(low, high, (16, 16)).astype(kind)


def spotted(images: list[np.ndarray], value: float, every: int = 2) -> list[np.ndarray]:
    """One pixel of `value` in some of the images."""
    for image in images[::every]:
        image[3, 4] = value
    return images


def floats(low: float = 0, high: float = 0.9) -> list[np.ndarray]:
    return [uniform(low, high, np.float32, seed) for seed in range(COUNT)]


def integers(low: int, high: int, kind: type = np.uint16) -> list[np.ndarray]:
    return [uniform(low, high + 1, kind, seed) for seed in range(COUNT)]


SETS = {  # name: images, range, levels in use at least
    "floats up to .9, every second with a pixel of 1.02": (spotted(floats(), 1.02), (None, np.float32(1.02)), 220),
    "floats up to .9, one with a pixel of -.001": (spotted(floats(), -0.001, 99), (np.float32(-0.001), None), 250),
    "floats up to .9": (floats(), (0, 1), 220),
    "floats up to 200": (floats(0, 200), (0, 255), 195),
    "floats up to 60,000": (floats(0, 60_000), (0, 65535), 230),
    "floats up to .01": (floats(0, 0.01), (None, None), 250),
    "floats around 0": (floats(-3, 2), (None, None), 250),
    "signed slices, half with air": (
        [uniform(-1000 if n % 2 else 0, 2000, np.int16, n) for n in range(COUNT)], (None, None), 250,
    ),
    "12 bits in 16": (integers(0, 4095), (0, 4095), 250),
    "12 bits in 16, every second with a hot pixel": (spotted(integers(0, 4095), 65535), (0, 65535), 17),
    "10 bits in 16, white is zero": ([tiff(i, photometric=0) for i in integers(0, 1023)], (0, 1023), 250),
    "counts of 8 bits in 16": (integers(0, 255), (0, 255), 250),
    "all 16 bits": (integers(0, 65535), (0, 65535), 250),
    "all 32 bits": (integers(0, 2**32 - 1, np.uint32), (0, 2**32 - 1), 250),
    "signed 8 bits": (integers(-128, 126, np.int8), (None, None), 250),
    "one value": ([np.full((5, 5), 7.5, np.float32)] * COUNT, (7.5, 8.5), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_every_file_is_mapped_by_the_same_line(tmp_path, name):
    """By an independent reference, at sharding and when read again; a greater number is never darker in any file."""
    images, (low, high), levels = SETS[name]
    index = written(put(tmp_path / "images", images))
    assert index.facts.range is not None
    everything = np.concatenate([np.asarray(i, float).ravel() for i in images if isinstance(i, np.ndarray)] or [[0]])
    assert index.facts.range.low == (low if low is not None else everything.min())
    assert index.facts.range.high == (high if high is not None else everything.max())
    assert index.facts.range.rule in index.notes[0]
    pairs = set()
    for split in index.splits:
        opened = open_split(tmp_path / "shards of images", split, data(image_size=16))
        batch = opened.gather(np.arange(opened.samples))
        for number, file_name in enumerate(opened.names):
            content = (tmp_path / "images" / file_name).read_bytes()
            assert opened.read(number) == content
            source = images[int(Path(file_name).stem)]
            values = np.frombuffer(source[8:520], np.uint16).reshape(16, 16) if isinstance(source, bytes) else source
            grey = batch["image"][number, 0, : values.shape[0], : values.shape[1]].numpy()
            pairs |= set(zip(values.ravel().tolist(), grey.ravel().tolist(), strict=True))
    ordered = [level for _, level in sorted(pairs)]
    if "white is zero" in name:
        assert all(level == 255 - reference(value, 0, 1023) for value, level in pairs)
        ordered.reverse()
    else:
        assert all(level == reference(value, index.facts.range.low, index.facts.range.high) for value, level in pairs)
    assert ordered == sorted(ordered)
    assert len(set(ordered)) >= levels
    assert any("data.image.range: [low, high]" in note for note in index.notes) == (len(set(ordered)) < 32)


def test_outliers_of_one_pixel_in_ten_thousand_do_not_make_a_set_dark():
    survey, rng = Survey(), np.random.default_rng(0)
    for number in range(10):
        part = Survey()
        image = rng.integers(0, 4000, (200, 200)).astype(np.uint16)
        image[0, 0] = 65535 if number % 3 == 0 else 3999  # 4 of 400,000 pixels
        part.types["uint16"] += 1
        part.meet(image)
        survey.merge(part)
    chosen = decide(survey)
    assert (chosen.low, chosen.high) == (0, 4095)
    assert chosen.rule.endswith("outliers aside")
    for value, top in ((3.4e38, 1.0), (-1e30, 1.0)):
        floating = Survey()
        image = rng.uniform(0, 1, (300, 300)).astype(np.float32)
        image[5, 5] = value
        floating.types["float32"] += 1
        floating.meet(image)
        found = decide(floating)
        assert found.low == pytest.approx(0, abs=1e-3)
        assert found.high == pytest.approx(top, rel=0.01)


def test_the_order_of_merging_does_not_matter():
    parts = []
    for number in range(5):
        part = Survey()
        part.types[["uint8", "float32"][number % 2]] += number
        if number % 2:
            part.meet(uniform(-number, number, np.float32, number))
        parts.append(part)
    found = []
    for order in (parts, parts[::-1]):
        survey = Survey()
        for part in order:
            survey.merge(part)
        found.append((survey.types, survey.low, survey.high, survey.inner(), decide(survey)))
    assert found[0] == found[1]
    assert found[0][1:3] == (min(p.low for p in parts), max(p.high for p in parts))


def test_a_given_range_clips_and_counts(tmp_path):
    images = [uniform(-20, 119, np.float32, n) for n in range(COUNT)]
    outside = sum(int(((image < 0) | (image > 100)).sum()) for image in images)
    index = written(put(tmp_path / "images", images), range=[0.0, 100.0])
    assert index.facts.range is not None
    assert (index.facts.range.low, index.facts.range.high, index.facts.range.rule) == (0, 100, "data.image.range")
    assert f"{outside:,} pixels in {COUNT} images lie outside [0, 100] and are clipped." in index.notes
    assert index.facts.types == {"float32": COUNT}


def test_a_range_without_numbers_to_map_says_so(tmp_path):
    index = written(put(tmp_path / "images", [decode.png(noise(9, 9, n)) for n in range(COUNT)]), range=[0.0, 9.0])
    assert index.facts.range is None
    assert "data.image.range has no effect: all images have 8 bits." in index.notes


def test_images_that_the_line_of_the_set_leaves_hardly_a_level_are_counted(tmp_path):
    """Half are in 0..1 and half in 0..60,000, as when two makers' files are put together."""
    index = written(put(tmp_path / "images", [*floats(), *floats(0, 60_000)]))
    assert (
        f"{COUNT} of {2 * COUNT} mapped images have fewer than 8 of 256 levels; do all have one scale?" in index.notes
    )


def test_8_bit_images_among_others_keep_their_values_and_mixed_types_are_said(tmp_path):
    eight = [noise(9, 9, n) for n in range(COUNT)]
    mixed = [*integers(0, 4095), *(decode.png(image) for image in eight)]
    index = written(put(tmp_path / "images", mixed))
    assert index.facts.types == {"uint16": COUNT, "uint8": COUNT}
    assert any(f"mixed types; {COUNT} images of 8 bits keep 0..255" in note for note in index.notes)
    for split in index.splits:
        opened = open_split(tmp_path / "shards of images", split, data(image_size=16))
        batch = opened.gather(np.arange(opened.samples))
        for number, name in enumerate(opened.names):
            if (place := int(Path(name).stem) - COUNT) >= 0:
                assert np.array_equal(batch["image"][number, :, :9, :9].numpy(), eight[place].transpose(2, 0, 1))


def test_shrunk_files_are_mapped_by_the_range_of_the_set(tmp_path):
    """The brightest file alone decides the range, so that each file's own range would give other values."""
    images = [np.full((40, 40), 100 * (n + 1), np.uint16) for n in range(COUNT)]
    index = written(put(tmp_path / "images", images), resize=20)
    assert index.facts.range is not None
    assert index.facts.range.high == 2047
    for split in index.splits:
        opened = open_split(tmp_path / "shards of images", split, data(image_size=16))
        for number, name in enumerate(opened.names):
            level = reference(100 * (int(Path(name).stem) + 1), 0, 2047)
            assert opened.gather([number])["image"].unique().tolist() == [level]
            assert np.asarray(decode.load(opened.read(number))).max() == level  # the stored file has 8 bits


def test_the_shards_are_the_same_by_any_number_of_processes(tmp_path):
    images = [*spotted(floats(), 1.02), *(decode.png(noise(9, 9, n)) for n in range(COUNT))]
    root = put(tmp_path / "images", images)
    for processes in (1, 2):
        values = data(source="image_folder", path=str(root), image_size=16, samples_per_shard=5)
        write(values, 0, tmp_path / str(processes), processes)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_decoded_images_of_another_range_are_not_used(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    root = put(tmp_path / "images", floats())
    seen = []
    for high in (1.0, 2.0):
        values = {"source": "image_folder", "path": str(root), "image_size": 16, "range": [0.0, high], "cache": "disk"}
        seen.append(shards(tmp_path / "shards", **values)["train"].gather([0, 1, 2])["image"].float())
    assert (seen[0] / 2 - seen[1]).abs().max() <= 1
    assert not seen[0].equal(seen[1])


def test_shards_of_others_and_sets_of_torchvision_have_one_range_too(tmp_path, monkeypatch):
    root = put(tmp_path / "images", integers(0, 1000))
    first = written(root)
    again = write(
        data(source="webdataset", path=f"{tmp_path}/shards of images/{{split}}/*.tar", image_size=16),
        0, tmp_path / "again", 1,
    )  # fmt: skip
    assert again.facts.range == first.facts.range
    assert again.facts == first.facts
    from torchvision import datasets

    class Floats(datasets.VisionDataset):
        def __init__(self, root, train=True):
            self.images = floats(0, 0.4 if train else 0.9)
            super().__init__(root)

        def __len__(self):
            return len(self.images)

        def __getitem__(self, number):
            return Image.fromarray(self.images[number]), number % 2

    monkeypatch.setattr(datasets, "Floats", Floats, raising=False)
    index = write(data(source="torchvision", name="Floats", path=str(tmp_path)), 0, tmp_path / "floats", 1)
    assert index.facts.range is not None
    assert (index.facts.range.low, index.facts.range.high) == (0, 1)


WRAPPED = {  # what Pillow shows with another sign, or inverted: the file, and its levels in the range
    "int8": (tiff(np.array([[-128, -1, 0, 127]], np.int8)), (-128, 127), [0, 127, 128, 255]),
    "int16": (tiff(np.array([[-1000, 0, 3000]], np.int16)), (-1000, 3000), [0, 64, 255]),
    "int16, big-endian": (tiff(np.array([[-1000, 0, 3000]], np.int16), ">"), (-1000, 3000), [0, 64, 255]),
    "uint16, big-endian": (tiff(np.array([[0, 4095, 1]], np.uint16), ">"), (0, 4095), [0, 255, 0]),
    "uint32": (tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32)), (0, 2**32 - 1), [0, 128, 255]),
    "int32": (tiff(np.array([[-5, 0, 5]], np.int32)), (-5, 5), [0, 128, 255]),
    "uint16, white is zero": (tiff(np.array([[0, 100, 4095]], np.uint16), photometric=0), (0, 4095), [255, 249, 0]),
    "float32, white is zero": (tiff(np.array([[0, 0.25, 1]], np.float32), photometric=0), (0, 1), [255, 191, 0]),
    "uint8, white is zero": (tiff(np.array([[0, 100, 255]], np.uint8), photometric=0), None, [255, 155, 0]),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_numbers_are_what_the_file_says(name):
    content, span, levels = WRAPPED[name]
    assert np.asarray(decode.load(content, span=span))[0, :, 0].tolist() == levels


def test_signed_numbers_are_averaged_as_signed_ones():
    board = np.where(np.indices((64, 64)).sum(0) % 2, -20, 20).astype(np.int8)  # as 0..255 its mean would be 128: -128
    assert np.abs(np.asarray(decode.load(tiff(board), 8, (-128, 127))).astype(int) - 128).max() <= 1


BAND = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
REFUSED = {
    "NaN": (tiff(np.array([[0, np.nan, 1]], np.float32)), "1 of its 3 pixels are NaN or infinite"),
    "infinite": (tiff(np.array([[0, np.inf, -np.inf]], np.float32)), "2 of its 3 pixels are NaN or infinite"),
    "float64": (tiff(np.zeros((2, 2))), r"a TIFF of 1 band of 64 bits \(float\), which Pillow does not read"),
    "uint32, big-endian": (tiff(np.zeros((2, 2), np.uint32), ">"), r"a TIFF of 1 band of 32 bits \(unsigned\)"),
    "signed, white is zero": (
        tiff(np.zeros((2, 2), np.int16), photometric=0),
        r"a TIFF of 1 band of 16 bits \(signed, white is zero\)",
    ),
    "fourth band of no meaning": (tiff(BAND[..., :4]), "4 bands, of which 1 are neither colour nor transparency"),
    "fourth band unspecified": (tiff(BAND[..., :4], extra=0), "4 bands, of which 1 are neither"),
    "fourth band of 16 bits": (tiff(BAND[..., :4].astype(np.uint16), extra=2), "4 bands, of which 1 are neither"),
    "five bands": (tiff(BAND, extra=(2, 0)), "5 bands, of which 2 are neither colour nor transparency"),
    "grey and one more": (tiff(BAND[..., :2], extra=0), "2 bands, of which 1 are neither"),
    "five grey bands": (tiff(BAND, photometric=1, extra=(0,) * 4), r"a TIFF of 5 bands of 8 bits \(unsigned\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_right_is_refused_by_name(tmp_path, name):
    content, message = REFUSED[name]
    with pytest.raises(decode.Unreadable, match=message):
        decode.load(content, span=(0.0, 1.0))
    root = put(tmp_path / "images", [*floats(), content])
    with pytest.raises(UserError, match=rf"a/012\.tif: unreadable \({message}.*data\.on_error: skip"):
        written(root)
    assert [each.name for each in written(root, on_error="skip").skipped] == ["a/012.tif"]


def _fits(*cards: str) -> bytes:
    head = "".join(f"{card:80}" for card in ("SIMPLE  =                    T", *cards, "END"))
    return head.ljust(2880).encode() + np.arange(6, dtype=">i2").tobytes().ljust(2880, b"\0")


def test_fits_with_signs_or_scales_is_refused():
    size = ("NAXIS   = 2", "NAXIS1  = 3", "NAXIS2  = 2")
    for cards in (("BITPIX  = 16", *size), ("BITPIX  = -32", *size, "BZERO   = 32768")):
        with pytest.raises(decode.Unreadable, match="signed or scaled numbers of FITS"):
            decode.load(_fits(*cards), span=(0.0, 1.0))
    assert np.asarray(decode.load(_fits("BITPIX  = 8", *size))).shape == (2, 3, 3)


def test_a_fourth_band_is_transparency_where_the_file_says_so():
    clear = np.zeros((2, 2, 4), np.uint8)
    for content in (tiff(clear, extra=2), tiff(clear, extra=1), file(Image.fromarray(clear), "JPEG2000")):
        survey = Survey()
        assert (np.asarray(decode.load(content, survey=survey)) == 255).all()
        assert survey.transparent == 1
    grey = np.zeros((2, 2, 2), np.uint8)
    assert (np.asarray(decode.load(tiff(grey, extra=1))) == 255).all()


def test_bands_frames_and_deep_colours_are_said_once_with_counts(tmp_path):
    clear, opaque = (file(Image.new("RGBA", (6, 6), (9, 9, 9, alpha)), "PNG") for alpha in (0, 255))
    pages = file(Image.fromarray(noise(6, 6)), "TIFF", save_all=True, append_images=[Image.fromarray(noise(6, 6, 1))])
    deep = tiff(np.full((6, 6, 3), 4095, np.uint16))
    images = [clear] * 3 + [opaque] * 2 + [pages] * 4 + [deep] * 5
    notes = written(put(tmp_path / "images", images)).notes
    assert "3 of 14 images have transparent pixels; these are laid on white." in notes
    assert "4 of 14 images have several frames or pages; the first of each is used." in notes
    assert "5 of 14 images have 16 bits per colour channel; the upper 8 are used." in notes
    assert "Only 1 of 256 levels are in use in these images; convert them to 8 bits." in notes
    assert load_index(tmp_path / "shards of images").notes == notes


# a channel without variation


@pytest.mark.parametrize("blue", [0, 40, 255])
def test_a_flat_channel_is_normalised_by_one_and_named(tmp_path, blue):
    images = []
    for number in range(COUNT):
        image = noise(9, 7 + number % 3, number)
        image[..., 2] = blue
        images.append(decode.png(image))
    index = written(put(tmp_path / "images", images))
    assert index.facts.std[2] == 1
    assert index.facts.mean[2] == blue / 255
    assert 0.2 < index.facts.std[0] < 0.4
    assert [note for note in index.notes if "normalised" in note] == [
        f"Blue of the training images: {blue} everywhere (of 0..255); normalised by 1, and says nothing of an image."
    ]
    split = open_split(tmp_path / "shards of images", "train", data(image_size=16))
    batch = split.gather(np.arange(split.samples))
    backbone = fresh_backbone(params(**SMALL, data__image__image_size=16), "conv", split)
    assert backbone.std.flatten().tolist() == pytest.approx(index.facts.std)  # what the export writes, too
    inputs = backbone.normalize(batch["image"][:, :, :9, :7] / 255)
    assert inputs[:, 2].abs().max() < 1e-6
    assert inputs[:, :2].std() == pytest.approx(1, abs=0.1)


def test_images_of_one_colour_are_one_note(tmp_path):
    index = written(put(tmp_path / "images", [decode.png(np.full((9, 9), 7, np.uint8))] * COUNT))
    assert [note.partition(";")[0] for note in index.notes if "normalised" in note] == [
        "Red and green and blue of the training images: 7 everywhere (of 0..255)"
    ]


def test_a_channel_that_varies_by_less_than_the_rounding_is_flat(tmp_path):
    images = [noise(32, 32, n) for n in range(COUNT)]
    for image in images:
        image[..., 1] = 40
        image[..., 0] = 40 + np.indices((32, 32)).sum(0) % 2  # half a step of the 8 bits: a variation
    images[0][0, 0, 1] = 41  # is in one pixel only, in whatever split
    for number in range(COUNT):
        images[number][0, 1, 1] = 41
    index = written(put(tmp_path / "images", [file(Image.fromarray(image[:16, :16]), "PNG") for image in images]))
    assert index.facts.std[0] == pytest.approx(0.5 / 255)
    assert index.facts.std[1] == 1
    assert [note for note in index.notes if note.startswith("Green")] == [
        "Green of the training images: within rounding of 40.00 (of 0..255); normalised by 1, and says nothing of an "
        "image."
    ]
