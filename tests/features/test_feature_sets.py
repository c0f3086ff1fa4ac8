import json

import numpy as np
import pytest

from selfsup.errors import UserError
from selfsup.features.store import find

ALL = ["pixels", "random", "supervised"]


def write(folder, meta, width=3):
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps(meta))
    if "skipped" not in meta:
        for number, split in enumerate(("train", "validation", "test")):
            np.save(folder / f"{split}.npy", np.full((4 - number, width), number, np.float32))


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "pretrained", {"method": "mae", "backbone": "vit"})
    for row in ("random", "supervised"):
        write(tmp_path / "baselines" / row, {"backbone": "vit"})
    write(tmp_path / "baselines" / "pixels", {})
    return tmp_path


def test_rows_come_in_order_with_the_baselines_of_the_methods_own_architecture(folder):
    sets, missing = find(folder, ALL)
    assert [(one.row, one.title) for one in sets] == [
        ("method", "mae"),
        ("supervised", "supervised"),
        ("random", "random"),
        ("pixels", "pixels"),
    ]
    assert [one.meta.get("backbone") for one in sets] == ["vit", "vit", "vit", None]
    assert missing == {}


def test_baselines_of_another_architecture_are_left_out(folder):
    """Such as after `dvc repro extract` with another method."""
    write(folder / "other", {"backbone": "conv"})
    (folder / "other/meta.json").replace(folder / "baselines/random/meta.json")
    sets, missing = find(folder, ALL)
    assert [one.row for one in sets] == ["method", "supervised", "pixels"]
    assert missing["random"].endswith("baselines/random has the backbone conv, not vit; run dvc repro baseline")


def test_only_the_baselines_asked_for_are_found(folder):
    assert [one.row for one in find(folder, ["pixels"])[0]] == ["method", "pixels"]


def test_missing_baselines_are_named_with_their_reason(folder):
    (folder / "baselines/pixels/meta.json").unlink()
    (folder / "baselines/supervised/meta.json").write_text('{"skipped": "needs labels"}')
    sets, missing = find(folder, ALL)
    assert [one.row for one in sets] == ["method", "random"]
    assert missing["supervised"] == "needs labels"
    assert "pixels is not there" in missing["pixels"]


def test_arrays_are_mapped_not_read(folder):
    splits = find(folder, [])[0][0].splits()
    assert isinstance(splits.train, np.memmap)
    assert [len(split) for split in splits] == [4, 3, 2]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 3), np.float32), "3 rows for 4 samples of the train split"),
        (np.zeros((4, 3), np.float64), "needs float32"),
        (np.zeros(4, np.float32), "needs float32"),
        (np.array([[0, 1], [0, 1], [0, np.nan], [0, 0]], np.float32), "NaN"),
        (np.array([[0, 1], [0, 1], [0, -np.inf], [0, 0]], np.float32), "NaN or infinite"),
    ],
)
def test_unfit_arrays_are_one_line_with_the_file(folder, array, message):
    np.save(folder / "pretrained/train.npy", array)
    with pytest.raises(UserError, match=message) as error:
        find(folder, [])[0][0].load("train", 4)
    assert "train.npy" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_truncated_or_absent_array_is_one_line_with_the_file(folder):
    path = folder / "pretrained/train.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"train\.npy"):
        find(folder, [])[0][0].load("train", 4)
    path.unlink()
    with pytest.raises(UserError, match="not found"):
        find(folder, [])[0][0].load("train", 4)


@pytest.mark.parametrize("text", ["{", "[1]", "{}"])
def test_unreadable_meta_of_the_pretrained_set_is_one_line(folder, text):
    (folder / "pretrained/meta.json").write_text(text)
    with pytest.raises(UserError, match=r"meta\.json"):
        find(folder, ALL)


def test_nothing_pretrained_says_what_to_run(tmp_path):
    with pytest.raises(UserError, match="dvc repro"):
        find(tmp_path, ALL)
