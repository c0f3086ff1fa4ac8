"""The last K keys, first in, first out: many negatives at the cost of a batch (He et al. 2020, section 3.2)."""

import torch
from torch import Tensor, nn

from selfsup.errors import KnobError
from selfsup.nn.contrastive import unit


class Queue(nn.Module):
    """`keys` [K D], oldest first: a buffer, so that it is in the checkpoint. Random directions at the start."""

    keys: Tensor

    def __init__(self, length: int, width: int, samples: int):
        """Raises `KnobError` for `queue` where `length` is more than the training `samples`."""
        super().__init__()
        if length > samples:
            raise KnobError(
                "queue",
                f"{length} keys are more than the {samples} training samples, so that old copies of a sample "
                f"would stand beside it; set {samples} or fewer",
            )
        self.register_buffer("keys", unit(torch.randn(length, width)))

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Take in `keys` [N D], the newest last, at length 1, and let the oldest go. Any N will do."""
        joined = torch.cat([self.keys, unit(keys).to(self.keys.dtype)])
        self.keys.copy_(joined[len(keys) :])
