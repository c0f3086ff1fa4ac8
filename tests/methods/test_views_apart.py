"""Barlow Twins and VICReg: each view goes through the networks by itself, with batch norm statistics of its own."""

import pytest
import torch

from tests.contract.runs import apart
from tests.helpers import processes


@pytest.mark.parametrize("chunk", [16, 4])
@pytest.mark.parametrize("method", ["barlow_twins", "vicreg"])
def test_gradients_are_those_of_one_forward_for_each_view(method, chunk, hundred):
    found, expected, joint = processes(1, apart, method, hundred, chunk)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-9, atol=1e-11, msg=name)
    a, b = (torch.cat([g.flatten() for g in gradients.values()]) for gradients in (found, joint))
    assert torch.cosine_similarity(a, b, dim=0) < 0.9, "one batch norm for both views gives another gradient"
