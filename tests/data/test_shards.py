"""Shards hold every image once, as the parameters say, and are the same bytes on every run."""

import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from selfsup.data.formats.image import files as decode
from selfsup.data.index import load_index
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.errors import UserError
from tests.data.make import class_folders, contents, data, file, noise, shards

ROOT = Path(__file__).parents[2]


def test_digits_go_round(digits):
    """Every scan comes back, once, with its label, scaled to 0..255."""
    scans, labels = load_digits(return_X_y=True)
    seen = []
    for name in ("train", "validation", "test"):
        split = open_split(digits, name, data())
        batch = split.gather(np.arange(split.samples))
        for i, source in enumerate(split.names):
            number = int(source.removesuffix(".png"))
            seen.append(number)
            assert batch["label"][i] == labels[number]
            assert batch["box"][i].tolist() == [8, 8]
            expected = np.floor(scans[number].reshape(8, 8) * 255 / 16 + 0.5)
            assert np.array_equal(batch["image"][i, :, :8, :8].numpy(), np.stack([expected] * 3))
    assert sorted(seen) == list(range(1797))


def test_splits_are_stratified(digits):
    _, labels = load_digits(return_X_y=True)
    splits = {name: open_split(digits, name, data()) for name in ("train", "validation", "test")}
    for label, count in enumerate(np.bincount(labels)):
        test = int(count * 0.2 + 0.5)
        validation = int((count - test) * 0.1 + 0.5)
        found = {name: int((split.labels == label).sum()) for name, split in splits.items()}
        assert found == {"train": count - test - validation, "validation": validation, "test": test}


def test_statistics_are_of_the_training_pixels(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 12, "b": 12})
    big = noise(50, 30, seed=5)
    (root / "a" / "big.png").write_bytes(decode.png(big))  # shrunk first, so one image has one vote whatever its size
    split = shards(tmp_path / "shards", source="image_folder", path=str(root), image_size=16)["train"]
    batch = split.gather(np.arange(split.samples))
    rows = []
    for image, (height, width) in zip(batch["image"].double() / 255, batch["box"].tolist(), strict=True):
        valid = image[:, :height, :width].reshape(3, -1)
        rows.append((valid.mean(1), (valid**2).mean(1)))
    mean = sum(row[0] for row in rows) / len(rows)
    std = (sum(row[1] for row in rows) / len(rows) - mean**2).sqrt()
    assert split.facts.mean == pytest.approx(mean.tolist(), abs=1e-12)
    assert split.facts.std == pytest.approx(std.tolist(), abs=1e-12)


def test_bytes_are_the_same_on_every_run_and_for_any_number_of_processes(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 20, "ü": 30})
    (root / "a" / "broken.png").write_bytes(b"no image")
    options = {"source": "image_folder", "path": str(root), "on_error": "skip", "samples_per_shard": 7}
    write(data(**options), 0, tmp_path / "one", processes=1)
    for path in root.rglob("*.png"):
        os.utime(path, (1, 1))
    write(data(**options), 0, tmp_path / "three", processes=3)
    one = contents(tmp_path / "one")
    assert len([name for name in one if name.endswith(".tar")]) == 9
    assert one == contents(tmp_path / "three")
    write(data(**options), 1, tmp_path / "other", processes=1)
    assert one != contents(tmp_path / "other")


def test_tars_hold_nothing_of_the_machine_and_keep_original_bytes(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 5, "b": 5})
    jpeg = file(Image.fromarray(noise(40, 40)), "JPEG", quality=31, comment=b"mine")
    (root / "a" / "PHOTO.JPG").write_bytes(jpeg)
    splits = shards(tmp_path / "shards", source="image_folder", path=str(root))
    for split in splits.values():
        for number, name in enumerate(split.names):
            assert split.read(number) == (root / name).read_bytes()
    found = []
    for path in (tmp_path / "shards").rglob("*.tar"):
        with tarfile.open(path) as tar:
            for member in tar:
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
                found.append(member.name.split(".", 1)[1])
    assert sorted(set(found)) == ["cls", "jpg", "png"]
    assert found.count("cls") == 11


def test_plain_webdataset_reads_the_shards(digits):
    import webdataset

    split = open_split(digits, "train", data())
    urls = [str(digits / shard.file) for shard in split.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "cls"))
    assert len(urls) > 1
    assert len(samples) == split.samples
    assert [label for _, label in samples] == split.labels.tolist()
    batch = split.gather(np.arange(split.samples))
    for i in (0, 500, split.samples - 1):
        pixels = np.asarray(samples[i][0].convert("RGB"))
        assert np.array_equal(pixels.transpose(2, 0, 1), batch["image"][i, :, :8, :8].numpy())


# parameters


def members(folder: Path) -> list[str]:
    names = []
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            names += tar.getnames()
    return names


