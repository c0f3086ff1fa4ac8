"""Classes with too few images for every split stay in train without a label, are dropped, or stop the stage."""

import numpy as np
import pytest

from selfsup.data.formats.image import files as decode
from selfsup.data.index import load_index
from selfsup.errors import UserError
from tests.data.make import class_folders, shards

TAIL = {"big": 20, "lone": 1, "many": 15, "pair": 2, "three": 3}


def made(tmp_path, counts=TAIL, **overrides):
    root = class_folders(tmp_path / "images", counts)
    return shards(tmp_path / "shards", source="image_folder", path=str(root), **overrides)


def classes_of(split, labels=None) -> list[str]:
    """The folders of a split's images, or of those with a label (True) or without one (False)."""
    chosen = [name for name, label in zip(split.names, split.labels, strict=True) if labels in (None, label >= 0)]
    return sorted({name.split("/")[-2] for name in chosen})


def test_a_long_tail_is_kept_in_train_without_labels(tmp_path):
    splits = made(tmp_path)
    index = load_index(tmp_path / "shards")
    assert index.classes == ["big", "many", "three"] and index.rare == {"lone": 1, "pair": 2}
    assert classes_of(splits["train"], labels=False) == ["lone", "pair"]
    for name, split in splits.items():
        assert classes_of(split, labels=True) == ["big", "many", "three"]
        assert all(split.labels[i] == -1 or index.classes[split.labels[i]] in own for i, own in enumerate(split.names))
        assert name == "train" or (split.labels >= 0).all()
    assert sum(split.samples for split in splits.values()) == sum(TAIL.values())
    assert index.notes == [
        "2 of 5 classes have too few images for train, validation and test (the largest is 'pair' with 2 images): "
        "their 3 images have no label (train 3), so that protocols which need labels and the supervised baseline leave "
        "them out; add images, or set data.rare: drop"
    ]


def test_the_other_classes_are_split_as_they_are_without_the_rare_ones(tmp_path):
    with_tail = made(tmp_path / "a", {"big": 20, "many": 15, "z": 2})
    alone = made(tmp_path / "b", {"big": 20, "many": 15})
    for name, split in alone.items():
        assert [own for own in with_tail[name].names if not own.startswith("z")] == split.names


def test_dropped_classes_are_in_no_split(tmp_path):
    splits = made(tmp_path, rare="drop")
    index = load_index(tmp_path / "shards")
    assert {name for split in splits.values() for name in classes_of(split)} == {"big", "many", "three"}
    assert index.rare == {"lone": 1, "pair": 2}
    assert index.notes[0].endswith("their 3 images are left out, as data.rare says")


@pytest.mark.parametrize("rare", ["keep", "drop"])
def test_with_one_class_left_there_is_nothing_to_tell_apart(tmp_path, rare):
    with pytest.raises(UserError, match=r"class 'pair' has no images for train .* add images, remove the class or set"):
        made(tmp_path, {"big": 20, "pair": 2}, rare=rare)


@pytest.mark.parametrize(
    ("train", "test", "labelled", "rare"),
    [
        ({"a": 9, "b": 9, "c": 9}, {"a": 2, "b": 2}, ["a", "b"], {"c": 9}),
        ({"a": 9, "b": 9}, {"a": 2, "b": 2, "c": 5}, ["a", "b"], {"c": 5}),
        ({"a": 9, "b": 9, "c": 1}, {"a": 2, "b": 2, "c": 1}, ["a", "b"], {"c": 2}),
        ({"a": 9, "b": 9, "c": 2}, {"a": 2, "b": 2, "c": 1}, ["a", "b", "c"], {}),
    ],
    ids=["in train only", "in test only", "one in train", "two in train"],
)
def test_classes_that_an_own_test_split_lacks_or_has_alone(tmp_path, train, test, labelled, rare):
    class_folders(tmp_path / "images/train", train)
    class_folders(tmp_path / "images/test", test)
    splits = shards(tmp_path / "shards", source="image_folder", path=str(tmp_path / "images"))
    index = load_index(tmp_path / "shards")
    assert index.classes == labelled and index.rare == rare
    assert splits["test"].samples == sum(test.values())  # what the source has as test stays there
    assert all(classes_of(split, labels=True) == labelled for split in splits.values())
    assert not (splits["validation"].labels < 0).any()


def test_a_limit_makes_classes_rare_and_leaves_the_test_split_alone(tmp_path):
    root = class_folders(tmp_path / "images", {"big": 40, "many": 40, "small": 5})
    options = {"source": "image_folder", "path": str(root)}
    whole = shards(tmp_path / "whole", **options)
    splits = shards(tmp_path / "some", **options, limit=10)
    index = load_index(tmp_path / "some")
    assert index.classes == ["big", "many"] and set(index.rare) == {"small"}
    assert index.notes[0].endswith("leave them out; raise data.limit, or set data.rare: drop")
    assert splits["test"].names == whole["test"].names
    assert classes_of(splits["test"], labels=False) == ["small"]
    assert splits["train"].samples + splits["validation"].samples == 10


@pytest.mark.parametrize("rare", ["keep", "drop"])
def test_a_class_that_unreadable_files_emptied_is_rare(tmp_path, rare):
    root = class_folders(tmp_path / "images", {"a": 12, "b": 12, "c": 3})
    (root / "c/001.png").write_bytes(b"")
    options = {"source": "image_folder", "path": str(root), "on_error": "skip", "rare": rare, "samples_per_shard": 5}
    splits = shards(tmp_path / "shards", **options)
    index = load_index(tmp_path / "shards")
    assert index.classes == ["a", "b"] and index.rare == {"c": 2}
    assert [entry.name for entry in index.skipped] == ["c/001.png"]
    assert classes_of(splits["train"]) == (["a", "b", "c"] if rare == "keep" else ["a", "b"])


def test_a_split_that_unreadable_files_emptied_is_drawn_again(tmp_path):
    root = class_folders(tmp_path / "images", {".": 12})
    options = {"source": "image_folder", "path": str(root), "on_error": "skip"}
    (lost,) = shards(tmp_path / "before", **options)["validation"].names
    (root / lost).write_bytes(b"")
    assert shards(tmp_path / "after", **options)["validation"].samples == 1


def test_images_of_rare_classes_are_no_part_of_statistics_when_dropped(tmp_path):
    root = class_folders(tmp_path / "images", {"a": 9, "b": 9})
    (root / "white").mkdir()
    (root / "white/0.png").write_bytes(decode.png(np.full((6, 7, 3), 255, np.uint8)))
    options = {"source": "image_folder", "path": str(root)}
    kept, dropped = (shards(tmp_path / rare, **options, rare=rare)["train"].facts.mean for rare in ("keep", "drop"))
    assert min(kept) > max(dropped)
