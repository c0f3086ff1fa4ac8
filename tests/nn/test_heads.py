"""Heads fit what stands beside them."""

import pytest

from selfsup.errors import UserError
from tests.contract.runs import build


@pytest.mark.parametrize("method", ["byol", "simsiam", "moco_v3"])
def test_a_predictor_of_another_width_is_refused_in_one_line(hundred, method):
    head = {"layers": 2, "hidden": 8, "out": 17}
    with pytest.raises(UserError, match=rf"methods\.{method}\.predictor\.out: 17 is not .*; set 16") as error:
        build(method, hundred, double=False, **{f"methods__{method}__predictor": head})
    assert "\n" not in str(error.value)
    build(method, hundred, double=False, **{f"methods__{method}__predictor": head | {"layers": 0}})  # none at all
