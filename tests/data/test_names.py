"""Lists of names that stay small, in an order that does not need them all at once."""

import pickle
import tracemalloc

import numpy as np
import pytest

from selfsup.data.names import Names
from selfsup.data.sources.image_folder import image_folder

PLAIN = ["a.png", "b/ü.png", "", "c c.png"]


def test_names_are_a_sequence():
    names = Names(PLAIN)
    assert list(names) == PLAIN and names == PLAIN and names != PLAIN[:3]
    assert names[-1] == "c c.png"
    with pytest.raises(IndexError):
        names[4]
    assert names[1:3] == PLAIN[1:3]
    assert names[np.array([3, 1])][np.array([1])] == ["b/ü.png"]


def test_names_that_are_no_text():
    raw = b"\xff.png".decode("utf-8", "surrogateescape")
    names = Names([raw, "a"])
    assert names == [raw, "a"]
    assert names.readable() == ["\ufffd.png", "a"]
    assert (plain := Names(PLAIN)).readable() is plain


def test_a_part_takes_only_its_own_names_along():
    names = Names(f"folder/{i}.png" for i in range(10_000))
    sent = pickle.dumps(names[5:8])
    assert len(sent) < 2000
    assert names[4:][1:4] == names[5:8] == pickle.loads(sent) == [f"folder/{i}.png" for i in (5, 6, 7)]
    assert pickle.loads(pickle.dumps(names)) == names


def test_a_name_takes_few_bytes():
    tracemalloc.start()
    names = Names(f"class/{i:019d}.png" for i in range(20_000))
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held / len(names) < 29 + 16 + 5


def test_a_folder_is_listed_in_the_order_of_whole_paths(tmp_path):
    """Among a folder's entries that is not the order of their names."""
    files = ["a/x.png", "a b/x.png", "a-/x.png", "a/a.png", "a0/x.png", "a/b/x.png", "a/b.png", "A/x.png"]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    source = image_folder(tmp_path)
    assert source.splits["train"].names == sorted(files)
    assert [source.classes[label] for label in source.splits["train"].labels] == [
        name.rpartition("/")[0] for name in sorted(files)
    ]
