"""Atomic outputs: written to a temporary path beside their place and renamed when complete."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def beside(place: Path) -> Path:
    """The temporary path of the new `place`."""
    return place.with_name(place.name + ".partial")


@contextmanager
def replaced(place: Path) -> Iterator[Path]:
    """Yield `beside(place)`, a path for a file or a folder that replaces `place` at the end.

    After an error, a full disk or a kill the previous `place` is unchanged. The caller creates the file or the folder.
    """
    new, old = beside(place), place.with_name(place.name + ".old")
    place.parent.mkdir(parents=True, exist_ok=True)
    for left in (new, old):  # left by a killed run
        _remove(left)
    try:
        yield new
        if place.is_dir():
            place.rename(old)
        new.replace(place)
    finally:
        for left in (new, old) if place.exists() else (new,):
            _remove(left)


def write_json(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Replace a JSON file and return `values`. NaN and infinities, which JSON does not have, are written as null."""
    with replaced(path) as new:
        new.write_text(json.dumps(_plain(values), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
