"""The momentum of a moving average over the run."""

import pytest

from selfsup.nn.ema import cosine_momentum
from selfsup.task import Progress


def test_the_momentum_is_the_first_at_the_first_step_and_reaches_the_second_after_the_last():
    """As the comments of params.yaml say; the last step itself is short of it by one step of the cosine."""
    m = [cosine_momentum([0.9, 1.0], Progress(step, 100, 10).fraction) for step in range(101)]
    assert m[0] == pytest.approx(0.9, rel=1e-12) and m[50] == pytest.approx(0.95, rel=1e-12)
    assert m[100] == 1.0 and m[99] == pytest.approx(1 - 0.1 * 2.4672e-4, rel=1e-9)
    assert m == sorted(m)


def test_a_share_of_the_run_is_done_at_its_end_and_at_once_when_it_is_nothing():
    assert [Progress(step, 10, 5).of(0.4) for step in (0, 1, 2, 4, 9)] == pytest.approx([0, 0.25, 0.5, 1, 1])
    assert [Progress(step, 10, 5).of(0.0) for step in (0, 1, 9)] == [1, 1, 1]
    assert Progress(5, 10, 5).of(1.0) == 0.5
