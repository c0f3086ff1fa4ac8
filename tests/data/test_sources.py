"""Folders, idx files and torchvision's sets are listed as a person would list them."""

import gzip
import os
import struct
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsup.data.formats.image import files as decode
from selfsup.data.shards import write
from selfsup.data.source import not_read, resolve
from selfsup.data.sources import open_source
from selfsup.data.sources.digits import digits
from selfsup.data.sources.image_folder import image_folder
from selfsup.data.sources.torchvision import idx_files, torchvision_set
from selfsup.errors import UserError
from tests.data.make import class_folders, data, noise, shards

SOURCE_ROOT = str(Path(decode.__file__).parents[3])
PNG = decode.png(noise(4, 5))


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(PNG)
    return root


def listed(source, split: str = "train") -> dict[str, str | None]:
    samples = source.splits[split]
    classes = [source.classes[label] if label >= 0 else None for label in samples.labels]
    return dict(zip(samples.names, classes, strict=True))


# image_folder


def test_classes_are_folders_nested_or_not(tmp_path):
    source = image_folder(put(tmp_path, "b/1.png", "a/x/2.PNG", "a/y/3.png", "ñandú/4.png", "10/5.png", "9/6.png"))
    assert source.classes == ["10", "9", "a/x", "a/y", "b", "ñandú"]
    assert listed(source) == {
        "10/5.png": "10", "9/6.png": "9", "a/x/2.PNG": "a/x", "a/y/3.png": "a/y", "b/1.png": "b",
        "ñandú/4.png": "ñandú",
    }  # fmt: skip
    assert source.splits["train"].names == sorted(source.splits["train"].names)
    assert source.splits.keys() == {"train"}
    assert all(source.read(ref) == PNG for ref in source.splits["train"].refs)


def test_a_flat_folder_is_unlabelled(tmp_path):
    source = image_folder(put(tmp_path, "b.png", "a.png"))
    assert source.classes == []
    assert listed(source) == {"a.png": None, "b.png": None}


def test_own_splits(tmp_path):
    names = ["train/a/1.png", "train/b/2.png", "Test/a/3.png", "Test/b/4.png", "val/a/5.png"]
    source = image_folder(put(tmp_path, *names))
    assert listed(source) == {"train/a/1.png": "a", "train/b/2.png": "b"}
    assert listed(source, "test") == {"Test/a/3.png": "a", "Test/b/4.png": "b"}
    assert listed(source, "validation") == {"val/a/5.png": "a"}


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_train_and_validation_without_test(tmp_path, name):
    source = image_folder(put(tmp_path, "train/a/1.png", f"{name}/a/2.png"))
    assert source.splits.keys() == {"train", "validation"}


def test_a_lone_train_folder_and_other_folders_are_classes(tmp_path):
    source = image_folder(put(tmp_path, "train/1.png", "plane/2.png"))
    assert source.classes == ["plane", "train"]


def test_two_folders_for_one_split_and_folders_that_are_none(tmp_path):
    put(tmp_path, "train/a/1.png", "test/a/2.png", "extra/a/3.png")
    assert image_folder(tmp_path).notes == ["Folders beside the splits were left out: extra."]
    put(tmp_path, "val/a/1.png", "valid/a/1.png")
    with pytest.raises(UserError, match="val and valid; keep one"):
        image_folder(tmp_path)


def test_own_splits_are_used_as_they_are(tmp_path):
    root = tmp_path / "images"
    class_folders(root / "train", {"a": 20, "b": 20})
    class_folders(root / "test", {"a": 3, "b": 4})
    splits = shards(tmp_path / "shards", source="image_folder", path=str(root))
    assert splits["test"].names == [f"test/{c}/{i:03d}.png" for c, n in (("a", 3), ("b", 4)) for i in range(n)]
    assert np.bincount(splits["validation"].labels).tolist() == [2, 2]
    assert all(name.startswith("train/") for split in ("train", "validation") for name in splits[split].names)


def test_a_class_that_only_the_test_split_has(tmp_path):
    root = tmp_path / "images"
    class_folders(root / "train", {"a": 20})
    class_folders(root / "test", {"a": 3, "b": 4})
    with pytest.raises(UserError, match=r"class 'b' has no images for train \(train 0, validation 0, test 4\)"):
        shards(tmp_path / "shards", source="image_folder", path=str(root))