def test_resize_shrinks_what_is_larger(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 4, "b": 4}, size=6)
    (root / "a" / "big.jpg").write_bytes(file(Image.fromarray(noise(60, 90)), "JPEG"))
    (root / "a" / "big.bmp").write_bytes(file(Image.fromarray(noise(90, 60)), "BMP"))
    splits = shards(tmp_path / "shards", source="image_folder", path=str(root), resize=30)
    sizes = {}
    for split in splits.values():
        for number, name in enumerate(split.names):
            image = decode.load(split.read(number))
            sizes[Path(name).name] = image.size
            if "big" not in name:
                assert split.read(number) == (root / name).read_bytes()
    assert sizes["big.jpg"] == (30, 20)
    assert sizes["big.bmp"] == (20, 30)
    assert {Path(name).suffix for name in members(tmp_path / "shards")} == {".png", ".jpg", ".cls"}


def test_limit_is_of_the_training_images_before_validation(tmp_path):
    full = shards(tmp_path / "full")
    some = shards(tmp_path / "some", limit=200)
    assert some["test"].names == full["test"].names
    assert some["train"].samples + some["validation"].samples == 200
    assert np.bincount(np.concatenate([some["train"].labels, some["validation"].labels])).min() >= 18
    known = set(full["train"].names) | set(full["validation"].names)
    assert set(some["train"].names) | set(some["validation"].names) <= known
    assert some["train"].checksum != full["train"].checksum


def test_labels_none(tmp_path):
    splits = shards(tmp_path / "shards", labels="none", limit=100)
    for split in splits.values():
        assert split.classes == []
        assert (split.labels == -1).all()
    assert splits["validation"].samples == 10
    assert {Path(name).suffix for name in members(tmp_path / "shards")} == {".png"}


def test_skipped_files_are_counted_and_listed(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 10, "b": 10})
    png = decode.png(noise(30, 30))
    for name in ("a/cut.png", "b/ü text.png", "b/gone.png"):
        (root / name).write_bytes(png[:300] if "cut" in name else b"hello")
    (root / "b/gone.png").unlink()
    (root / "b/gone.png").symlink_to(tmp_path / "nowhere")
    values = data(source="image_folder", path=str(root), on_error="skip")
    index = write(values, 0, tmp_path / "shards", processes=1)
    assert index.skipped_count == 3
    reasons = {entry.name: entry.reason for entry in index.skipped}
    assert reasons.keys() == {"a/cut.png", "b/ü text.png", "b/gone.png"}
    assert reasons["b/gone.png"] == "No such file or directory"
    assert load_index(tmp_path / "shards") == index
    assert sum(index.samples(split) for split in index.splits) == 20
    for split in ("train", "validation", "test"):
        opened = open_split(tmp_path / "shards", split, values)
        for number, name in enumerate(opened.names):
            assert opened.read(number) == (root / name).read_bytes()


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({"a": 9, "lone": 1}, r"class 'lone' has no images for train \(train 0, validation 0, test 1\)"),
        ({"a": 9, "pair": 2}, r"class 'pair' has no images for train \(train 0, validation 1, test 1\)"),
    ],
)
def test_a_class_too_small_for_every_split_is_named_with_the_remedy(tmp_path, counts, message):
    root = class_folders(tmp_path / "images", counts)
    with pytest.raises(UserError, match=message) as caught:
        shards(tmp_path / "shards", source="image_folder", path=str(root), rare="fail")
    assert "set data.rare: keep" in str(caught.value) and "data.labels: none" in str(caught.value)
    class_folders(root, dict.fromkeys(counts, 3))
    shards(tmp_path / "shards", source="image_folder", path=str(root))


def test_a_class_lost_to_unreadable_files_is_named(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 9, "b": 3})
    (root / "b" / "000.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"class 'b' has no images for \w+ .*unreadable"):
        shards(tmp_path / "shards", source="image_folder", path=str(root), on_error="skip")


def test_a_limit_below_the_classes_says_so(tmp_path):
    with pytest.raises(UserError, match=r"raise data\.limit"):
        shards(tmp_path / "shards", limit=11)


def test_too_few_unlabelled_images(tmp_path):
    root = class_folders(tmp_path / "images", {".": 2})
    with pytest.raises(UserError, match="too few images, none is left for train"):
        shards(tmp_path / "shards", source="image_folder", path=str(root))


def test_a_file_is_counted_once_and_named_by_its_path(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 9, "b": 9}, size=20)
    options = {"source": "image_folder", "path": str(root), "image_size": 8}
    for resize in (None, 10):  # files that are made smaller are decoded twice
        shards(tmp_path / "shards", resize=resize, **options)
        assert load_index(tmp_path / "shards").facts.types == {"uint8": 18}
    (root / "a" / "bad.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=f"^{root}/a/bad.png: unreadable"):
        shards(tmp_path / "shards", **options)
