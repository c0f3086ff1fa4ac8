"""Results that are kept: the same as computed ones, found again while nothing changes, never taken for others."""

import io
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfsup.evaluation import kept
from selfsup.evaluation.result import Choice, Curve, Metric, Picture, Plot, Result, Table, right
from tests.evaluation import workspace

LABELS = np.array([0, 0, 1])
HITS = np.array([[True, False, True], [True, True, True]])
WHOLE = Result(
    {
        "top1": right(HITS[0], LABELS, "top-1", curve=Curve("probe", 3, 9)),
        "few": right(HITS, LABELS, "few"),
        "single": right(HITS[0, :1], LABELS[:1], "of one image"),
        "count": Metric(3, "count", "none", False, judged=False),
        "gap": Metric(0.1 + 0.2, "gap", "points", outcomes=np.array([0.3, 0.3], np.float32)),
    },
    {"k": Choice(5, "k", {5: 0.9, 20: 0.8}, {5: 0.5}), "c": Choice(1.0, "C", {1.0: 0.1, 10.0: 1 / 3})},
    ["a note"],
    {"settings": Table(["a", "b"], [["x", 1], ["y", np.float64(0.1)], ["z", np.int64(7)]])},
    LABELS,
    "standardised",
    {"line": Plot("title", "x", "y", [(1.0, 0.5), (2.0, 0.25)], ticks=["one", "two"])},
    {"seen": Picture("title", "text", np.arange(24, dtype=np.uint8).reshape(2, 4, 3))},
)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(kept, "place", lambda: tmp_path / "kept")
    return tmp_path / "kept"


