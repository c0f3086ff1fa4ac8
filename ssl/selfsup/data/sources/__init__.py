"""One file per source: a function that lists the samples and gives a function that reads one."""

from pathlib import Path

import numpy as np

from selfsup.blocks import ImageData
from selfsup.data.source import Source, resolve


def open_source(data: ImageData, scratch: Path) -> Source:
    """List the samples of a source. Remote shards are copied into the folder `scratch`. Raises `UserError`."""
    match data.source:
        case "digits":
            from selfsup.data.sources.digits import digits

            source = digits()
        case "image_folder":
            from selfsup.data.sources.image_folder import image_folder

            source = image_folder(resolve(data.path or ""), data.labels == "folder", data.on_error == "skip")
        case "torchvision":
            from selfsup.data.sources.torchvision import torchvision_set

            source = torchvision_set(data.name or "", resolve(data.path) if data.path else None)
        case "webdataset":
            from selfsup.data.sources.webdataset import tar_shards

            source = tar_shards(data.path or "", scratch, data.labels == "folder", data.on_error == "skip")
    if data.labels == "none":
        source.classes = []
        for samples in source.splits.values():
            samples.labels = np.full(len(samples.names), -1)
    return source