def test_other_and_hidden_files_are_counted(tmp_path):
    put(tmp_path, "a/1.png", "a/.hidden.png", ".thumbs/2.png", "a/._1.png")
    for name in ("a/labels.txt", "a/meta.json", "a/.DS_Store", "readme", "a/data.h5", "a/clip.mpg"):
        (tmp_path / name).write_bytes(b"x")
    source = image_folder(tmp_path)
    assert listed(source) == {"a/1.png": "a"}
    assert source.left_out == {
        "hidden": 4, ".h5": 1, ".json": 1, ".mpg": 1, ".txt": 1, "without extension": 1,
    }  # fmt: skip
    assert source.notes == [
        "Files left out, as their names are not those of images: 4 hidden, 1 .h5, 1 .json, 1 .mpg, 1 .txt, 1 without "
        "extension; convert those that are images."
    ]


def test_a_great_many_extensions_are_counted_as_others(tmp_path):
    put(tmp_path, "a/1.png", *(f"a/image.{number:03d}" for number in range(50)))
    assert list(image_folder(tmp_path).left_out.items())[19:] == [(".019", 1), ("others", 30)]


def phone(root: Path) -> Path:
    """A class of photographs of which most are HEIC, and a class of DICOM files."""
    for number in range(100):
        name = f"a/{number}.png" if number < 20 else f"a/{number}.heic" if number < 60 else f"b/{number}.dcm"
        put(root, name)
    return root


def test_files_of_unknown_types_are_counted_and_a_class_of_them_is_an_error(tmp_path):
    root = phone(tmp_path / "images")
    with pytest.raises(UserError, match=r"images: Folder 'b' has no image, only 40 \.dcm; .*data\.on_error: skip"):
        shards(tmp_path / "shards", source="image_folder", path=str(root))
    index = write(data(source="image_folder", path=str(root), on_error="skip"), 0, tmp_path / "shards", 1)
    assert index.left_out == {".dcm": 40, ".heic": 40}
    assert index.classes == ["a"]
    assert "Folder 'b' has no image, only 40 .dcm." in index.notes
    assert any("40 .dcm, 40 .heic; convert those that are images" in note for note in index.notes)
    unlabelled = write(data(source="image_folder", path=str(root), labels="none"), 0, tmp_path / "flat", 1)
    assert unlabelled.left_out == index.left_out  # without classes none is lost


def test_empty_class_folders(tmp_path):
    put(tmp_path, "train/a/1.png", "train/b/x/2.png", "test/a/3.png", "test/b/x/3.png")
    (tmp_path / "train" / "c" / "deep" / "deeper").mkdir(parents=True)
    (tmp_path / "train" / "c" / "deeper").mkdir()
    with pytest.raises(
        UserError, match=r"Folder 'train/c' has no image and no file; remove it, or set data\.on_error: skip"
    ):
        image_folder(tmp_path)
    source = image_folder(tmp_path, skip=True)
    assert source.classes == ["a", "b/x"]
    assert source.notes == ["Folder 'train/c' has no image and no file."]
    for name in "defgh":
        put(tmp_path, f"train/{name}/notes.txt")
    notes = image_folder(tmp_path, skip=True).notes
    assert notes[1:4] == [
        "Folder 'train/d' has no image, only 1 .txt.", "Folder 'train/e' has no image, only 1 .txt.",
        "3 more folders have no image.",
    ]  # fmt: skip


def test_two_links_to_one_class_folder(tmp_path):
    put(tmp_path, "elsewhere/1.png", "images/a/2.png")
    for name in ("b", "c"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"Folder 'c' is the same as folder 'b' by a link; .*on_error: skip"):
        image_folder(tmp_path / "images")
    source = image_folder(tmp_path / "images", skip=True)
    assert listed(source) == {"a/2.png": "a", "b/1.png": "b"}
    assert len(source.notes) == 1


def test_images_beside_class_folders(tmp_path):
    put(tmp_path, "a/1.png", "b/2.png", "stray.png")
    with pytest.raises(UserError, match=r"stray\.png lies beside class folders.*data\.labels: none"):
        image_folder(tmp_path)
    source = open_source(data(source="image_folder", path=str(tmp_path), labels="none"), tmp_path)
    assert listed(source) == {"a/1.png": None, "b/2.png": None, "stray.png": None}
    assert source.classes == []


