"""Outs that are whole or not there: written beside their place, which they take at the end."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def beside(place: Path) -> Path:
    """Where the new `place` is written."""
    return place.with_name(place.name + ".partial")


@contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """Yield `beside(place)`, for a file or a folder that takes its place at the end.

    An error, a full disk or a kill leaves what was there before. The caller makes the file or the folder.
    """
    new, old = beside(place), place.with_name(place.name + ".old")
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in (new, old):  # of a killed run
        _remove(left)
    try:
        yield new
        if place.is_dir():
            place.rename(old)
        new.replace(place)
    finally:
        for left in (new, old) if place.exists() else (new,):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
