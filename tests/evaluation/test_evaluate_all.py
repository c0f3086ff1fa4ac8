import csv
import json
from pathlib import Path

import numpy as np
import pytest

from selfsup.data.loader import open_split
from selfsup.evaluation.run import PROTOCOLS, evaluate, insufficient
from selfsup.features.store import Splits
from tests.data.make import class_folders, shards
from tests.evaluation import workspace

FEW = {
    "evaluation__linear__c": [0.01, 1.0],
    "evaluation__few_label": {"per_class": [1, 5], "fraction": [0.1], "draws": 3, "c": [0.1]},
}


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


def test_every_protocol_has_one_module_with_a_run():
    import importlib

    assert PROTOCOLS == ["few_label", "knn", "linear"]
    for protocol in PROTOCOLS:
        assert callable(importlib.import_module(f"selfsup.evaluation.protocols.{protocol}").run)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_metrics_hold_every_row_under_the_same_keys_and_rank_known_quality(folder, hundred, protocol):
    params = workspace.make(folder, hundred, **FEW)
    returned = evaluate(protocol, params)
    metrics, details = read(protocol)
    assert returned[protocol] == metrics
    assert list(metrics) == ["features", "method", "supervised", "random", "pixels", "majority"]
    assert details["titles"]["method"] == "simclr"
    assert details["missing"] == {}
    key = "per_class_5" if protocol == "few_label" else "top1"
    assert metrics["supervised"][key] > metrics["method"][key] > metrics["random"][key]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_outcomes_have_the_metrics_as_means(folder, hundred, protocol):
    evaluate(protocol, workspace.make(folder, hundred, **FEW))
    metrics, _ = read(protocol)
    with np.load(f"evaluations/{protocol}/outcomes.npz") as arrays:
        units = {name for name in arrays if "/" in name and not name.endswith("/predicted")}
        assert {name.split("/")[0] for name in units} == {"method", "supervised", "random", "pixels", "majority"}
        for name in units:
            row, metric = name.split("/")
            assert arrays[name].mean() == pytest.approx(metrics[row][metric])


def test_tables_agree_with_predictions(folder, hundred):
    params = workspace.make(folder, hundred, **FEW)
    evaluate("linear", params)
    metrics, _ = read("linear")
    test = open_split(hundred, "test", params.data)
    pairs = rows_of("evaluations/linear/confusion.csv")
    assert [row["actual"] for row in pairs] == [test.classes[label] for label in test.labels]
    assert np.mean([row["actual"] == row["predicted"] for row in pairs]) == pytest.approx(metrics["method"]["top1"])
    shares = [row for row in rows_of("evaluations/linear/per_class.csv") if row["row"] == "pixels"]
    assert sum(int(row["images"]) for row in shares) == test.samples
    assert np.mean([float(row["accuracy"]) for row in shares]) == pytest.approx(metrics["pixels"]["top1_balanced"])


def test_draws_of_few_labels_are_listed(folder, hundred):
    evaluate("few_label", workspace.make(folder, hundred, **FEW))
    draws = rows_of("evaluations/few_label/draws.csv")
    assert len(draws) == 4 * 3 * 3 + 3  # the majority row needs no draw
    assert {(row["setting"], row["labels"]) for row in draws} >= {("per_class_1", "10"), ("per_class_5", "50")}


def test_the_same_run_writes_the_same_bytes(folder, hundred):
    params = workspace.make(folder, hundred, **FEW)
    once = []
    for _ in range(2):
        for protocol in PROTOCOLS:
            evaluate(protocol, params)
        files = sorted(path for top in ("metrics", "evaluations") for path in Path(top).rglob("*") if path.is_file())
        once.append({path: path.read_bytes() for path in files})
    assert len(once[0]) == 3 + 4 + 4 + 3
    assert once[0] == once[1]


def test_missing_baselines_are_left_out_and_said(folder, hundred, capsys):
    params = workspace.make(folder, hundred)
    (folder / "features/baselines/pixels/meta.json").unlink()
    (folder / "features/baselines/conv/supervised/meta.json").write_text('{"skipped": "no time"}')
    evaluate("knn", params)
    metrics, details = read("knn")
    assert list(metrics) == ["features", "method", "random", "majority"]
    assert details["missing"]["supervised"] == "no time"
    out = capsys.readouterr().out
    assert "supervised: left out, no time" in out
    assert "pixels: left out" in out


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_without_labels_it_says_so_in_one_line_and_goes_on(folder, unlabelled_shards, capsys, protocol):
    evaluate(protocol, workspace.make(folder, unlabelled_shards))
    metrics, details = read(protocol)
    assert metrics["skipped"].startswith("needs labels")
    assert details == metrics
    assert capsys.readouterr().out.splitlines() == [f"{protocol}: skipped, {metrics['skipped']}"]


def test_what_does_not_suffice():
    some, none = np.array([0, 1, -1]), np.array([-1, -1])
    assert insufficient(Splits(some, some, some)) is None
    assert insufficient(Splits(none, none, none)) == "needs labels: the data set has none"
    assert insufficient(Splits(some, none, some)) == "needs labels: the validation split has none"
    assert "two classes" in insufficient(Splits(np.array([3, 3, -1]), some, some))


def test_a_single_test_image_has_no_standard_error_but_valid_json(folder, hundred, monkeypatch):
    params = workspace.make(folder, hundred)
    real = open_split

    def one_test_label(path, name, data):
        split = real(path, name, data)
        if name == "test":
            split.labels[1:] = -1
        return split

    monkeypatch.setattr("selfsup.data.loader.open_split", one_test_label)
    evaluate("knn", params)
    assert read("knn")[0]["method"]["top1_se"] is None


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_images_of_rare_classes_take_no_part_and_that_is_said(folder, tmp_path, protocol, capsys):
    shapes = {"big": 20, "many": 20, "pair": 2, "wide": 20}
    shards(tmp_path / "made", source="image_folder", path=str(class_folders(tmp_path / "images", shapes)))
    params = workspace.make(folder, tmp_path / "made", **FEW, data__source="image_folder", data__path="images")
    evaluate(protocol, params)
    _, details = read(protocol)
    line = "2 images without a label are left out, among them all of 1 class with too few images (train 2)"
    assert line in details["method"]["notes"] and f"{protocol}: {line}\n" in capsys.readouterr().out
    assert details["images"] == {"train": 42, "validation": 6, "test": 12}
    if protocol != "few_label":
        assert {row["class"] for row in rows_of(f"evaluations/{protocol}/per_class.csv")} == {"big", "many", "wide"}


def test_a_set_that_is_all_labelled_has_no_such_line(folder, hundred):
    evaluate("knn", workspace.make(folder, hundred, evaluation__knn__k=[5]))
    assert read("knn")[1]["method"]["notes"] == []