def test_links_are_followed_once(tmp_path):
    put(tmp_path, "images/a/1.png", "elsewhere/2.png")
    (tmp_path / "images" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images" / "a" / "loop").symlink_to(tmp_path / "images")
    assert listed(image_folder(tmp_path / "images")) == {"a/1.png": "a", "b/2.png": "b"}


def test_names_that_are_no_utf_8(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 9})
    (root / os.fsdecode(b"b\xff")).mkdir()
    for number in range(5):
        (root / os.fsdecode(b"b\xff") / os.fsdecode(b"\xe9%d.png" % number)).write_bytes(PNG if number else b"")
    splits = shards(tmp_path / "shards", source="image_folder", path=str(root), on_error="skip")
    assert splits["train"].classes == ["a", "b\ufffd"]
    names = [name for split in splits.values() for name in split.names]
    assert sum(name.startswith("b\ufffd/\ufffd") for name in names) == 4


def test_missing_empty_and_wrong_paths(tmp_path):
    with pytest.raises(UserError, match=r"data\.image\.path: no folder .*nowhere"):
        image_folder(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(UserError, match=r"data\.image\.path: no images in .* \(other files: none\)"):
        image_folder(tmp_path)
    (tmp_path / "a" / "table.csv").write_text("x")
    with pytest.raises(UserError, match=r"other files: 1 \.csv"):
        image_folder(tmp_path)
    with pytest.raises(UserError, match="is a file; unpack it"):
        image_folder(tmp_path / "a" / "table.csv")


def test_relative_paths_are_found_in_the_main_repository(tmp_path, monkeypatch):
    put(tmp_path / "main" / "images", "a/1.png")
    (tmp_path / "copy").mkdir()
    monkeypatch.chdir(tmp_path / "copy")
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert resolve("images") == Path("images")
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / "main"))
    assert resolve("images") == tmp_path / "main" / "images"
    assert listed(image_folder(resolve("images"))) == {"a/1.png": "a"}
    put(tmp_path / "copy" / "images", "b/1.png")  # what is here comes first
    assert resolve("images") == Path("images")


# idx files and torchvision


def idx(path: Path, values: np.ndarray) -> None:
    header = struct.pack(">HBB", 0, 8, values.ndim) + struct.pack(f">{values.ndim}i", *values.shape)
    path.write_bytes((gzip.compress if path.suffix == ".gz" else bytes)(header + values.astype(np.uint8).tobytes()))


def fashion(folder: Path, count: int = 60, suffix: str = ".gz") -> tuple[np.ndarray, np.ndarray]:
    """FashionMNIST's files, with fewer and smaller images."""
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(0, 256, (count, 5, 4), dtype=np.uint8)
    labels = np.arange(count) % 10
    for prefix in ("train", "t10k"):
        idx(folder / f"{prefix}-images-idx3-ubyte{suffix}", images)
        idx(folder / f"{prefix}-labels-idx1-ubyte{suffix}", labels)
    return images, labels


@pytest.mark.parametrize("layout", ["files", "torchvision"])
def test_fashion_mnist_from_idx_files_and_through_torchvision(tmp_path, layout):
    direct = layout == "files"
    folder = tmp_path / "idx" if direct else tmp_path / "idx" / "FashionMNIST" / "raw"
    images, labels = fashion(folder, suffix=".gz" if direct else "")
    splits = shards(tmp_path / "shards", source="torchvision", name="FashionMNIST", path=str(tmp_path / "idx"))
    assert splits["train"].classes[0] == "T-shirt/top"
    assert splits["train"].classes[9] == "Ankle boot"
    assert {name: split.samples for name, split in splits.items()} == {"train": 50, "validation": 10, "test": 60}
    batch = splits["test"].gather(np.arange(60))
    assert batch["label"].tolist() == labels.tolist()
    assert batch["box"].tolist() == [[5, 4]] * 60
    assert np.array_equal(batch["image"][:, 1, :5, :4].numpy(), images)


def test_idx_files_of_another_set_have_numbers_for_classes(tmp_path):
    fashion(tmp_path)
    assert torchvision_set("MNIST", tmp_path).classes == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("damage", ["cut", "inner", "magic", "missing", "counts"])
