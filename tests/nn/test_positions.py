"""Sine-cosine positions."""

import pytest
import torch
from timm.layers import build_sincos2d_pos_embed

from selfsup.nn.positions import sincos_positions


def test_positions_tell_rows_from_columns():
    p = sincos_positions(3, 5, 16).view(3, 5, 16)
    assert torch.equal(p[0, :, :8], p[0, :1, :8].expand(5, 8))  # the first half is the row's
    assert torch.equal(p[:, 0, 8:], p[:1, 0, 8:].expand(3, 8))
    assert len(torch.unique(p.view(15, 16), dim=0)) == 15
    assert p[2, 0, 0].item() == pytest.approx(torch.tensor(2.0).sin().item())


@pytest.mark.parametrize(("height", "width", "dim"), [(4, 4, 96), (3, 5, 64), (14, 14, 768)])
def test_positions_are_timms_but_for_its_rounding(height, width, dim):
    theirs = build_sincos2d_pos_embed([height, width], dim, interleave_sin_cos=True)
    torch.testing.assert_close(sincos_positions(height, width, dim), theirs, rtol=0, atol=1e-6)
