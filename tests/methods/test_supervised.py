"""The supervised baseline: cross-entropy over labelled images only."""

import math

import numpy as np
import pytest
import torch

from selfsup.errors import UserError
from selfsup.methods.supervised import labelled_cross_entropy
from tests.contract.runs import build


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_equals_a_plain_loop_over_labelled_rows(smoothing):
    logits = np.random.default_rng(0).normal(size=(6, 4))
    labels = [2, -1, 0, 3, -1, 1]
    losses = []
    for row, y in zip(logits, labels, strict=True):
        if y >= 0:
            logp = row - math.log(sum(math.exp(x) for x in row))
            losses.append(-sum((1 - smoothing) * (k == y) * logp[k] + smoothing / 4 * logp[k] for k in range(4)))
    got = labelled_cross_entropy(torch.tensor(logits), torch.tensor(labels), smoothing)
    assert got.item() == pytest.approx(np.mean(losses), rel=1e-12)


def test_a_batch_without_labels_has_loss_0():
    logits = torch.randn(3, 4, requires_grad=True)
    loss = labelled_cross_entropy(logits, torch.full((3,), -1), 0.0)
    loss.backward()
    assert loss.item() == 0 and logits.grad.abs().sum() == 0


def test_no_labels_at_all_are_refused_in_one_line(unlabelled_shards):
    with pytest.raises(UserError, match="no labels"):
        build("supervised", unlabelled_shards, double=False, data__labels="none")
