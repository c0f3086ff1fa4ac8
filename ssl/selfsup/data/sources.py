"""Where images come from: every source is a listing of samples per split and a function that reads one file's bytes."""

import difflib
import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from tqdm import tqdm

from selfsup.data import decode
from selfsup.data.names import Names, text
from selfsup.errors import UserError
from selfsup.params import Data

_log = logging.getLogger(__name__)
SPLITS = ("train", "validation", "test")
_FOLDERS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


@dataclass
class Samples:
    """One split of a source, in the source's own order."""

    names: Sequence[str]  # file names as the user knows them; the extension tells the format
    labels: np.ndarray  # int64 [N], -1: none
    refs: Sequence[Any] | np.ndarray  # what `Source.read` takes


@dataclass
class Source:
    """Splits `train` and, where the source has its own, `validation` and `test`; `read` can be sent to a process."""

    classes: list[str]
    splits: dict[str, Samples]
    read: Callable[[Any], bytes]


def open_source(data: Data, scratch: Path) -> Source:
    """List the samples of `data.source`. Remote shards are copied into the folder `scratch`. Raises `UserError`."""
    match data.source:
        case "digits":
            source = digits()
        case "image_folder":
            source = image_folder(resolve(data.path or ""), labelled=data.labels == "folder")
        case "torchvision":
            from selfsup.data.torchvision_sets import torchvision_set

            source = torchvision_set(data.name or "", resolve(data.path) if data.path else None)
        case "webdataset":
            from selfsup.data.tar_source import tar_shards

            source = tar_shards(data.path or "", scratch)
    if data.labels == "none":
        source.classes = []
        for samples in source.splits.values():
            samples.labels = np.full(len(samples.names), -1)
    return source


def resolve(path: str) -> Path:
    """A relative path that is not here is looked for in the main repository: experiments run in copies of it."""
    root = os.environ.get("DVC_ROOT")
    found = Path(path).expanduser()
    if root and not found.is_absolute() and not found.exists():
        return Path(root) / found
    return found


def digits() -> Source:
    """1,797 real scans of handwritten digits, 8x8 grey, that come with scikit-learn; no split of its own."""
    package = find_spec("sklearn")  # its file is read without it: importing it, and pandas with it, takes far longer
    if package is None or package.origin is None:
        raise UserError("data.source: digits come with scikit-learn, which is not installed; install it")
    values = np.loadtxt(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz", delimiter=",")
    scans, labels = values[:, :-1], values[:, -1]
    images = np.floor(scans.reshape(-1, 8, 8) * (255 / 16) + 0.5).astype(np.uint8)
    return Source([str(digit) for digit in range(10)], {"train": array_samples(images, labels)}, decode.png)


def array_samples(images: np.ndarray, labels: np.ndarray) -> Samples:
    """Images held in memory, uint8 [N H W] or [N H W 3]; read as PNG."""
    return Samples([f"{number:06d}.png" for number in range(len(images))], labels.astype(np.int64), images)


def image_folder(root: Path, labelled: bool = True) -> Source:
    """Images of a folder; the class of an image is its folder's path below the root, nested or not.

    A root with a folder `train` and a folder `test` or `val` (`valid`, `validation`) has its own splits. A folder
    without class folders is unlabelled. Hidden files and files that are no images by their extension are ignored.
    Raises `UserError`.
    """
    if not root.exists():
        raise UserError(f"data.path: no folder {root}; mend the path")
    if not root.is_dir():
        raise UserError(f"data.path: {root} is a file; unpack it and name the folder")
    folders = _split_folders(root)
    found = {split: Names(_list(root, folder)) for split, folder in (folders or {"train": ""}).items()}
    known: list[str] = []
    labels = {split: np.full(len(names), -1) for split, names in found.items()}
    if labelled:
        known = sorted({_class_of(name, folders.get(split, "")) for split, names in found.items() for name in names})
        known = [name for name in known if name]
        number = {"": -1} | {name: label for label, name in enumerate(known)}
        for split, names in found.items():
            classes = (number[_class_of(name, folders.get(split, ""))] for name in names)
            labels[split] = np.fromiter(classes, np.int64, len(names))
    for split, names in found.items():
        if known and len(strays := np.flatnonzero(labels[split] < 0)):
            raise UserError(
                f"data.path: {root / names[strays[0]]} lies beside class folders; move it into one or set "
                "data.labels: none"
            )
    splits = {split: Samples(names.readable(), labels[split], names) for split, names in found.items()}
    return Source([text(name) for name in known], splits, partial(_read_file, str(root)))


def _read_file(root: str, name: str) -> bytes:
    def at_once(path: str, flags: int) -> int:  # a pipe without a writer would make us wait for ever
        return os.open(path, flags | os.O_NONBLOCK)

    with open(Path(root, name), "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def _class_of(name: str, folder: str) -> str:
    return name.removeprefix(f"{folder}/" if folder else "").rpartition("/")[0]


def _split_folders(root: Path) -> dict[str, str]:
    """The splits that the root's folders name -> folder; empty when these are classes and not splits."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders: dict[str, str] = {}
    for name in names:
        split = _FOLDERS.get(name.lower())
        if split in folders:
            raise UserError(f"data.path: {root} has the folders {folders[split]} and {name}; keep one of them")
        if split:
            folders[split] = name
    if "train" not in folders or len(folders) == 1:
        return {}
    if others := sorted(set(names) - set(folders.values())):
        _log.info("note: %s: not used, being no split: %s", root, ", ".join(others))
    return {split: folders[split] for split in SPLITS if split in folders}


def _list(root: Path, folder: str) -> Iterator[str]:
    """Paths of the images below `root / folder`, relative to `root`, with forward slashes, sorted.

    Raises `UserError` if there are none.
    """
    known, images, others = decode.extensions(), 0, Counter[str]()
    title = f"list {text((root / folder).name)}"
    for path in tqdm(
        files_below(str(root / folder), f"{folder}/" if folder else "", set()), title, unit=" files", delay=2
    ):
        extension = PurePosixPath(path).suffix.lower()
        if extension in known:
            images += 1
            yield path
        else:
            others[extension or "no extension"] += 1
    if not images:
        seen = ", ".join(f"{count} with {extension}" for extension, count in others.most_common(3))
        raise UserError(f"data.path: no images in {root / folder} (other files: {seen or 'none'}); mend the path")


def files_below(folder: str, prefix: str, visited: set[tuple[int, int]]) -> Iterator[str]:
    """`prefix` and path of the files below a folder in the order of their whole paths, without holding them all.

    Links are followed, but no folder is visited twice, so that circular links end.
    """
    info = Path(folder).stat()
    if (info.st_dev, info.st_ino) in visited:
        return
    visited.add((info.st_dev, info.st_ino))
    with os.scandir(folder) as entries:
        names = [entry.name + "/" * entry.is_dir() for entry in entries if not entry.name.startswith(".")]
    for name in sorted(names):
        if name.endswith("/"):
            yield from files_below(f"{folder}/{name[:-1]}", prefix + name, visited)
        else:
            yield prefix + name


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint for a misspelt name."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
