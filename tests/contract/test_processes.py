"""Two processes that hold different halves of every batch train the same weights as one process, for every task."""

import pytest
import torch

from tests.contract.runs import TOLERANCE, largest_difference, steps_in_float64, swept, two_equal_one
from tests.helpers import METHODS, processes


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(method, hundred, tmp_path):
    start, end = two_equal_one(method, hundred, tmp_path)
    assert largest_difference(start, end)[1] > 1e-3, "weights that stood still"


def test_a_gather_without_gradient_is_caught(hundred, tmp_path):
    one = processes(1, steps_in_float64, "simclr", hundred, tmp_path / "one")
    broken = processes(2, steps_in_float64, "simclr", hundred, tmp_path / "broken", "gather")
    assert largest_difference(one.end, broken.end)[1] > 1e3 * TOLERANCE


@pytest.mark.parametrize("method", ["simclr", "byol", "moco", "swav", "barlow_twins", "rotation", "supervised"])
def test_batch_norm_without_the_other_ranks_gradient_is_caught(method, hundred, tmp_path):
    one = processes(1, steps_in_float64, method, hundred, tmp_path / "one")
    broken = processes(2, steps_in_float64, method, hundred, tmp_path / "broken", "sum")
    assert largest_difference(one.end, broken.end)[1] > 1e3 * TOLERANCE


@pytest.mark.parametrize("world", [1, 2])
def test_a_sweep_has_all_samples_in_id_order_on_every_number_of_processes(world, hundred):
    found, single = processes(world, swept, hundred)
    torch.testing.assert_close(found, single, rtol=1e-4, atol=1e-5)
