"""A reading of the encoder during training: kNN accuracy on the validation split. It decides nothing."""

from collections.abc import Callable, Mapping

from torch import nn

from selfsup.data.loader import Split
from selfsup.evaluation.neighbours import knn_accuracy
from selfsup.features.encode import embed

BANK = 20_000  # training samples that are compared with, at most, and validation samples, at most


def knn_probe(train_split: Split, validation: Split) -> Callable[[nn.Module], Mapping[str, float]] | None:
    """Return the reading, a function of the encoder; None where either split has no label."""
    if not (train_split.classes and (validation.labels >= 0).any()):
        return None

    def probe(encoder: nn.Module) -> dict[str, float]:
        device = next(encoder.parameters()).device
        bank, queries = (embed(encoder, split, device, BANK) for split in (train_split, validation))
        return {"knn_validation": knn_accuracy(*bank, *queries)}

    return probe
