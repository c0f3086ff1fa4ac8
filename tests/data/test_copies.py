"""Equal images in two splits are counted, dropped or refused, whatever their files look like."""

import itertools

import numpy as np
import pytest
from PIL import Image

from selfsup.data import copies
from selfsup.data.formats.image import files as decode
from selfsup.data.index import load_index
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.errors import UserError
from tests.data.make import class_folders, contents, data, file, noise, shards


def copied_folder(root, images=15, times=4):
    """Noise images of two classes, each several times under other names."""
    for label, i, n in itertools.product("ab", range(images), range(times)):
        (root / label).mkdir(parents=True, exist_ok=True)
        (root / label / f"{n}-{i:02d}.png").write_bytes(decode.png(noise(6, 6, seed=1000 * (label == "b") + i)))
    return root


def images_of(split) -> list[bytes]:
    return [split.read(number) for number in range(split.samples)]


def test_copies_across_splits_are_counted_and_said(tmp_path):
    options = {"source": "image_folder", "path": str(copied_folder(tmp_path / "images"))}
    splits = shards(tmp_path / "shards", **options)
    index = load_index(tmp_path / "shards")
    seen = {name: images_of(split) for name, split in splits.items()}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert index.copies.across[f"{one}/{other}"] == sum(image in seen[one] for image in seen[other])
    assert index.copies.surplus == 90 and index.copies.relabelled == index.copies.dropped == 0
    assert len(index.notes) == 3
    note = next(note for note in index.notes if note.startswith("images of test that are also in train: "))
    assert f": {index.copies.across['train/test']} of {splits['test'].samples}, equal at 16 px (such as " in note
    assert note.endswith("accuracy on test is too high; set data.duplicates: drop")
    names = note.partition("such as ")[2].partition(")")[0].split(" and ")
    first, second = ((tmp_path / "images" / name).read_bytes() for name in names)
    assert first == second and names[0] in splits["train"].names and names[1] in splits["test"].names


def test_dropping_leaves_one_of_each(tmp_path):
    root = copied_folder(tmp_path / "images")
    options = {"source": "image_folder", "path": str(root), "duplicates": "drop", "samples_per_shard": 7}
    splits = shards(tmp_path / "shards", **options)
    images = [image for split in splits.values() for image in images_of(split)]
    assert len(images) == len(set(images)) == 30
    assert {name.split("/")[1][:2] for split in splits.values() for name in split.names} == {"0-"}  # the first of each
    index = load_index(tmp_path / "shards")
    assert index.copies.dropped == 90
    assert index.notes == ["copies of images (equal at 16 px) are left out, as data.duplicates says: 90"]
    write(data(**options), 0, tmp_path / "again", processes=2)
    assert contents(tmp_path / "again") == contents(tmp_path / "shards")


@pytest.mark.parametrize("limit", [10, 20])
def test_dropping_leaves_one_of_each_where_a_limit_lets_others_take_the_places(tmp_path, limit):
    root = copied_folder(tmp_path / "images")
    splits = shards(tmp_path / "shards", source="image_folder", path=str(root), duplicates="drop", limit=limit)
    images = [image for split in splits.values() for image in images_of(split)]
    assert len(images) == len(set(images)) > limit


def test_a_test_image_is_never_left_in_train(tmp_path):
    for split, count in (("train", 30), ("test", 8), ("val", 8)):
        class_folders(tmp_path / f"images/{split}", {"a": count, "b": count})  # those of test are all in train
    options = {"source": "image_folder", "path": str(tmp_path / "images")}
    splits = shards(tmp_path / "warn", **options)
    assert splits["train"].samples == 60 and load_index(tmp_path / "warn").copies.across == {
        "train/validation": 16, "train/test": 16, "validation/test": 16,
    }  # fmt: skip
    class_folders(tmp_path / "images/val", {"a": 12, "b": 12})
    splits = shards(tmp_path / "drop", **options, duplicates="drop")
    assert {name: split.samples for name, split in splits.items()} == {"train": 36, "validation": 8, "test": 16}


def test_a_labelled_copy_is_kept_before_one_without_label():
    images = copies.Part(
        digests=np.array([[1, 1], [1, 1], [2, 1], [1, 2]], np.uint64), labels=np.array([-1, 0, 0, 0]),
        origin="train", numbers=np.array([3, 5, 6, 7]), places=np.arange(4),
    )  # fmt: skip
    assert {split: own.tolist() for split, own in copies.surplus(copies.find({"train": images})).items()} == {
        "test": [], "validation": [], "train": [3],
    }  # fmt: skip


