"""Batches visit every sample once an epoch, whatever the processes, the cache and the interruptions."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup.data import decoded
from selfsup.data.formats.image import files as decode
from selfsup.data.loader import open_split, ordered_batches, train_batches
from selfsup.errors import UserError
from tests.data.make import class_folders, contents, data, file, noise, shards

CACHES = ["memory", "disk", "none", "auto"]


def awkward() -> dict[str, bytes]:
    """Image files of many kinds, by name."""
    rgb, tall, wide = (Image.fromarray(noise(*shape)) for shape in ((9, 9), (90, 20), (20, 90)))
    rotated = Image.Exif()
    rotated[0x112] = 6
    grey = np.arange(300, dtype=np.uint16).reshape(15, 20) * 200
    frames = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    images = {
        "rgb.png": file(rgb, "PNG"),
        "rgb.jpg": file(rgb, "JPEG"),
        "UPPER.JPEG": file(wide, "JPEG"),
        "grey.jpg": file(rgb.convert("L"), "JPEG"),
        "cmyk.jpg": file(tall.convert("CMYK"), "JPEG"),
        "progressive.jpg": file(wide, "JPEG", progressive=True),
        "rotated.jpg": file(wide, "JPEG", exif=rotated),
        "rgba.png": file(rgb.convert("RGBA"), "PNG"),
        "la.png": file(rgb.convert("LA"), "PNG"),
        "palette.png": file(rgb.convert("P"), "PNG", transparency=0),
        "bit.png": file(rgb.convert("1"), "PNG"),
        "deep.png": file(Image.fromarray(grey), "PNG"),
        "deep.tif": file(Image.fromarray(grey), "TIFF", compression="tiff_lzw"),
        "float.tiff": file(Image.fromarray(grey.astype(np.float32) / 60_000), "TIFF"),
        "integer.tiff": file(Image.fromarray(grey.astype(np.int32)), "TIFF"),
        "animated.gif": file(frames[0], "GIF", save_all=True, append_images=frames[1:]),
        "pages.tif": file(frames[0], "TIFF", save_all=True, append_images=frames[1:]),
        "photo.webp": file(tall, "WEBP"),
        "old.bmp": file(wide, "BMP"),
        "text.ppm": file(rgb, "PPM"),
        "targa.tga": file(rgb.convert("RGBA"), "TGA"),
        "pixel.png": file(rgb.crop((0, 0, 1, 1)), "PNG"),
        "line.png": file(Image.new("L", (20_000, 1), 50), "PNG"),
        "猫 n° 1.final.png": file(tall, "PNG"),
        "Zürich (1).jpg": file(rgb, "JPEG"),
    }
    assert len(images) >= 20
    return images


@pytest.mark.parametrize("labelled", [True, False])
def test_awkward_images_come_through(tmp_path, labelled):
    images = awkward()
    for folder in ("ä", "b/c") if labelled else (".",):
        (tmp_path / "images" / folder).mkdir(parents=True)
        for name, content in images.items():
            (tmp_path / "images" / folder / name).write_bytes(content)
    splits = shards(tmp_path / "shards", source="image_folder", path=str(tmp_path / "images"), image_size=16)
    seen = set()
    for split in splits.values():
        batch = split.gather(torch.arange(split.samples))
        assert batch["image"].shape == (split.samples, 3, 16, 16)
        assert {key: value.dtype for key, value in batch.items()} == {
            "id": torch.int64, "image": torch.uint8, "box": torch.int64, "label": torch.int64,
        }  # fmt: skip
        for number, name in enumerate(split.names):
            seen.add(name)
            assert split.read(number) == (tmp_path / "images" / name).read_bytes()
            image, (height, width) = decode.decode(images[Path(name).name], 16, (0, 65535))
            assert np.array_equal(batch["image"][number].numpy(), image)
            assert batch["box"][number].tolist() == [height, width]
            label = int(batch["label"][number])
            assert (split.classes[label] if label >= 0 else None) == (str(Path(name).parent) if labelled else None)
    assert len(seen) == (2 if labelled else 1) * len(images)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("loader")
    class_folders(root / "images", {"a": 60, "b": 71}, size=9)
    shards(root / "shards", source="image_folder", path=str(root / "images"), samples_per_shard=40)
    return root / "shards"


@pytest.fixture
def split(folder):
    return open_split(folder, "train", data(image_size=8))


def test_caches_give_the_same(folder, split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ids = torch.tensor([5, 0, 93, 5])
    expected = split.gather(ids)
    assert expected["id"].tolist() == ids.tolist()
    assert expected["label"].tolist() == split.labels[ids].tolist()
    for i, number in enumerate(ids.tolist()):
        assert np.array_equal(expected["image"][i].numpy(), decode.decode(split.read(number), 8)[0])
    for cache in CACHES:
        for asked in (ids, ids.numpy(), ids.tolist()):
            batch = open_split(folder, "train", data(image_size=8, cache=cache)).gather(asked)
            assert all(torch.equal(batch[key], expected[key]) for key in expected), cache


def test_a_batch_is_the_callers_own(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for cache in CACHES:
        split = open_split(folder, "train", data(image_size=8, cache=cache))
        first = split.gather([0])
        before = {key: value.clone() for key, value in first.items()}
        for value in first.values():
            value.zero_()
        assert all(torch.equal(value, before[key]) for key, value in split.gather([0]).items()), cache


def test_the_disk_cache_is_decoded_once_and_shared(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    values = data(image_size=8, cache="disk")
    calls = []
    monkeypatch.setattr(decode, "decode", lambda *a, real=decode.decode: calls.append(1) or real(*a))
    splits = [open_split(folder, "train", values) for _ in range(3)]
    threads = [threading.Thread(target=split.gather, args=([0],)) for split in splits]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(calls) == splits[0].samples
    open_split(folder, "train", values).gather([1])
    assert len(calls) == splits[0].samples
    cached = next((tmp_path / ".cache" / "decoded").rglob("image"))
    assert cached.stat().st_size == splits[0].samples * 3 * 8 * 8
    open_split(folder, "train", data(image_size=9, cache="disk")).gather([0])  # another size is another cache
    assert len(calls) == 2 * splits[0].samples
    assert len(list(tmp_path.rglob("image"))) == 2

    os.truncate(cached, 100)  # a damaged cache is written again
    expected = open_split(folder, "train", data(image_size=8)).gather([70])
    assert torch.equal(open_split(folder, "train", values).gather([70])["image"], expected["image"])


def test_other_shards_have_another_cache(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {"source": "image_folder", "path": str(folder.parent / "images"), "image_size": 8, "cache": "disk"}
    for seed in (0, 1):
        split = shards(tmp_path / "shards", seed=seed, **values)["train"]
        image, _ = decode.decode(split.read(3), 8)
        assert np.array_equal(split.gather([3])["image"][0].numpy(), image)
    assert len(list(tmp_path.rglob("image"))) == 2


def test_a_failure_leaves_no_half_cache(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = data(image_size=8, cache="disk")

    def full(*_args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", full)
        with pytest.raises(OSError, match=r"No space left on device.*decoded"):
            open_split(folder, "train", values).gather([0])
    assert not [name for name in contents(tmp_path) if not name.endswith(".lock")]
    open_split(folder, "train", values).gather([0])


def test_auto_does_not_fill_the_disk(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(decoded.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 30_000}))
    split = open_split(folder, "train", data(image_size=8, cache="auto"))
    assert split.samples * 3 * 8 * 8 < 30_000
    split.gather([0])
    assert not (tmp_path / ".cache").exists()


def test_store_size_is_the_side_of_the_squares(folder):
    split = open_split(folder, "train", data(image_size=8, store_size=24))
    assert split.gather([0])["image"].shape == (1, 3, 24, 24)
    assert split.gather([0])["box"].tolist() == [[9, 10]]


# batches


def ids(batches) -> list[list[int]]:
    return [batch["id"].tolist() for batch in batches]


def joined(batches) -> list[int]:
    return [number for batch in batches for number in batch]


def train(split, batch_size=10, start=0, steps=30, seed=0, **where) -> list[list[int]]:
    return ids(train_batches(split, seed=seed, batch_size=batch_size, start_step=start, steps=steps, **where))


def test_every_sample_once_an_epoch_but_for_the_rest(split):
    steps = split.samples // 10
    assert split.samples % 10
    batches = train(split, steps=3 * steps)
    epochs = [joined(batches[i * steps : (i + 1) * steps]) for i in range(3)]
    for epoch in epochs:
        assert len(epoch) == len(set(epoch)) == 10 * steps
        assert set(epoch) <= set(range(split.samples))
        assert epoch != sorted(epoch)
    assert epochs[0] != epochs[1] != epochs[2]
    assert set(epochs[0]) != set(epochs[1])  # another rest is left out


def test_exactly_once_when_the_batch_divides_the_samples(split):
    assert sorted(train(split, batch_size=split.samples, steps=1)[0]) == list(range(split.samples))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_processes_share_the_global_batch(split, world):
    whole = train(split, batch_size=30, steps=9)
    parts = [train(split, batch_size=30, steps=9, rank=rank, world=world) for rank in range(world)]
    assert [joined(rows) for rows in zip(*parts, strict=True)] == whole
    assert all(len(rows) == 30 // world for part in parts for rows in part)


@pytest.mark.parametrize("start", [0, 1, 8, 9, 10, 29, 30])
def test_resuming_goes_on_where_the_run_was(split, start):
    assert train(split, start=start) == train(split)[start:]


def test_the_seed_is_the_order(split):
    assert train(split, seed=1) == train(split, seed=1) != train(split, seed=2)


def test_batches_hold_what_gather_gives(split):
    for batch in train_batches(split, seed=0, batch_size=7, start_step=0, steps=4):
        expected = split.gather(batch["id"])
        assert all(torch.equal(batch[key], expected[key]) for key in expected)


def test_a_batch_larger_than_the_set_is_one_line(split):
    with pytest.raises(UserError, match=r"pretrain\.batch_size: 200 .* 94 training images"):
        train_batches(split, seed=0, batch_size=200, start_step=0, steps=1)
    with pytest.raises(UserError, match=r"pretrain\.batch_size: 10 .* 3 processes"):
        train_batches(split, seed=0, batch_size=10, start_step=0, steps=1, rank=0, world=3)


def test_ordered_batches_cover_all_in_order(split):
    assert joined(ids(ordered_batches(split, 40))) == list(range(split.samples))
    assert [len(batch) for batch in ids(ordered_batches(split, 40))] == [40, 40, 14]
    assert ids(ordered_batches(split, 4, start=3, stop=9)) == [[3, 4, 5, 6], [7, 8]]
    assert ids(ordered_batches(split, 4, start=9, stop=9)) == []


def test_leaving_early_ends_the_background_thread(split):
    before = threading.active_count()
    batches = train_batches(split, seed=0, batch_size=10, start_step=0, steps=10**9)
    next(batches)
    batches.close()
    assert threading.active_count() == before


def test_an_error_while_reading_ahead_reaches_the_loop(folder, monkeypatch):
    split = open_split(folder, "train", data(cache="none"))
    batches = ordered_batches(split, 10)
    next(batches)
    monkeypatch.setattr(split, "read", lambda _: b"damaged")
    with pytest.raises(UserError, match=r"\.tar: sample \d+ of train: not an image"):
        list(batches)
