"""Classification sets of torchvision by name, and FashionMNIST's own files without torchvision."""

import gzip
import inspect
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from selfsup.blocks.image import ImageData
from selfsup.data.formats.image.files import encode, png
from selfsup.data.source import Samples, Source, Watched, array_samples, nearest, resolve
from selfsup.data.sources.image_folder import watched as watched_folder
from selfsup.errors import UserError

# the names of a split among torchvision's sets, best first
_NAMES = {"train": ("train", "trainval"), "validation": ("val", "valid"), "test": ("test",), "extra": ("unlabeled",)}
_IDX = {"train": "train", "test": "t10k"}
_FASHION = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"]


def listing(data: ImageData, _scratch: Path) -> Source:
    return torchvision_set(data.name or "", resolve(data.path) if data.path else None)


def watched(data: ImageData) -> Watched:
    return watched_folder(data) if data.path else Watched(None, why_not="torchvision checks what it downloads")


def torchvision_set(name: str, folder: Path | None) -> Source:
    """A classification set of `torchvision.datasets`, with the splits it has, read in `folder`.

    Without a folder it is downloaded into `.cache/torchvision`. Images that the set keeps as files are taken as they
    are, all others become PNG, or TIFF where PNG cannot hold them. STL10's unlabelled images join the training split. A
    folder that directly holds the files `train-images-idx3-ubyte.gz` and so on is read as such. Raises `UserError`.
    """
    if folder is not None:
        if not folder.is_dir():
            raise UserError(f"data.image.path: no folder {folder}; fix the path or set it to null to download {name}")
        if (folder / "train-images-idx3-ubyte.gz").exists():
            return idx_files(folder, _FASHION if name == "FashionMNIST" else None)
    from torchvision import datasets

    factory = getattr(datasets, name, None)
    if not inspect.isclass(factory) or not issubclass(factory, datasets.VisionDataset):
        raise UserError(f"data.image.name: torchvision.datasets has no {name!r}{nearest(name, datasets.__all__)}")
    parts = _parts(name, factory, folder)
    labels = {split: np.array(_labels(name, part), np.int64) for split, part in parts.items()}
    splits = {split: _listing(split, part, labels[split]) for split, part in parts.items()}
    if extra := splits.pop("extra", None):
        train = splits["train"]
        joined = np.concatenate([train.labels, extra.labels])
        splits["train"] = Samples([*train.names, *extra.names], joined, [*train.refs, *extra.refs])
    classes = [str(known) for known in getattr(parts["train"], "classes", [])]
    count = max(int(found.max(initial=-1)) for found in labels.values()) + 1
    return Source(classes if len(classes) >= count else [str(n) for n in range(count)], splits, _Reader(parts))


class _Reader:
    """Reads (split, number), or a file's path."""

    def __init__(self, parts: dict[str, Any]):
        self.parts = parts

    def __call__(self, ref: tuple[str, int] | str) -> bytes:
        if isinstance(ref, str):
            return Path(ref).read_bytes()
        split, number = ref
        image = self.parts[split][number][0]
        return encode(image, _format(image))


def _format(image: Image.Image) -> str:
    """A format that keeps the image's numbers: PNG has neither floats nor integers of more than 16 bits."""
    return "TIFF" if image.mode in ("I", "F") else "PNG"


