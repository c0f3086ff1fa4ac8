"""A folder of images: class folders, splits, and what a walk through folders meets beside images."""

import errno
import os
import stat
from collections import Counter
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np
from tqdm import tqdm

from selfsup.blocks.image import ImageData
from selfsup.data.formats.image.files import extensions
from selfsup.data.names import Names, text
from selfsup.data.source import SPLITS, Samples, Source, Watched, few, not_read, resolve
from selfsup.errors import UserError

_FOLDERS = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}


def listing(data: ImageData, _scratch: Path) -> Source:
    return image_folder(resolve(data.path or ""), data.labels == "folder", data.on_error == "skip")


def watched(data: ImageData) -> Watched:
    """All files of the folder that are not hidden."""
    root = resolve(place := data.path or "")
    return Watched(root, place, files_below(str(root), "", Walk()) if root.is_dir() else [""])


def image_folder(root: Path, labelled: bool = True, skip: bool = False) -> Source:
    """Images of a folder; the class of an image is its folder's path below the root, nested or not.

    A root with a folder `train` and a folder `test` or `val` (`valid`, `validation`) has its own splits. A folder
    without class folders is unlabelled. Hidden files and files that are no images by their extension are counted.
    Raises `UserError`; for a class folder without images, or that is another one by a link, unless `skip`.
    """
    if not root.exists():
        raise UserError(f"data.image.path: no folder {root}; fix the path")
    if not root.is_dir():
        raise UserError(f"data.image.path: {root} is a file; unpack it and name the folder")
    folders, said = _split_folders(root)
    walks = {split: Walk(extensions()) for split in folders or {"train": ""}}
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
                f"data.image.path: {root / names[strays[0]]} lies beside class folders; move it into one or set "
                "data.labels: none"
            )
    lost = [sentence for walk in walks.values() for sentence in walk.lost(root)]
    if lost and known and not skip:
        raise UserError(f"data.image.path: {root}: {lost[0]}; remove it, or set data.on_error: skip to leave it out")
    left_out = sum((walk.left_out for walk in walks.values()), Counter[str]())
    said += [f"{sentence}." for sentence in lost] + not_read(left_out, ImageData.noun)
    splits = {split: Samples(names.readable(), labels[split], names) for split, names in found.items()}
    return Source([text(name) for name in known], splits, partial(_read_file, str(root)), few(left_out), said)


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
    """Split -> folder, empty when the root's folders are classes; and sentences on the other folders."""
    names = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    folders: dict[str, str] = {}
    for name in names:
        split = _FOLDERS.get(name.lower())
        if split in folders:
            raise UserError(f"data.image.path: {root} has the folders {folders[split]} and {name}; keep one of them")
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
        raise UserError(f"data.image.path: no images in {root / folder} (other files: {seen or 'none'}); fix the path")


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
        """Sentences, without full stop, on folders below `root` in which no image was found."""
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

    Links are followed, but no folder is visited twice, so that circular links end. Hidden files are left out. The
    generator returns whether one of the files is an image, None for a folder that was visited before.
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
