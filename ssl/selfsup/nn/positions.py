"""Fixed sine-cosine positions of a grid of patches."""

import torch
from torch import Tensor


def sincos_positions(height: int, width: int, dim: int) -> Tensor:
    """Two-dimensional sine-cosine positions: half the dimensions for the row, half for the column. [h*w dim]

    Vaswani et al. 2017, "Attention is all you need", section 3.5, once for each axis. `dim` is a multiple of 4. Angles
    are computed in float64: timm's `build_sincos2d_pos_embed`, in float32, is off by up to 7e-7.
    """
    if dim % 4:
        raise ValueError(f"positions need a width that is a multiple of 4, got {dim}")
    rate = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim // 4))  # [dim/4]

    def axis(length: int) -> Tensor:
        angle = torch.arange(length, dtype=torch.float64)[:, None] * rate  # [length dim/4]
        return torch.cat([angle.sin(), angle.cos()], dim=1)  # [length dim/2]

    rows = axis(height)[:, None].expand(height, width, -1)
    columns = axis(width)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=2).reshape(height * width, dim).float()
