"""Class folders of `.txt` files."""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
from selfsup.blocks.sequence import SequenceData

from selfsup.data.source import Samples, Source, Watched, few, not_read, resolve
from selfsup.errors import UserError


def listing(data: SequenceData, _scratch: Path) -> Source:
    root = resolve(data.path or "")
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    names = [name for name in files if name.endswith(".txt")]
    if not names:
        raise UserError(f"data.sequence.path: no .txt file in {root}; fix the path")
    classes = sorted({name.rpartition("/")[0] for name in names})
    labels = np.array([classes.index(name.rpartition("/")[0]) for name in names], np.int64)
    others = Counter(Path(name).suffix for name in files if not name.endswith(".txt"))
    splits = {"train": Samples(names, labels, names)}
    return Source(classes, splits, partial(_read, root), few(others), not_read(others, data.noun))


def watched(data: SequenceData) -> Watched:
    root = resolve(data.path or "")
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    return Watched(root, data.path or "", names)


def _read(root: Path, name: str) -> bytes:
    return (root / name).read_bytes()
