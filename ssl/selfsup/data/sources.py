"""Where images come from: every source is a listing of samples per split and a function that reads one file's bytes."""

import difflib
import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
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
    left_out: dict[str, int] = field(default_factory=dict)  # files that are no images, by extension
    notes: list[str] = field(default_factory=list)  # whole sentences on what was left out


def open_source(data: Data, scratch: Path) -> Source:
    """List the samples of `data.source`. Remote shards are copied into the folder `scratch`. Raises `UserError`."""
    match data.source:
        case "digits":
            source = digits()
        case "image_folder":
            source = image_folder(resolve(data.path or ""), data.labels == "folder", data.on_error == "skip")
        case "torchvision":
            from selfsup.data.torchvision_sets import torchvision_set

            source = torchvision_set(data.name or "", resolve(data.path) if data.path else None)
        case "webdataset":
            from selfsup.data.tar_source import tar_shards

            source = tar_shards(data.path or "", scratch, data.labels == "folder", data.on_error == "skip")
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


def image_folder(root: Path, labelled: bool = True, skip: bool = False) -> Source:
    """Images of a folder; the class of an image is its folder's path below the root, nested or not.

    A root with a folder `train` and a folder `test` or `val` (`valid`, `validation`) has its own splits. A folder
    without class folders is unlabelled. Hidden files and files that are no images by their extension are counted.
    Raises `UserError`; for a class folder without images, or that is another one by a link, unless `skip`.
    """
    if not root.exists():
        raise UserError(f"data.path: no folder {root}; fix the path")
    if not root.is_dir():
        raise UserError(f"data.path: {root} is a file; unpack it and name the folder")
    folders, said = _split_folders(root)
    walks = {split: Walk(decode.extensions()) for split in folders or {"train": ""}}
    found = {split: Names(_list(root, folder, walks[split])) for split, folder in (folders or {"train": ""}).items()}
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
    lost = [sentence for walk in walks.values() for sentence in walk.lost(root)]
    if lost and known and not skip:
        raise UserError(f"data.path: {root}: {lost[0]}; remove it, or set data.on_error: skip to leave it out")
    left_out = sum((walk.left_out for walk in walks.values()), Counter[str]())
    said += [f"{sentence}." for sentence in lost] + not_read(left_out)
    splits = {split: Samples(names.readable(), labels[split], names) for split, names in found.items()}
    return Source([text(name) for name in known], splits, partial(_read_file, str(root)), few(left_out), said)


def not_read(left_out: Counter[str]) -> list[str]:
    """A sentence on files that are no images."""
    if not left_out:
        return []
    kinds = ", ".join(f"{count:,} {kind}" for kind, count in few(left_out).items())
    remedy = "; convert those that are images" if set(left_out) - {"hidden"} else ""
    return [f"Files left out, as their names are not those of images: {kinds}{remedy}."]


def few(counts: Counter[str]) -> dict[str, int]:
    """The most frequent kinds, at most 20, and all others as one."""
    most = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    rest = sum(count for _, count in most[20:])
    return dict(most[:20]) | ({"others": rest} if rest else {})


def _read_file(root: str, name: str) -> bytes:
    def at_once(path: str, flags: int) -> int:  # a pipe without a writer would make us wait for ever
        return os.open(path, flags | os.O_NONBLOCK)

    with open(Path(root, name), "rb", opener=at_once) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return file.read()


def _class_of(name: str, folder: str) -> str:
    return name.removeprefix(f"{folder}/" if folder else "").rpartition("/")[0]


