import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from selfsup.data.loader import open_split
from selfsup.evaluation import kept, protocols
from selfsup.evaluation.folder import read as read_folder
from selfsup.evaluation.result import flat
from selfsup.evaluation.run import insufficient, judge, of_names, read_inputs
from selfsup.features.store import Splits
from tests.data.make import class_folders, shards
from tests.evaluation import workspace
from tests.evaluation.workspace import evaluate

PROTOCOLS = protocols.names()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def read(protocol):
    metrics = json.loads(Path(f"metrics/evaluate/{protocol}.json").read_text())[protocol]
    details = json.loads(Path(f"evaluations/{protocol}/details.json").read_text())
    return metrics, details


def rows_of(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_hold_every_row_under_the_same_keys_and_rank_known_quality(folder, hundred, protocol):
    params = workspace.make(folder, hundred, **workspace.quick())
    returned = evaluate(protocol, params)
    metrics, details = read(protocol)
    assert returned[protocol] == metrics
    rows = [row for row in metrics if row not in ("features", "majority")]
    assert rows == ["method", "supervised", "random", "pixels"]
    assert details["titles"]["method"] == "simclr"
    assert details["missing"] == {}
    if "labels" not in protocols.find(protocol).needs:
        return  # whether such a measure orders rows as accuracy does is open
    key, metric = next(iter(read_folder(Path(f"evaluations/{protocol}")).results["method"].metrics.items()))
    if "labels" not in protocols.find(protocol).needs:
        return  # whether such a measure orders rows as accuracy does is open
    ranked = [metrics[row][key] for row in ("supervised", "method", "random")]
    assert len(set(ranked)) == 3 and ranked == sorted(ranked, reverse=metric.higher_is_better)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_outcomes_have_the_metrics_as_means(folder, hundred, protocol):
    evaluate(protocol, workspace.make(folder, hundred, **workspace.quick()))
    metrics, _ = read(protocol)
    with np.load(f"evaluations/{protocol}/outcomes.npz") as arrays:
        for name in arrays:
            row, _, metric = name.partition("/")
            if metric and metric != "predicted":
                assert arrays[name].mean() == pytest.approx(metrics[row][metric])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_what_was_written_is_read_back_as_it_was(folder, hundred, protocol):
    params = workspace.make(folder, hundred, **workspace.quick())
    written = evaluate(protocol, params)[protocol]
    found = read_folder(Path(f"evaluations/{protocol}"))
    assert found.results and {row: flat(result) for row, result in found.results.items()} == {
        row: values for row, values in written.items() if row != "features"
    }
    test = open_split(hundred, "test", params.data)
    kept = [name for name, label in zip(test.names, test.labels, strict=True) if label >= 0 or found.label is None]
    assert found.image is not None and found.image.tolist() == of_names(kept).tolist() and len(set(found.image)) > 9


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_tables_agree_with_outcomes_and_predictions(folder, hundred, protocol):
    params = workspace.make(folder, hundred, **workspace.quick())
    evaluate(protocol, params)
    test = open_split(hundred, "test", params.data)
    found = read_folder(Path(f"evaluations/{protocol}"))
    predicted = found.results["method"].predicted
    if predicted is not None:
        pairs = rows_of(f"evaluations/{protocol}/confusion.csv")
        assert [row["actual"] for row in pairs] == [test.classes[label] for label in test.labels]
        assert [row["predicted"] for row in pairs] == [test.classes[label] for label in predicted]
        shares = [row for row in rows_of(f"evaluations/{protocol}/per_class.csv") if row["row"] == "pixels"]
        assert sum(int(row["images"]) for row in shares) == test.samples
        hits = found.results["pixels"].predicted == test.labels
        assert sum(float(row["accuracy"]) * int(row["images"]) for row in shares) == pytest.approx(hits.sum())
    drawn = {key: one for key, one in found.results["method"].metrics.items() if np.ndim(one.outcomes) == 2}
    for key, metric in drawn.items():
        draws = rows_of(f"evaluations/{protocol}/draws.csv")
        own = [float(row["accuracy"]) for row in draws if (row["row"], row["setting"]) == ("method", key)]
        assert own == pytest.approx(metric.outcomes.mean(axis=1))


def test_the_same_run_writes_the_same_bytes(folder, hundred, monkeypatch):
    params = workspace.make(folder, hundred, **workspace.quick())
    once = []
    repeatable = [protocol for protocol in PROTOCOLS if protocols.find(protocol).repeatable]
    for place in ("kept", "kept again"):
        monkeypatch.setattr(kept, "place", lambda own=Path(place): own)
        for protocol in repeatable:
            evaluate(protocol, params)
        files = sorted(path for top in ("metrics", "evaluations") for path in Path(top).rglob("*") if path.is_file())
        once.append({path: path.read_bytes() for path in files})
    assert len(once[0]) >= 3 * len(repeatable)
    assert once[0] == once[1]


def test_missing_baselines_are_left_out_and_said(folder, hundred, capsys):
    params = workspace.make(folder, hundred)
    (folder / "features/baselines/pixels/meta.json").unlink()
    (folder / "features/baselines/supervised/meta.json").write_text('{"skipped": "no time"}')
    evaluate("knn", params)
    metrics, details = read("knn")
    assert [row for row in metrics if row != "majority"] == ["features", "method", "random"]
    assert details["missing"]["supervised"] == "no time"
    out = capsys.readouterr().out
    assert "supervised: left out, no time" in out
    assert "pixels: left out" in out


def test_rows_to_which_nothing_was_added_have_no_second_line(folder, hundred, capsys):
    params = workspace.make(folder, hundred, **workspace.quick())
    protocol, block = protocols.chosen("knn", params.evaluation)
    judge(replace(protocol, relate=lambda results: results), block, read_inputs(params), 0, constant=False)
    assert len(lines := capsys.readouterr().out.splitlines()) == 4 and all("top1" in line for line in lines)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_labels_it_is_skipped_in_one_line_where_it_needs_them(folder, unlabelled_shards, capsys, protocol):
    evaluate(protocol, workspace.make(folder, unlabelled_shards, **workspace.quick()))
    metrics, details = read(protocol)
    if "labels" not in protocols.find(protocol).needs:
        assert "skipped" not in metrics
        return
    assert metrics["skipped"] == "needs labels: the data set has none"
    assert details == metrics
    assert capsys.readouterr().out.splitlines() == [f"{protocol}: skipped, {metrics['skipped']}"]


def test_what_does_not_suffice():
    some, none = np.array([0, 1, -1]), np.array([-1, -1])
    assert insufficient(Splits(some, some, some)) is None
    assert insufficient(Splits(none, none, none)) == "needs labels: the data set has none"
    assert insufficient(Splits(some, none, some)) == "needs labels: the validation split has none"
    assert "two classes" in insufficient(Splits(np.array([3, 3, -1]), some, some))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_single_test_image_has_no_standard_error_but_valid_json(folder, hundred, monkeypatch, protocol):
    params = workspace.make(folder, hundred, **workspace.quick())
    real = open_split

    def one_test_label(path, name, data):
        split = real(path, name, data)
        if name == "test":
            split.labels[1:] = -1
        return split

    monkeypatch.setattr("selfsup.data.loader.open_split", one_test_label)
    evaluate(protocol, params)
    metrics, _ = read(protocol)
    errors = {key: value for key, value in metrics["method"].items() if key.endswith("_se")}
    if "labels" in protocols.find(protocol).needs:  # others read the images without a label, too
        assert errors == dict.fromkeys(errors)
    assert read_folder(Path(f"evaluations/{protocol}")).results


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_of_rare_classes_take_no_part_and_that_is_said(folder, tmp_path, protocol, capsys):
    shapes = {"big": 20, "many": 20, "pair": 2, "wide": 20}
    shards(tmp_path / "made", source="image_folder", path=str(class_folders(tmp_path / "images", shapes)))
    params = workspace.make(
        folder, tmp_path / "made", **workspace.quick(), data__image__source="image_folder", data__image__path="images"
    )
    evaluate(protocol, params)
    _, details = read(protocol)
    if "labels" not in protocols.find(protocol).needs:
        return
    line = "2 images without a label are left out, among them all of 1 class with too few images (train 2)"
    assert line in details["notes"] and f"{protocol}: {line}\n" in capsys.readouterr().out
    assert details["images"] == {"train": 42, "validation": 6, "test": 12}
    if Path(f"evaluations/{protocol}/per_class.csv").exists():
        assert {row["class"] for row in rows_of(f"evaluations/{protocol}/per_class.csv")} == {"big", "many", "wide"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_set_that_is_all_labelled_has_no_such_line(folder, hundred, protocol):
    evaluate(protocol, workspace.make(folder, hundred, **workspace.quick()))
    assert not [line for line in read(protocol)[1]["notes"] if "without a label" in line]
