"""The queue holds the last K keys, oldest first, whatever the batch; the momentum encoder's schedule."""

import math
from collections import deque

import pytest
import torch

from selfsup.errors import KnobError
from selfsup.nn.ema import cosine_momentum
from selfsup.nn.queue import Queue


@pytest.mark.parametrize("batch", [1, 3, 7, 10])  # of a queue of 7: a divisor, none, all of it, more than it
def test_holds_the_last_keys_in_order(batch):
    torch.manual_seed(0)
    queue = Queue(7, 4, 100).double()
    slow = deque(queue.keys.clone(), maxlen=7)
    for _ in range(5):
        keys = torch.randn(batch, 4, dtype=torch.float64)
        queue.push(keys)
        slow.extend(key / key.norm() for key in keys)
        torch.testing.assert_close(queue.keys, torch.stack(list(slow)), rtol=1e-12, atol=0)


def test_starts_with_random_directions_and_is_in_the_checkpoint():
    torch.manual_seed(0)
    queue = Queue(200, 8, 200)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(200))
    assert queue.keys.mean(0).norm() < 0.3
    assert torch.equal(queue.state_dict()["keys"], queue.keys)
    assert not queue.keys.requires_grad


def test_keys_are_taken_without_gradient():
    queue = Queue(5, 3, 9)
    queue.push(torch.ones(2, 3, requires_grad=True))
    assert not queue.keys.requires_grad


def test_more_keys_than_images_are_refused_in_one_line():
    Queue(9, 3, 9)
    with pytest.raises(KnobError, match=r"^{block}.queue: 10 keys .* 9 training samples.* set 9 or fewer$"):
        Queue(10, 3, 9)


@pytest.mark.parametrize(("fraction", "m"), [(0.0, 0.99), (0.5, 0.9945), (1.0, 0.999)])
def test_momentum_goes_from_its_start_to_its_end(fraction, m):
    assert cosine_momentum([0.99, 0.999], fraction) == pytest.approx(m, rel=1e-12)
    quarter = 0.999 - 0.009 * (math.cos(math.pi / 4) + 1) / 2
    assert cosine_momentum([0.99, 0.999], 0.25) == pytest.approx(quarter, rel=1e-12)