def _split_folders(root: Path) -> tuple[dict[str, str], list[str]]:
    """The splits that the root's folders name -> folder, none when these are classes; and what to say of the others."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders: dict[str, str] = {}
    for name in names:
        split = _FOLDERS.get(name.lower())
        if split in folders:
            raise UserError(f"data.path: {root} has the folders {folders[split]} and {name}; keep one of them")
        if split:
            folders[split] = name
    if "train" not in folders or len(folders) == 1:
        return {}, []
    others = sorted(set(names) - set(folders.values()))
    said = [f"Folders beside the splits were left out: {text(', '.join(others))}."] if others else []
    return {split: folders[split] for split in SPLITS if split in folders}, said


def _list(root: Path, folder: str, walk: "Walk") -> Iterator[str]:
    """Paths of the images below `root / folder`, relative to `root`, with forward slashes, sorted.

    Raises `UserError` if there are none.
    """
    images, title = 0, f"list {text((root / folder).name)}"
    files = files_below(str(root / folder), f"{folder}/" if folder else "", walk)
    for path in tqdm(files, title, unit=" files", delay=2):
        if walk.is_image(path):
            images += 1
            yield path
    if not images:
        seen = ", ".join(f"{count} {kind}" for kind, count in few(walk.left_out).items())
        raise UserError(f"data.path: no images in {root / folder} (other files: {seen or 'none'}); fix the path")


class Walk:
    """What a walk through folders meets beside images, whose extensions are `known`; None: all files are images."""

    def __init__(self, known: frozenset[str] | None = None):
        self.known = known
        self.left_out = Counter[str]()  # files that are no images, by extension, and what is hidden
        self.empty: list[str] = []  # folders without an image in them or below, the topmost only
        self.again: list[tuple[str, str]] = []  # folders that are another one by a link, and this other
        self.visited: dict[tuple[int, int], str] = {}

    def is_image(self, path: str) -> bool:
        return self.known is None or PurePosixPath(path).suffix.lower() in self.known

    def lost(self, root: Path) -> list[str]:
        """Folders below `root` that end up without images of their own, as sentences without their full stop."""
        said = []
        for folder in self.empty[:3]:
            inner = Walk(self.known)
            for _ in files_below(str(root / folder), folder, inner):
                pass
            seen = ", ".join(f"{count:,} {kind}" for kind, count in few(inner.left_out).items())
            said.append(f"Folder {text(folder[:-1])!r} has no image" + (f", only {seen}" if seen else " and no file"))
        if len(self.empty) > 3:
            said.append(f"{len(self.empty) - 3:,} more folders have no image")
        links = [(text(folder[:-1]), text(first[:-1])) for folder, first in self.again]
        return said + [f"Folder {folder!r} is the same as folder {first!r} by a link" for folder, first in links]


def files_below(folder: str, prefix: str, walk: Walk) -> Generator[str, None, bool | None]:
    """`prefix` and path of the files below a folder in the order of their whole paths, without holding them all.

    Links are followed, but no folder is visited twice, so that circular links end. What is hidden is left out. The
    generator's value says whether one of the files is an image, None for a folder that was visited before.
    """
    info = Path(folder).stat()
    if (first := walk.visited.get((info.st_dev, info.st_ino))) is not None:
        if not prefix.startswith(first):  # else the link is circular and hides nothing
            walk.again.append((prefix, first))
        return None
    walk.visited[info.st_dev, info.st_ino] = prefix
    with os.scandir(folder) as entries:
        all_names = [entry.name + "/" * entry.is_dir() for entry in entries]
    names = sorted(name for name in all_names if not name.startswith("."))
    if len(names) < len(all_names):
        walk.left_out["hidden"] += len(all_names) - len(names)
    any_image, before = False, len(walk.empty)
    for name in names:
        if not name.endswith("/"):
            any_image |= (image := walk.is_image(name))
            if not image:
                walk.left_out[text(PurePosixPath(name).suffix.lower()) or "without extension"] += 1
            yield prefix + name
        elif (inside := (yield from files_below(f"{folder}/{name[:-1]}", prefix + name, walk))) is False:
            walk.empty.append(prefix + name)
        else:
            any_image |= bool(inside)
    if not any_image:
        del walk.empty[before:]  # the folder itself is named
    return any_image


def nearest(name: str, names: Sequence[str]) -> str:
    """A hint for a misspelt name."""
    near = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {near[0]}?" if near else ""
