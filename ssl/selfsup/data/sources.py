"""Where images come from: every source is a listing of samples per split and a function that reads one file's bytes."""

import difflib
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from selfsup.data import decode
from selfsup.errors import UserError
from selfsup.params import Data

SPLITS = ("train", "validation", "test")
_FOLDERS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


@dataclass
class Samples:
    """One split of a source, in the source's own order."""

    names: list[str]  # file names as the user knows them; the extension tells the format
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
    from sklearn.datasets import load_digits

    scans, labels = load_digits(return_X_y=True)
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
    found: dict[str, list[str]] = {}
    folders = _split_folders(root)
    for split, folder in folders.items() or [("train", "")]:
        found[split] = [f"{folder}/{name}" if folder else name for name in list_images(root / folder)]
    if labelled:
        classes = {split: [_class_of(name, folders.get(split, "")) for name in names] for split, names in found.items()}
        known = sorted({name for names in classes.values() for name in names} - {""})
        number = {"": -1} | {name: label for label, name in enumerate(known)}
        labels = {split: np.array([number[name] for name in names], np.int64) for split, names in classes.items()}
    else:
        known, labels = [], {split: np.full(len(names), -1) for split, names in found.items()}
    for split, names in found.items():
        stray = next((name for name, label in zip(names, labels[split], strict=True) if known and label < 0), None)
        if stray is not None:
            raise UserError(
                f"data.path: {root / stray} lies beside class folders; move it into one or set data.labels: none"
            )
    splits = {split: Samples([_text(n) for n in names], labels[split], names) for split, names in found.items()}
    return Source([_text(name) for name in known], splits, partial(_read_file, str(root)))


def _text(name: str) -> str:
    """A file's name as text that can be written: bytes that are no UTF-8 become question marks."""
    return os.fsencode(name).decode("utf-8", "replace")


def _read_file(root: str, name: str) -> bytes:
    return Path(root, name).read_bytes()


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
        print(f"note: {root}: not used, being no split: {', '.join(others)}", file=sys.stderr)
    return {split: folders[split] for split in SPLITS if split in folders}


def list_images(root: Path) -> list[str]:
    """Paths of the images below a folder, relative, with forward slashes, sorted. Raises `UserError` if none."""
    known, images, others = decode.extensions(), [], Counter[str]()
    for path in tqdm(_files(root, set()), desc=f"list {_text(root.name)}", unit=" files", delay=2):
        extension = path.suffix.lower()
        if extension in known:
            images.append(path.relative_to(root).as_posix())
        else:
            others[extension or "no extension"] += 1
    if not images:
        seen = ", ".join(f"{count} with {extension}" for extension, count in others.most_common(3))
        raise UserError(f"data.path: no images in {root} (other files: {seen or 'none'}); mend the path")
    return sorted(images)


def _files(folder: Path, visited: set[tuple[int, int]]) -> Iterator[Path]:
    """Files below a folder, following links but no folder twice, so that circular links end."""
    stat = folder.stat()
    if (stat.st_dev, stat.st_ino) in visited:
        return
    visited.add((stat.st_dev, stat.st_ino))
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _files(folder / entry.name, visited)
            else:
                yield folder / entry.name


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint for a misspelt name."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