def plain(value):
    """Everything in a result with its types, arrays as bytes."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, dict):
        return [(type(key), key, plain(one)) for key, one in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [plain(one) for one in value]
    if hasattr(value, "__dataclass_fields__"):
        return type(value), [plain(getattr(value, name)) for name in value.__dataclass_fields__]
    return (type(value), value) if not isinstance(value, np.generic) else plain(value.item())


def test_a_result_is_read_back_with_every_type_and_bit(place):
    kept.keep(place / "a.npz", WHOLE)
    assert plain(kept.read(place / "a.npz")) == plain(WHOLE)
    kept.keep(place / "b.npz", Result({}))
    assert plain(kept.read(place / "b.npz")) == plain(Result({}))
    assert [path.name for path in sorted(place.iterdir())] == ["a.npz", "b.npz"], "nothing unfinished is left"


@pytest.mark.parametrize("protocol", ["knn", "few_label", "layers", "attention"])
def test_a_second_run_finds_all_rows_and_writes_the_same_bytes(place, hundred, capsys, monkeypatch, protocol):
    params = workspace.make(place.parent, hundred, **workspace.quick())

    def outputs():
        workspace.evaluate(protocol, params)
        files = sorted(path for top in ("metrics", "evaluations") for path in Path(top).rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files}

    first = outputs()
    assert "kept from an earlier run" not in capsys.readouterr().out
    monkeypatch.setattr(kept, "keep", lambda *_: pytest.fail("a row was computed again"))
    assert outputs() == first
    assert capsys.readouterr().out.count("kept from an earlier run") == 4


def test_another_method_computes_its_own_row_alone(place, hundred, capsys):
    params = workspace.make(place.parent, hundred, **workspace.quick())
    before = workspace.evaluate("knn", params)["knn"]
    capsys.readouterr()
    features = np.load("features/pretrained/test.npy")
    np.save("features/pretrained/test.npy", features + np.float32(3))
    after = workspace.evaluate("knn", params)["knn"]
    out = capsys.readouterr().out
    assert [line.split(": ")[1] for line in out.splitlines() if "kept" in line] == ["supervised", "random", "pixels"]
    assert after["method"] != before["method"] and after["random"] == before["random"]


def identity(place, hundred, protocol="knn", **changes):
    """The names of the files that a run leaves."""
    params = workspace.make(place.parent, hundred, **(workspace.quick() | changes))
    workspace.evaluate(protocol, params)
    return {path.name for path in place.glob("*.npz")}


def remade(place):
    """The working folder of a run, and kept results, are gone."""
    import shutil

    for path in place.parent.iterdir():
        path.unlink() if path.is_symlink() or path.is_file() else shutil.rmtree(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 1},
        {"evaluation__knn__temperature": 0.1},
        {"evaluation__knn__k": [5]},
        {"code": True},
        {"labels": True},
        {"library": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_whatever_figures_depend_on_is_in_the_name(place, hundred, monkeypatch, changes):
    first = identity(place, hundred)
    remade(place)
    assert identity(place, hundred) == first
    remade(place)
    if changes.pop("code", False):
        monkeypatch.setattr(kept, "code_digest", lambda *_, **__: "other code")
    if changes.pop("library", False):
        monkeypatch.setattr(kept, "version", lambda library: "another")
    if changes.pop("labels", False):
        real = np.concatenate
        monkeypatch.setattr("selfsup.evaluation.kept.digests.of_arrays", lambda *arrays: str(real(arrays).sum() + 1))
    assert not identity(place, hundred, **changes) & first


def test_the_code_of_a_protocol_and_of_what_it_imports_is_in_its_digest(tmp_path):
    (tmp_path / "a.py").write_text("import b\n")
    (tmp_path / "b.py").write_text("x = 1\n")
    first = kept.code_digest(tmp_path / "a.py")
    (tmp_path / "b.py").write_text("x = 2\n")
    assert kept.code_digest(tmp_path / "a.py") != first


@pytest.mark.parametrize("damage", ["cut", "flipped", "poisoned", "empty"])
def test_a_damaged_or_poisoned_file_is_ignored_and_computed_again(place, hundred, caplog, damage):
    params = workspace.make(place.parent, hundred, **workspace.quick())
    before = workspace.evaluate("knn", params)
    for path in place.glob("*.npz"):
        content = path.read_bytes()
        if damage == "poisoned":  # figures of someone's own choice under the digest of the honest ones
            with np.load(io.BytesIO(content[64:])) as arrays:
                facts = json.loads(bytes(arrays["facts"]))
                facts["metrics"]["top1"]["value"] = 1.0
                body = io.BytesIO()
                np.savez(body, **{**arrays, "facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)})
            content = content[:64] + body.getvalue()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:middle], "flipped": flipped, "poisoned": content, "empty": b""}[damage])
    assert workspace.evaluate("knn", params) == before
    assert caplog.text.count("damaged; its figures are computed again") == 4
    caplog.clear()
    workspace.evaluate("knn", params)
    assert not caplog.text, "the damaged files were replaced"


def test_a_file_under_another_name_is_not_taken_for_that_row(place):
    kept.keep(place / "a.npz", WHOLE)
    (place / "a.npz").rename(place / "b.npz")
    assert kept.read(place / "b.npz") is None


def test_what_a_killed_process_left_counts_towards_the_limit(place, monkeypatch):
    place.mkdir()
    (place / "left.partial").write_bytes(bytes(1000))
    os.utime(place / "left.partial", (1e9, 1e9))
    monkeypatch.setattr(kept, "LIMIT", 10_000)
    kept.keep(place / "a.npz", WHOLE)
    assert (place / "left.partial").exists()
    monkeypatch.setattr(kept, "LIMIT", (place / "a.npz").stat().st_size + 999)
    kept.keep(place / "a.npz", WHOLE)
    assert [path.name for path in place.iterdir()] == ["a.npz"]


def test_measurements_are_never_kept(place, hundred, capsys):
    params = workspace.make(place.parent, hundred, **workspace.quick())
    for _ in range(2):
        workspace.evaluate("efficiency", params)
    assert not place.exists() and "kept" not in capsys.readouterr().out


def test_a_network_with_other_weights_is_another_row(place, hundred, monkeypatch, capsys):
    params = workspace.make(place.parent, hundred, **workspace.quick())
    workspace.evaluate("attention", params)
    capsys.readouterr()
    monkeypatch.setattr(workspace.nn.init, "zeros_", workspace.nn.init.ones_)
    workspace.evaluate("attention", params)
    assert "kept" not in capsys.readouterr().out


def test_the_least_recently_used_are_deleted_beyond_the_limit(place, monkeypatch):
    for age, name in enumerate(("new", "used", "old")):
        kept.keep(place / f"{name}.npz", WHOLE)
        os.utime(place / f"{name}.npz", (1e9 - age, 1e9 - age))
    size = (place / "old.npz").stat().st_size
    kept.read(place / "used.npz")
    monkeypatch.setattr(kept, "LIMIT", 3 * size)
    kept.keep(place / "another.npz", replace(WHOLE, notes=["another note"]))
    assert {path.stem for path in place.iterdir()} <= {"new", "used", "another"} and (place / "used.npz").exists()


def test_a_folder_that_cannot_be_written_to_is_no_error(place, hundred):
    place.write_text("a file in the way")
    params = workspace.make(place.parent, hundred, **workspace.quick())
    assert workspace.evaluate("knn", params)["knn"]["method"]["top1"] > 0


def test_all_experiments_of_a_project_share_the_folder(monkeypatch):
    monkeypatch.undo()
    monkeypatch.delenv("DVC_ROOT", raising=False)
    assert kept.place() == Path(".cache/evaluations")
    monkeypatch.setenv("DVC_ROOT", "/project")
    assert kept.place() == Path("/project/.cache/evaluations")