def test_failing_names_two_files(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 10, "b": 10})
    options = {"source": "image_folder", "path": str(root), "duplicates": "fail"}
    write(data(**options), 0, tmp_path / "shards", processes=1)
    before = contents(tmp_path / "shards")
    test = open_split(tmp_path / "shards", "test", data()).names[0]
    train = open_split(tmp_path / "shards", "train", data()).names[0]
    (root / test).write_bytes((root / train).read_bytes())
    with pytest.raises(UserError) as caught:
        write(data(**options), 0, tmp_path / "shards", processes=1)
    assert f"{train} (train) and {test} (test) are equal at 16 px" in str(caught.value)
    assert contents(tmp_path / "shards") == before


@pytest.mark.parametrize(
    ("again", "equal"),
    [
        (lambda image: file(image, "PNG", compress_level=0), True),
        (lambda image: file(image, "BMP"), True),
        (lambda image: file(image, "TIFF", description="scanned twice"), True),
        (lambda image: file(image.rotate(180), "PNG"), False),
        (lambda image: file(image.transpose(Image.Transpose.TRANSPOSE), "PNG"), False),
        (lambda image: file(image, "JPEG"), False),
    ],
    ids=["other compression", "other format", "other metadata", "turned", "sides swapped", "loss"],
)
def test_pixels_are_compared_and_not_files(tmp_path, again, equal):
    root = class_folders(tmp_path / "images", {".": 10})
    image = Image.open(root / "000.png")
    (root / "x.png").write_bytes(again(image))
    write(data(source="image_folder", path=str(root)), 0, tmp_path / "shards", processes=1)
    assert load_index(tmp_path / "shards").copies.surplus == equal


def test_equal_shapes_are_part_of_equality():
    flat = np.zeros((3, 2, 6), np.uint8)
    assert copies.digest(flat) != copies.digest(flat.reshape(3, 6, 2))
    assert copies.digest(flat) == copies.digest(np.zeros((3, 4, 12), np.uint8)[:, ::2, ::2])


def test_equal_images_with_two_labels_are_noted(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 10, "b": 10})
    for number in (3, 4):
        (root / f"b/{number:03d}.png").write_bytes((root / f"a/{number:03d}.png").read_bytes())
    write(data(source="image_folder", path=str(root)), 0, tmp_path / "shards", processes=1)
    index = load_index(tmp_path / "shards")
    assert index.copies.relabelled == 4
    note = next(note for note in index.notes if "another label" in note)
    assert note.startswith("4 images equal another one with another label (such as ")
    one, other = note.partition("such as ")[2].partition(")")[0].split(" and ")
    assert one[0] != other[0] and one[1:] == other[1:]


def test_find_against_a_slow_search():
    rng = np.random.default_rng(0)
    images = {}
    for split, count in (("train", 60), ("validation", 20), ("test", 30)):
        digests = rng.integers(0, 8, (count, 2), np.uint64)
        images[split] = copies.Part(digests, rng.integers(-1, 3, count), "train", np.arange(count), np.arange(count))
    keys = {split: [tuple(key) for key in part.digests.tolist()] for split, part in images.items()}
    labels = np.concatenate([part.labels for part in images.values()]).tolist()
    everything = list(zip(itertools.chain(*keys.values()), labels, strict=True))
    counts = copies.count(copies.find(images), dropped=False)
    assert counts.surplus == len(everything) - len({key for key, _ in everything})
    assert counts.across == {
        f"{one}/{other}": sum(key in keys[one] for key in keys[other])
        for one, other in (("train", "validation"), ("train", "test"), ("validation", "test"))
    }
    relabelled = [
        key for key, label in everything if label >= 0 and any(key == k and label != x >= 0 for k, x in everything)
    ]
    assert counts.relabelled == len(relabelled) > 0


def test_black_edges_are_pixels_and_not_padding(tmp_path):
    root = class_folders(tmp_path / "images", {".": 10})
    wider = Image.new("RGB", (9, 9))
    wider.paste(Image.open(root / "000.png"))
    wider.save(root / "wider.png")
    write(data(source="image_folder", path=str(root)), 0, tmp_path / "shards", processes=1)
    assert load_index(tmp_path / "shards").copies.surplus == 0
