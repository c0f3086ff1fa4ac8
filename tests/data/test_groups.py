"""Images of one group, such as a patient's, are in one split, and the classes still have their shares."""

import itertools

import numpy as np
import pytest

from selfsup.data.index import load_index
from selfsup.data.splits import held_out_groups, random_keys
from selfsup.errors import UserError
from tests.data.make import class_folders, shards


def patients(root, classes="ab", count=12, images=4):
    """Each class has patients of its own, with so many images each."""
    class_folders(root, dict.fromkeys(classes, count * images))
    for label in classes:
        for number, path in enumerate(sorted((root / label).iterdir())):
            path.rename(path.with_name(f"{label}{number // images:02d}_{number % images}.png"))
    return {"source": "image_folder", "path": str(root)}


def of_split(splits) -> dict[str, set[str]]:
    return {split: {name.rpartition("/")[2].partition("_")[0] for name in own.names} for split, own in splits.items()}


def assert_apart(splits):
    found = of_split(splits)
    for one, other in itertools.combinations(found, 2):
        assert not found[one] & found[other]
    return found


@pytest.mark.parametrize("group", [r"/(\w\d+)_", r"[ab]\d\d", "a table"])
def test_no_group_is_in_two_splits(tmp_path, group):
    options = patients(tmp_path / "images")
    if group == "a table":
        rows = [f"{path.name},x{path.name[:3]}" for path in (tmp_path / "images").rglob("*.png")]
        (tmp_path / "table.csv").write_text("\n".join(["image,patient", *rows]))
        group = {"table": str(tmp_path / "table.csv"), "file": "image", "group": "patient"}
    splits = shards(tmp_path / "shards", **options, group=group)
    found = assert_apart(splits)
    assert {split: len(names) for split, names in found.items()} == {"train": 18, "validation": 2, "test": 4}
    for split in splits.values():
        assert np.bincount(split.labels).tolist() == [split.samples // 2] * 2
    note = "no group of data.group is in two splits: train 18, validation 2, test 4"
    assert load_index(tmp_path / "shards").notes == [note]


def test_without_groups_they_would_be_torn_apart(tmp_path):
    found = of_split(shards(tmp_path / "shards", **patients(tmp_path / "images")))
    assert found["train"] & found["test"]


def test_a_limit_tears_no_group_apart_and_is_exact(tmp_path):
    splits = shards(tmp_path / "shards", **patients(tmp_path / "images"), group=r"\w\d\d(?=_)", limit=50)
    assert_apart(splits)
    assert splits["train"].samples + splits["validation"].samples == 50


@pytest.mark.parametrize("column", ["path", "name", "stem"])
def test_a_table_names_files_by_path_name_or_stem(tmp_path, column):
    options = patients(tmp_path / "images")
    lines = ["\ufeffstem,path,patient,name"]
    for path in (tmp_path / "images").rglob("*.png"):
        lines.append(f"{path.stem},{path.parent.name}/{path.name},{path.name[:3]},{path.name}")
    (tmp_path / "table.csv").write_text("\n".join(lines), encoding="utf-8")
    table = {"table": str(tmp_path / "table.csv"), "file": column, "group": "patient"}
    assert_apart(shards(tmp_path / "shards", **options, group=table))


def slow_rule(labels, keys, share, groups, spare):
    """`held_out_groups` by plain loops over its words."""
    classes, order = sorted(set(labels)), sorted(set(groups), key=lambda g: min(int(keys[i]) for i in of(groups, g)))
    own = {g: {c: sum(labels[i] == c for i in of(groups, g)) for c in classes} for g in order}
    wanted = {c: max(1, int(sum(label == c for label in labels) * share + 0.5)) for c in classes}
    held: list = []

    def distance(chosen):
        return sum(abs(sum(own[g][c] for g in chosen) - wanted[c]) / wanted[c] for c in classes)

    def may(g):
        left = {c: sum(own[h][c] > 0 for h in order if h not in [*held, g]) for c in classes}
        return g not in held and all(left[c] >= spare for c in classes if own[g][c])

    for g in order:
        if may(g) and distance([*held, g]) < distance(held) - 1e-12:
            held.append(g)
    for c in classes:
        if not any(own[g][c] for g in held):
            able = [g for g in order if own[g][c] and may(g)]
            held += [min(able, key=lambda g: distance([*held, g]))] if able else []
    return [g in held for g in groups]


def of(groups, group):
    return [i for i, own in enumerate(groups) if own == group]


@pytest.mark.parametrize(("seed", "share", "spare"), [(0, 0.2, 2), (1, 0.1, 1), (2, 0.4, 1), (3, 0.05, 2), (4, 0.3, 1)])
def test_held_out_groups_by_a_slow_rule(seed, share, spare):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 25, 150)
    labels = (groups % 4 + (rng.random(150) < 0.3)) % 4  # mostly one class a group
    labels[groups == 24] = 4  # a class of one group
    keys = random_keys(seed, "test", 150)
    held = held_out_groups(labels, keys, share, groups, spare)
    assert held.tolist() == slow_rule(labels.tolist(), keys, share, groups.tolist(), spare)
    assert not held[labels == 4].any()
    for label in range(4):
        assert 0 < held[labels == label].sum() < 2.5 * max(share * (labels == label).sum(), 6)


