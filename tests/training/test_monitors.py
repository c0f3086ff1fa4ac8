"""Monitors on points whose answer is known, and the alarm."""

import math

import pytest
import torch

from selfsup.training import monitors


def test_closed_forms():
    eye = torch.eye(8)
    row = monitors.read([9 * eye])
    assert row["rankme"].item() == pytest.approx(8, rel=1e-4)
    assert row["spread"].item() == pytest.approx(1, rel=1e-6)
    assert row["uniformity"].item() == pytest.approx(-2 * 2, rel=1e-5)  # |e_i - e_j|^2 = 2, t = 2
    assert monitors.read([torch.ones(6, 4)])["rankme"].item() == pytest.approx(1, rel=1e-4)
    assert monitors.read([eye, eye * 3])["alignment"].item() == pytest.approx(0, abs=1e-6)
    assert monitors.read([eye, -5 * eye])["alignment"].item() == pytest.approx(4, rel=1e-6)


def test_similarities():
    a, b = torch.eye(3), torch.tensor([[1.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1]])
    row = monitors.read([a, b])
    assert row["positive_similarity"].item() == pytest.approx((1 + 0.8 + 1) / 3)
    assert row["hardest_negative_similarity"].item() == pytest.approx((0.6 + 0 + 0) / 3)


def test_the_alarm_waits_for_three_bad_readings():
    bad, good = {"spread": 0.01, "rankme": 9.0, "alignment": 0.0}, {"spread": 0.9, "rankme": 30.0, "alignment": 0.5}
    assert monitors.alarm([good, bad, bad]) is None
    assert "collapsed" in monitors.alarm([good, bad, bad, bad])
    assert "dimensional" in monitors.alarm([{"spread": 0.9, "rankme": 1.5}] * 3)
    assert monitors.alarm([bad, bad, bad, good]) is None
    assert monitors.alarm([]) is None
    assert monitors.alarm([{"spread": 0.01, "rankme": 9.0}] * 3) is None  # no pairs: nothing that should agree


def test_too_few_rows_give_no_reading():
    assert monitors.read([torch.ones(1, 4)]) == {} == monitors.read([])
    assert not math.isnan(monitors.read([torch.eye(2)])["spread"])


def test_a_loss_at_the_logarithm_of_the_number_of_prototypes_raises_the_alarm():
    plain = {"spread": 0.9, "rankme": 30.0, "alignment": 0.5}
    assert "number of prototypes" in monitors.alarm([plain | {"below_uniform": 0.001}] * 3)
    assert monitors.alarm([plain | {"below_uniform": x} for x in (0.001, 0.3, 0.001)]) is None
    assert monitors.alarm([plain] * 3) is None