def test_damaged_idx_files_are_named(tmp_path, damage):
    fashion(tmp_path)
    path = tmp_path / "t10k-images-idx3-ubyte.gz"
    content = path.read_bytes()
    match damage:
        case "cut":
            path.write_bytes(content[:-30])
        case "inner":
            path.write_bytes(gzip.compress(gzip.decompress(content)[:-1]))
        case "magic":
            path.write_bytes((tmp_path / "t10k-labels-idx1-ubyte.gz").read_bytes())
        case "missing":
            path.unlink()
        case "counts":
            idx(path, np.zeros((59, 5, 4)))
    with pytest.raises(
        UserError, match=r"59 t10k images but 60" if damage == "counts" else r"t10k-images-idx3-ubyte\.gz"
    ):
        idx_files(tmp_path, None)


def test_stl10_brings_its_unlabelled_images_into_train(tmp_path):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 40), ("test", 20), ("unlabeled", 30)):
        rng.integers(0, 256, (count, 3, 96, 96), dtype=np.uint8).tofile(folder / f"{part}_X.bin")
        if part != "unlabeled":
            (np.arange(count, dtype=np.uint8) % 10 + 1).tofile(folder / f"{part}_y.bin")
    np.savetxt(folder / "fold_indices.txt", np.arange(10)[None], fmt="%d")
    (folder / "class_names.txt").write_text("\n".join(f"class {n}" for n in range(10)))
    import torchvision

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torchvision.datasets.STL10, "_check_integrity", lambda _: True)
        splits = shards(tmp_path / "shards", source="torchvision", name="STL10", path=str(tmp_path))
    assert (splits["train"].labels == -1).sum() == 30
    assert np.bincount(splits["train"].labels + 1).tolist() == [30] + [3] * 10
    assert np.bincount(splits["validation"].labels).tolist() == [1] * 10  # figures need labels
    assert splits["test"].samples == 20
    assert splits["train"].classes[3] == "class 3"


def test_files_of_a_torchvision_set_keep_their_bytes(tmp_path):
    root = tmp_path / "eurosat" / "2750"
    for label in ("Forest", "River"):
        (root / label).mkdir(parents=True)
        for i in range(6):
            Image.fromarray(noise(9, 9, seed=i)).save(root / label / f"{i}.jpg", quality=40)
    splits = shards(tmp_path / "shards", source="torchvision", name="EuroSAT", path=str(tmp_path))
    assert splits["train"].classes == ["Forest", "River"]
    total = 0
    for split in splits.values():
        for number in range(split.samples):
            name = Path(split.names[number])
            assert split.read(number) == (root / name.parent.name / name.name).read_bytes()
            total += 1
    assert total == 12


def test_a_download_that_fails_is_one_line(tmp_path, monkeypatch):
    import torchvision

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torchvision.datasets.FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    with pytest.raises(
        UserError, match=r"^data\.image\.name: FashionMNIST could not be downloaded \(.*network"
    ) as caught:
        torchvision_set("FashionMNIST", None)
    assert "\n" not in str(caught.value)
    assert (tmp_path / ".cache" / "torchvision").is_dir()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR11", r"data\.image\.name: torchvision\.datasets has no 'CIFAR11'; did you mean CIFAR10\?"),
        ("folder", r"data\.image\.name: torchvision\.datasets has no 'folder'"),
        ("CIFAR10", r"data\.image\.path: CIFAR10 could not be read in .*not found.*null to download"),
        ("EMNIST", r"data\.image\.name: EMNIST has no training split"),
    ],
)
def test_sets_that_cannot_be_had(tmp_path, name, message):
    with pytest.raises(UserError, match=message):
        torchvision_set(name, tmp_path)


def test_a_missing_folder_of_a_torchvision_set(tmp_path):
    with pytest.raises(UserError, match=r"data\.image\.path: no folder .*null to download CIFAR10"):
        torchvision_set("CIFAR10", tmp_path / "nowhere")


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
    train = digits().splits["train"]
    assert train.labels.tolist() == labels.tolist()
    np.testing.assert_array_equal(train.refs, np.floor(scans.reshape(-1, 8, 8) * (255 / 16) + 0.5))


def test_digits_import_neither_scikit_learn_nor_torch():
    code = "from selfsup.data.sources.digits import digits; digits(); import sys; "
    code += "print({'sklearn', 'torch'} & {*sys.modules})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": SOURCE_ROOT}, capture_output=True
    )
    assert done.stdout == b"set()\n"


def test_hidden_files_alone_need_no_converting():
    assert not_read(Counter({"hidden": 1}), "images") == [
        "Files left out, as their names are not those of images: 1 hidden."
    ]