def test_unlabelled_groups_are_held_out_only_among_themselves():
    groups, keys = np.repeat(np.arange(20), 3), random_keys(0, "test", 60)
    assert 9 <= held_out_groups(np.full(60, -1), keys, 0.2, groups, 1).sum() <= 15
    labels = np.where(groups < 10, 0, -1)
    assert not held_out_groups(labels, keys, 0.2, groups, 1)[labels < 0].any()


def test_a_class_of_too_few_groups_is_rare_however_many_images_it_has(tmp_path):
    options = patients(tmp_path / "images")
    class_folders(tmp_path / "images", {"c": 30}, size=7)
    splits = shards(tmp_path / "shards", **options, group=r"[ab]\d\d|c/")
    index = load_index(tmp_path / "shards")
    assert index.classes == ["a", "b"] and index.rare == {"c": 30}
    assert index.notes[0].startswith("1 of 3 classes has too few groups for train, validation and test (the largest")
    assert index.notes[0].endswith("leave them out; add groups, or set data.rare: drop")
    assert sum(name.startswith("c/") for name in splits["train"].names) == 30


@pytest.mark.parametrize(
    ("group", "said"),
    [
        (r"/(\w\d+)x", "data.group: '/(\\\\w\\\\d+)x' finds no group in the file name 'a/a00_0.png'; change it"),
        (r"/(z)?", "finds no group in the file name 'a/a00_0.png'"),
        (r"a|b", "data.group: 2 groups are too few for 3 splits; add images of other groups or set data.group: null"),
        (r"a|b\d", "class 'a' has no images for validation (train 48, validation 0, test 0), and each class needs"),
        ({"table": "nowhere.csv", "file": "f", "group": "g"}, "data.group: no table nowhere.csv; correct the path"),
        ({"file": "x", "group": "g"}, "has no column 'x' (it has: f, g); change it"),
        ({"file": "f", "group": "x"}, "has no column 'x' (it has: f, g); change it"),
        ({"file": "f", "group": "g", "rows": ["a00_0,1"]}, "has no file 'a/a00_1.png' in column 'f'; add a row for it"),
        (
            {"file": "f", "group": "g", "rows": ["a00_0,1", "a00_0,2"]},
            "'a00_0' in the groups '1' and '2'; remove a row",
        ),
        ({"file": "f", "group": "g", "rows": ["a00_0,"]}, "line 2: an empty cell; fill it in"),
        ({"file": "f", "group": "g", "rows": ["a00_0"]}, "line 2: an empty cell; fill it in"),
        ({"file": "f", "group": "g", "rows": ["\udcff,1"]}, "is no CSV file in UTF-8"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, group, said):
    options = patients(tmp_path / "images")
    if isinstance(group, dict) and "table" not in group:
        (tmp_path / "t.csv").write_text("\n".join(["f,g", *group.pop("rows", [])]), errors="surrogateescape")
        group["table"] = str(tmp_path / "t.csv")
    with pytest.raises(UserError) as caught:
        shards(tmp_path / "shards", **options, group=group)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_own_splits_that_share_a_group_are_refused_by_name(tmp_path):
    for split, first in (("train", 0), ("test", 11)):
        class_folders(tmp_path / f"images/{split}", {"a": 12, "b": 12})
        for path in (tmp_path / f"images/{split}").rglob("*.png"):
            path.rename(path.with_name(f"p{first + int(path.stem)}_.png"))
    options = {"source": "image_folder", "path": str(tmp_path / "images")}
    with pytest.raises(UserError) as caught:
        shards(tmp_path / "shards", **options, group=r"p(\d+)_")
    assert "group '11' is in two splits of the source, test/a/p11_.png (test) and train/a/p11_.png (train)" in str(
        caught.value
    )
    shards(tmp_path / "shards", **options, group=r"\w+/./p\d+_")
