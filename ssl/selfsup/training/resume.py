"""Folders of unfinished runs in .resume, one per run: the run's parameters, whether it is in use, how runs differ.

`python -m selfsup.training.resume` lists the folders with age and size. `--remove` deletes those that no process uses.
"""

import argparse
import json
import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from selfsup.errors import one_line_errors
from selfsup.files import replaced

PLACE = ".resume"  # in the project's root
NOTE = "of.json"  # in a run's folder: everything that its checkpoints depend on
ROLES = ("run", "writer")  # of the locks beside a folder
LIKE = 3  # a run that differs in at most this many parameters counts as similar
WHY = {  # why a run that differs only in this does not resume
    "pretrain.epochs": "because schedules depend on the length",
    "data": "because its samples are different",
    "code": "because the code that trains has changed",
}
_log = logging.getLogger(__name__)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def lock(folder: Path, role: str) -> FileLock:
    """The lock beside a run's folder. It is released when the process that holds it exits."""
    return FileLock(folder.with_suffix(f".{role}.lock"))


@dataclass(frozen=True)
class Left:
    """A run's folder."""

    folder: Path
    of: dict[str, Any] | None  # content of `NOTE`; None: written by a version without it
    step: int  # of the newest checkpoint; 0: no checkpoint
    bytes: int
    touched: float  # seconds since 1970

    def title(self) -> str:
        """Stage, method, epochs and seed of the run."""
        if self.of is None:
            return f"{self.folder.name.rpartition('-')[0]}, {'of an earlier version' if self.step else 'no checkpoint'}"
        epochs = flat(self.of).get("pretrain.epochs")
        return f"{self.of.get('stage')} {self.of.get('method')}, {epochs} epochs, seed {self.of.get('seed')}"


def left(place: Path) -> list[Left]:
    """The folders of all runs in `place`, the oldest first."""
    found = []
    for folder in [path for path in place.glob("*-*") if path.is_dir()]:
        with suppress(FileNotFoundError):  # a run in progress deletes old checkpoints, and its folder at its end
            files = [path.stat() for path in folder.rglob("*") if path.is_file()]
            steps = [int(path.name[5:14]) for path in folder.glob("step-*.pt") if path.name[5:14].isdigit()]
            touched = max((file.st_mtime for file in files), default=folder.stat().st_mtime)
            size = sum(file.st_size for file in files)
            found.append(Left(folder, _note(folder / NOTE), max(steps, default=0), size, touched))
    return sorted(found, key=lambda one: one.touched)


def _note(path: Path) -> dict[str, Any] | None:
    try:
        of = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return of if isinstance(of, dict) else None


def begin(folder: Path, of: dict[str, Any]) -> None:
    """Write the parameters `of` the run into its folder, and log the most similar other run that has checkpoints."""
    resumes = any(folder.glob("step-*.pt"))
    if not (folder / NOTE).exists():
        with replaced(folder / NOTE) as new:
            new.write_text(json.dumps(of, indent=1) + "\n", encoding="utf-8")
    if resumes or folder.parent.name != PLACE:
        return
    others = [one for one in left(folder.parent) if one.folder != folder and one.step and one.of]
    kin = [one for one in others if all((one.of or {}).get(key) == of.get(key) for key in ("stage", "method"))]
    found = [(differences(one.of or {}, of), one) for one in reversed(kin)]
    different, nearest = min(found, key=lambda pair: len(pair[0]), default=({}, None))
    if nearest and 0 < len(different) <= LIKE:
        _log.info("note: %s", refusal(different, nearest))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Parameters in which two runs differ, with both values."""
    a, b = flat(old), flat(new)
    return {key: (a.get(key), b.get(key)) for key in {**a, **b} if a.get(key) != b.get(key)}


def refusal(different: Mapping[str, tuple[Any, Any]], nearest: Left) -> str:
    """The message why a run does not resume from the checkpoints of the nearest other run."""
    why = WHY.get(next(iter(different))) if len(different) == 1 else None
    if list(different) == ["pretrain.epochs"]:
        old, new = different["pretrain.epochs"]
        what = f"a checkpoint of {old} epochs exists; this run of {new} starts from scratch"
    else:
        named = [
            key if key in ("data", "code") else f"{key} ({old}, here {new})" for key, (old, new) in different.items()
        ]
        what = f"a checkpoint of a run that differs in {', '.join(named)} exists; this run starts from scratch"
    why = why or "because a checkpoint belongs to exactly one run"
    return f"{what} {why} ({nearest.folder}, see `make clean-resume`)"


@contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Whether no process uses the run's folder. No process can start to use it inside this context."""
    locks = [lock(folder, role) for role in ROLES]
    try:
        for one in locks:
            one.acquire(timeout=0)
        yield True
    except Timeout:
        yield False
    finally:
        for one in locks:
            one.release()


def clean(place: Path, remove: bool) -> Iterator[str]:
    """The lines of the list. With `remove`, folders and locks that no process uses are deleted."""
    runs = left(place)
    for one in runs:
        with unused(one.folder) as free:
            if remove and free:
                shutil.rmtree(one.folder)
            done = "in use" if not free else "removed" if remove else f"{age(time.time() - one.touched)} old"
        step = f", step {one.step}" if one.step else ""  # an extraction has none
        yield f"{one.folder}: {one.title()}{step}, {one.bytes / 1e6:.1f} MB, {done}"
    for name in {path.name.partition(".")[0] for path in place.glob("*.lock")} if remove else ():
        with unused(place / name) as free:
            if free and not (place / name).exists():
                for role in ROLES:
                    (place / f"{name}.{role}.lock").unlink(missing_ok=True)
    if not runs:
        yield "no unfinished runs"
    elif not remove:
        size = sum(one.bytes for one in runs) / 1e6
        yield f"{size:.1f} MB in all; `make clean-resume REMOVE=1` deletes what no process uses"


def age(seconds: float) -> str:
    """`3 days`, `5 hours` or `12 minutes`."""
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(0, seconds) / 60:.0f} minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remove", action="store_true", help="delete the folders that no process uses")
    remove = parser.parse_args().remove
    for line in clean(Path(PLACE), remove):
        print(line)


if __name__ == "__main__":
    with one_line_errors():
        main()
