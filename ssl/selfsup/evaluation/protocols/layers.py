"""From which layer? A linear probe and nearest neighbours on what every stage of the frozen network gives.

Stages are the resolutions of a convolutional network, or the blocks of a transformer. Their features are pooled as the
network pools its output: by the mean over places, or by the class token. The output itself is the last layer. The best
layer is chosen on the validation split. Alain & Bengio 2017, "Understanding intermediate layers using linear classifier
probes", arXiv:1610.01644.
"""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, PositiveFloat, PositiveInt
from torch import Tensor, nn

import selfsup.evaluation.protocols.knn as knn
import selfsup.evaluation.protocols.linear as linear
from selfsup.config import Strict
from selfsup.evaluation import inside
from selfsup.evaluation.networks import Images, ImageSplits
from selfsup.evaluation.result import Choice, Metric, Plot, Result, Table, Unfit
from selfsup.features.store import Splits

TITLE = "layers"
NEEDS = {"encoder", "images", "labels"}
OUTPUT = "output"
METHODS = {"linear": "linear probe", "knn": "kNN"}
READ = ("validation", "test")
PLACE = Path(".cache")  # the system's folder for temporary files may lie in memory


class Params(Strict):
    c: Annotated[list[PositiveFloat], Field(min_length=1)]  # of the linear probe, chosen on validation for every layer
    k: PositiveInt  # neighbours
    temperature: PositiveFloat  # tau of their votes


def run(encoder: nn.Module, images: ImageSplits, labels: Splits, params: Params, seed: int) -> Result:
    """The metrics are test accuracies of the `best` layer and of the `output`, by the linear probe and by neighbours.

    Each split is encoded once for all layers. Their features lie in a temporary folder, so memory does not grow with
    the number of images. The table `depth` has every layer.
    """
    judged: dict[str, dict[str, Result]] = {name: {} for name in METHODS}
    lines = []
    PLACE.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="layers-", dir=PLACE) as folder:
        for number, (layer, features) in enumerate(encoded(encoder, images, Path(folder)).items(), 1):
            own = {
                "linear": linear.run(features, labels, linear.Params(c=params.c), seed),
                "knn": knn.run(features, labels, knn.Params(k=[params.k], temperature=params.temperature), seed),
            }
            for name, one in own.items():
                judged[name][layer] = one
            figures = [value for one in own.values() for value in (_validation(one), one.metrics["top1"].value)]
            lines.append([number, layer, features.train.shape[1], *figures])
    layers = list(judged["linear"])
    metrics, choices, plots = {}, {}, {}
    for name, title in METHODS.items():
        readings = {i: _validation(one) for i, one in enumerate(judged[name].values(), 1)}
        tests = {i: one.metrics["top1"].value for i, one in enumerate(judged[name].values(), 1)}
        best = max(readings, key=lambda i: (readings[i], i))  # equal readings: the deeper layer
        for key, layer in (("best", layers[best - 1]), (OUTPUT, OUTPUT)):
            metrics[f"{key}_{name}"] = _titled(judged[name][layer], f"{key}, {title}")
        choices[f"layer_{name}"] = Choice(best, f"layer, {title}", readings)
        points = [(float(i), value) for i, value in tests.items()]
        plots[name] = Plot(f"From which layer: {title}", "layer", "test accuracy", points, ticks=layers)
    notes = [] if len(layers) > 1 else ["has no stages that can be read: its output is its only layer"]
    header = ["layer", "name", "width", *(f"{split} {title}" for title in METHODS.values() for split in READ)]
    return Result(
        metrics, choices, notes, {"depth": Table(header, lines)}, features="pooled at every stage", plots=plots
    )


@torch.no_grad()
def encoded(encoder: nn.Module, images: ImageSplits, folder: Path) -> dict[str, Splits]:
    """Features of every layer by its name, in order of depth and `output` last, as arrays [N C] in `folder`."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for split, seen in zip(ImageSplits._fields, images, strict=True):
        for layer, array in _of_split(encoder, seen, folder / split).items():
            found.setdefault(layer, {})[split] = array
    return {layer: Splits(**arrays) for layer, arrays in found.items()}


def _of_split(encoder: nn.Module, images: Images, folder: Path) -> dict[str, np.ndarray]:
    """Float32 [N C] of every layer, mapped from a file in `folder`. Raises `OSError`: disk full."""
    folder.mkdir()
    files: dict[str, Any] = {}
    widths: dict[str, int] = {}
    with ExitStack() as opened:  # files are written, not mapped: a full disk kills a process that writes to a map
        for _, views in images.batches():
            for layer, x in layers_of(encoder, views).items():
                if layer not in files:
                    files[layer] = opened.enter_context((folder / str(len(files))).open("wb"))
                    widths[layer] = x.shape[1]
                files[layer].write(np.ascontiguousarray(x.float().cpu().numpy()).data)
    return {
        layer: np.memmap(file.name, np.float32, "r", shape=(len(images), widths[layer]))
        for layer, file in files.items()
    }


def layers_of(encoder: nn.Module, views: Tensor) -> dict[str, Tensor]:
    """Pooled features [B C] of `views` [B 3 S S] by layer, the output last."""
    output: list[Tensor] = []
    handle = encoder.register_forward_hook(lambda _module, _inputs, given: output.append(given["pooled"]))
    try:
        net = inside.network(encoder)
        found = inside.read(encoder, views, lambda x: inside.pooled(net, x))
    except Unfit:
        found = {}
        encoder(views)
    finally:
        handle.remove()
    return found | {OUTPUT: output[0]}


def _validation(result: Result) -> float:
    """The accuracy on the validation split by which the probe's own parameter was chosen."""
    (choice,) = result.choices.values()
    return max(choice.validation.values())


def _titled(result: Result, title: str) -> Metric:
    """The accuracy under another title."""
    return replace(result.metrics["top1"], title=title, curve=None)
