"""What every protocol that needs labels must do, whichever there are: known answers, and no choice by test labels."""

from pathlib import Path

import numpy as np
import pytest

from selfsup.config import parse
from selfsup.data.loader import open_split
from selfsup.evaluation import protocols
from selfsup.evaluation.folder import read as read_folder
from selfsup.features.store import Splits
from tests.evaluation import workspace
from tests.evaluation.workspace import evaluate
from tests.helpers import values

LABELLED = [name for name in protocols.names() if "labels" in protocols.find(name).needs]
FROZEN = [name for name in LABELLED if protocols.find(name).needs == {"features", "labels"}]
CLASSES = 4
SIZES = (200, 100, 200)


def headline(name, features, labels):
    """The first metric under the parameters of tests, and chance: of shares 1 / K, of others, such as NMI, 0."""
    protocol = protocols.find(name)
    block = values(**workspace.quick())["evaluation"][name]
    metrics = protocol.run(features=features, labels=labels, params=parse(protocol.params, block), seed=0).metrics
    first = next(iter(metrics.values()))
    return first.value, 1 / CLASSES if first.unit == "percent" else 0.0


def balanced(seed=0):
    rng = np.random.default_rng(seed)
    return Splits(*(rng.permutation(np.arange(n) % CLASSES) for n in SIZES))


@pytest.mark.parametrize("name", FROZEN)
def test_perfect_features_score_all(name):
    """All images of a class are one point. The points lie on a circle, so two components tell them apart."""
    labels, angle = balanced(), 0.3 + np.arange(CLASSES) * 2 * np.pi / CLASSES
    points = np.pad(np.stack([np.cos(angle), np.sin(angle)], axis=1), ((0, 0), (0, 10))).astype(np.float32)
    features = Splits(*(points[part] for part in labels))
    assert headline(name, features, labels)[0] == 1


@pytest.mark.parametrize("name", FROZEN)
def test_constant_features_score_chance(name):
    labels = balanced()
    features = Splits(*(np.full((n, 12), 0.3, np.float32) for n in SIZES))
    value, chance = headline(name, features, labels)
    assert value == pytest.approx(chance)


@pytest.mark.parametrize("name", FROZEN)
def test_permuted_labels_score_chance(name):
    rng = np.random.default_rng(1)
    features = Splits(
        *(
            rng.normal(size=(n, 12)).astype(np.float32) + 3 * np.eye(CLASSES, 12)[part]
            for n, part in zip(SIZES, balanced(), strict=True)
        )
    )
    value, chance = headline(name, features, balanced(2))
    assert abs(value - chance) < 0.1


@pytest.mark.parametrize("name", LABELLED)
def test_choices_and_predictions_do_not_depend_on_test_labels(folder, hundred, monkeypatch, name):
    """The labels of the test images are replaced. Columns of tables that begin with `test` may then change."""
    params = workspace.make(folder, hundred, **workspace.quick())
    clean, figures = made(name, params)
    real = open_split

    def poisoned(path, split, data):
        opened = real(path, split, data)
        if split == "test":
            opened.labels[:] = np.random.default_rng(0).permutation(opened.labels)
        return opened

    monkeypatch.setattr("selfsup.data.loader.open_split", poisoned)
    poisonous, other_figures = made(name, params)
    assert figures != other_figures, "the other labels did not arrive"
    assert clean == poisonous


def made(name, params):
    """What a protocol chose and predicted for each row, and its figures."""
    evaluate(name, params)
    own, figures = {}, {}
    found = read_folder(Path(f"evaluations/{name}"))
    for row, result in found.results.items():
        own[row, "choices"] = {key: (one.value, one.validation) for key, one in result.choices.items()}
        own[row, "predicted"] = None if result.predicted is None else result.predicted.tolist()
        figures[row] = {key: metric.value for key, metric in result.metrics.items()}
    for table in found.own_tables:
        header, *lines = (line.split(",") for line in Path(f"evaluations/{name}/{table}.csv").read_text().splitlines())
        kept = [i for i, word in enumerate(header) if not word.startswith("test")]
        own[table] = [[line[i] for i in kept] for line in lines]
    return own, figures


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path
