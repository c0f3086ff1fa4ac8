import numpy as np
import pytest

from selfsup.evaluation.protocols import label_free
from selfsup.features.measures import label_free as measured
from selfsup.features.store import Splits

PARAMS = label_free.Params(images=10_000, pairs=2000)


def of(test):
    return Splits(np.zeros((3, test.shape[1]), np.float32), np.zeros((2, test.shape[1]), np.float32), test)


def test_figures_are_those_of_the_report_page():
    test = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float32) * np.arange(1, 9)
    found = label_free.run(of(test.astype(np.float32)), PARAMS, seed=3)
    shown = measured(test.astype(np.float32), seed=3)
    assert {key: found.metrics[key].value for key in ("rankme", "uniformity", "spread")} == {
        key: value for key, value in shown.items() if key != "width"
    }


def test_only_the_test_split_is_read():
    test = np.random.default_rng(1).normal(size=(50, 4)).astype(np.float32)
    features = of(test)
    other = features._replace(train=features.train + np.nan, validation=features.validation + 9)
    assert label_free.run(features, PARAMS, 0).metrics == label_free.run(other, PARAMS, 0).metrics


def test_the_decay_is_the_exponent_of_a_power_law():
    rng = np.random.default_rng(2)
    basis = np.linalg.qr(rng.normal(size=(400, 21)) - 0)[0]
    basis = np.linalg.qr(basis - basis.mean(axis=0))[0][:, :20]  # zero mean, orthogonal
    for alpha in (0.5, 1.0, 2.0):
        features = basis * np.arange(1, 21) ** (-alpha / 2) + 5
        found, components = label_free.decay(features)
        assert (found, components) == (pytest.approx(alpha, abs=1e-5), 20)


def test_features_without_a_second_direction_have_no_decay():
    line = np.outer(np.arange(30), [1.0, 2.0, 3.0]).astype(np.float32)
    found = label_free.run(of(line), PARAMS, 0)
    assert "decay_gap" not in found.metrics and "alpha-ReQ is left out" in found.notes[1]
    assert found.metrics["rankme"].value == pytest.approx(1, abs=1e-3)
    constant = label_free.run(of(np.ones((5, 3), np.float32)), PARAMS, 0)
    assert constant.metrics["uniformity"].value == constant.metrics["spread"].value == 0
    assert label_free.run(of(np.ones((1, 3), np.float32)), PARAMS, 0).metrics == {}
