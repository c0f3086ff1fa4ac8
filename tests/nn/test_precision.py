"""Equations compute at full precision whatever the autocast and the inputs."""

import pytest
import torch

from selfsup.nn.precision import full_precision


@full_precision
def gram(x, others=(), *, scale=None):
    """x x^T and the types of all that came in."""
    kinds = [x.dtype, *(y.dtype for y in others)] + ([scale["by"].dtype] if scale else [])
    return x @ x.T, kinds


@pytest.mark.parametrize(
    ("given", "found"),
    [(torch.bfloat16, torch.float32), (torch.float16, torch.float32), (torch.float32, torch.float32),
     (torch.float64, torch.float64)],
)  # fmt: skip
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_is_raised_and_double_stays(given, found, autocast):
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).to(given)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        product, kinds = gram(x, [x, x], scale={"by": x})
    assert product.dtype == found and kinds == [found] * 4
    wide = x.to(found)
    assert torch.equal(product, wide @ wide.T), "computed in that type, too"


def test_whole_numbers_and_other_values_stay_as_they_are():
    ids, flags = torch.tensor([[1, 2]]), torch.tensor([True])
    assert gram(ids, (flags,))[1] == [torch.int64, torch.bool]
    assert full_precision(lambda name, factor=2: name * factor)("a", factor=3) == "aaa"


def test_gradients_come_back_in_the_type_of_the_input():
    x = torch.randn(3, 5).bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        gram(x)[0].sum().backward()
    assert x.grad.dtype == torch.bfloat16
    wide = x.detach().float().requires_grad_()
    gram(wide)[0].sum().backward()
    assert torch.equal(x.grad, wide.grad.bfloat16())


def test_autocast_is_as_before_afterwards():
    x = torch.randn(3, 5)
    with torch.autocast("cpu", torch.bfloat16):
        gram(x)
        assert (x @ x.T).dtype == torch.bfloat16
