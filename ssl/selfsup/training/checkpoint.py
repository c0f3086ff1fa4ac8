"""Checkpoints that survive a kill, a full disk and a flipped bit: written aside, hashed, renamed; two are kept."""

import hashlib
import logging
import os
from pathlib import Path
from typing import Any

import torch

from selfsup.errors import UserError

KEEP = 2
_log = logging.getLogger(__name__)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _all(folder: Path) -> list[Path]:
    """Checkpoints, newest first. Their names hold the step and the first 16 digits of the SHA-256."""
    return sorted(folder.glob("step-*.pt"), reverse=True)


def save(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write `state` atomically. Raises `UserError` when the disk is full; earlier checkpoints are kept."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / "checkpoint.part"
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(folder / f"step-{step:09d}-{_digest(part)[:16]}.pt")
    except (OSError, RuntimeError) as error:  # torch wraps a failed write in a RuntimeError
        part.unlink(missing_ok=True)
        raise UserError(
            f"{folder}: checkpoint of step {step} could not be written ({error}); the previous checkpoint is "
            "intact: free some disk space, then run the same command again"
        ) from error
    _log.debug("checkpoint of step %d is in %s", step, folder)
    for old in _all(folder)[KEEP:]:
        old.unlink()


def load(folder: Path) -> dict[str, Any] | None:
    """The newest checkpoint with the right checksum, or None. Damaged checkpoints are logged and skipped."""
    for path in _all(folder):
        reason = "its checksum differs"
        if path.stem.endswith(_digest(path)[:16]):
            try:
                state = torch.load(path, map_location="cpu", weights_only=True)
                _log.debug("resuming from %s", path)
                return state
            except Exception:  # noqa: BLE001 - `save` did not write this file, whatever the error is
                reason = "it holds something other than weights; nothing in it is executed"
        _log.warning("warning: %s is damaged (%s); using the previous checkpoint", path, reason)
    return None