def _parts(name: str, factory: Callable[..., Any], folder: Path | None) -> dict[str, Any]:
    """The set's splits as torchvision objects."""
    accepted = inspect.signature(factory).parameters
    root = folder or Path(os.environ.get("DVC_ROOT") or ".", ".cache", "torchvision")
    options: dict[str, Any] = {"root": root}
    if "download" in accepted:
        options["download"] = folder is None
    try:
        if "train" in accepted:
            return {"train": factory(train=True, **options), "test": factory(train=False, **options)}
        if "split" not in accepted:
            return {"train": factory(**options)}
        parts: dict[str, Any] = {}
        for split, names in _NAMES.items():
            found = (_offered(factory, candidate, options) for candidate in names)
            if part := next((part for part in found if part is not None), None):
                parts[split] = part
    except (OSError, RuntimeError, ValueError, TypeError, ImportError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if folder is None:
            raise UserError(
                f"data.image.name: {name} could not be downloaded ({reason}); check the network, or set "
                "data.image.path to a copy"
            ) from None
        raise UserError(
            f"data.image.path: {name} could not be read in {folder} ({reason}); set data.image.path to null to "
            "download it"
        ) from None
    if "train" not in parts:
        raise UserError(f"data.image.name: {name} has no training split to read by name alone; use source image_folder")
    return parts


def _offered(factory: Callable[..., Any], split: str, options: dict[str, Any]) -> Any | None:
    """A split of the set, None when it has none of that name."""
    try:
        return factory(split=split, **options)
    except ValueError as error:
        if "Unknown value" in str(error):
            return None
        raise


def _labels(name: str, part: Any) -> list[int]:
    """The labels of a split, without decoding its images where the set keeps them apart."""
    example = part[0]
    if not (isinstance(example, tuple) and len(example) == 2 and isinstance(example[0], Image.Image)):
        raise UserError(f"data.image.name: {name} is no set of images with a class each")
    if not isinstance(example[1], int | np.integer):
        raise UserError(f"data.image.name: {name} has labels that are no class numbers, such as {example[1]!r}")
    for attribute in ("targets", "labels", "_labels"):
        values = getattr(part, attribute, None)
        if values is not None and len(values) == len(part):
            return np.asarray(values).astype(np.int64).tolist()
    return [int(part[number][1]) for number in range(len(part))]


def _listing(split: str, part: Any, labels: np.ndarray) -> Samples:
    files = next((getattr(part, name) for name in ("_image_files", "_images") if hasattr(part, name)), None)
    if files is None:
        pairs: Any = next((getattr(part, name) for name in ("_samples", "samples") if hasattr(part, name)), [])
        files = [pair[0] for pair in pairs]
    if len(files) == len(part) and all(isinstance(file, str | os.PathLike) for file in files):
        paths = [os.fspath(file) for file in files]
        return Samples([os.path.relpath(path, part.root) for path in paths], labels, paths)
    extension = {"PNG": "png", "TIFF": "tif"}[_format(part[0][0])]
    names = [f"{split}/{number:06d}.{extension}" for number in range(len(part))]
    return Samples(names, labels, [(split, number) for number in range(len(part))])


def idx_files(folder: Path, classes: list[str] | None) -> Source:
    """The four gzipped idx files of MNIST's format. Raises `UserError` that names a damaged one."""
    splits = {}
    for split, prefix in _IDX.items():
        images = read_idx(folder / f"{prefix}-images-idx3-ubyte.gz", 3)
        labels = read_idx(folder / f"{prefix}-labels-idx1-ubyte.gz", 1)
        if len(images) != len(labels):
            raise UserError(f"{folder}: {len(images)} {prefix} images but {len(labels)} labels; fetch the files again")
        splits[split] = array_samples(images, labels)
    count = 1 + max(int(samples.labels.max(initial=-1)) for samples in splits.values())
    return Source(classes or [str(number) for number in range(count)], splits, png)


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An idx file of unsigned bytes: two zero bytes, type 8, dimensions, each size as a big-endian int32, values."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: not found; fetch the data set's files again") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: damaged ({error}); fetch it again") from None
    header = 4 + 4 * dimensions
    shape = np.frombuffer(data[4:header], ">i4").tolist() if len(data) >= header else []
    if data[:4] != bytes([0, 0, 8, dimensions]) or len(data) != header + int(np.prod(shape)):
        raise UserError(f"{path}: not an idx file of {dimensions} dimensions, or cut short; fetch it again")
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)
