"""The last K keys, first in, first out: many negatives at the cost of a batch (He et al. 2020, section 3.2)."""

import torch
from torch import Tensor, nn

from selfsup.errors import UserError
from selfsup.nn.contrastive import unit
from selfsup.nn.distributed import gather


class Queue(nn.Module):
    """`keys` [K D], oldest first: a buffer, so that it is in the checkpoint. Random directions at the start."""

    keys: Tensor

    def __init__(self, length: int, width: int, samples: int, knob: str):
        """`samples`: training images; `knob`: the parameter that is named when `length` is more. Raises `UserError`."""
        super().__init__()
        if length > samples:
            raise UserError(
                f"{knob}: {length} keys are more than the {samples} training images, so that old copies of an image "
                f"would stand beside it; set {samples} or fewer"
            )
        self.register_buffer("keys", unit(torch.randn(length, width)))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Take in `keys` [N D], the newest last, at length 1, and let the oldest go. Any N will do."""
        joined = torch.cat([self.keys, unit(keys).to(self.keys.dtype)])
        self.keys.copy_(joined[len(keys) :])


@torch.no_grad()
def in_order(x: Tensor, place: Tensor) -> Tensor:
    """Rows of all ranks in the order of the global batch, whatever its chunks. [n ...], [n] -> [N ...]

    `place` int64 is `Draw.place` of the samples.
    """
    return gather(x)[gather(place).argsort()]
