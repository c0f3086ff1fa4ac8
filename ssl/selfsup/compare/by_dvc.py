"""What is asked of DVC itself, in the only file that imports it: outputs by their checksums, and overrides."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from selfsup.errors import UserError


def override(path: Path, words: Sequence[str]) -> None:
    """Apply overrides in the form of `dvc exp run -S` to a file, as DVC does. Raises `UserError`."""
    from dvc.exceptions import DvcException
    from dvc.utils.hydra import apply_overrides

    try:
        apply_overrides(path, list(words))
    except DvcException as error:
        raise UserError(f"-S {' -S '.join(words)}: {error}; write it as for `dvc exp run`") from None


class Cache:
    """DVC's cache of a project: outputs of any experiment, without a change of the workspace."""

    def __init__(self, root: Path):
        from dvc.exceptions import DvcException
        from dvc.repo import Repo

        try:
            with Repo(os.fspath(root)) as repo:
                self._cache = repo.cache.local
        except DvcException as error:
            raise UserError(f"DVC: {error}") from None

    def path(self, checksum: str) -> Path:
        """Where the content of a file, or the list of a folder's files, is or would be."""
        return Path(self._cache.oid_to_path(checksum))

    @functools.cached_property
    def folder(self) -> Path:
        """The cache's own folder."""
        return Path(self._cache.path).parents[1]

    def listing(self, checksum: str) -> dict[str, str] | None:
        """The checksums of a folder's files by path below it; None where the cache does not have the list."""
        try:
            entries = json.loads(self.path(checksum).read_bytes())
        except (OSError, ValueError):
            return None
        return {entry["relpath"]: entry["md5"] for entry in entries}

    def has(self, checksum: str | None) -> bool:
        """Whether a file, or a folder with all its files, is in the cache."""
        if checksum is None:
            return False
        if not checksum.endswith(".dir"):
            return self.path(checksum).is_file()
        files = self.listing(checksum)
        return files is not None and all(self.path(one).is_file() for one in files.values())

    def bytes(self, checksum: str) -> int:
        """Size of a file, or of all files of a folder, that the cache has."""
        files = self.listing(checksum) if checksum.endswith(".dir") else {"": checksum}
        return sum(self.path(one).stat().st_size for one in set((files or {}).values()) if self.path(one).is_file())

    def json(self, checksum: str) -> Any:
        """The content of a JSON file. Raises `OSError` where the cache does not have it."""
        return json.loads(self.path(checksum).read_bytes())

    def place(self, checksum: str, target: Path) -> Path:
        """Copy a file or folder to `target`, by links where the file system has them, and return it."""
        files: Mapping[str, str] = (self.listing(checksum) or {}) if checksum.endswith(".dir") else {"": checksum}
        for name, one in files.items():
            new = target / name if name else target
            new.parent.mkdir(parents=True, exist_ok=True)
            try:
                new.symlink_to(self.path(one).resolve())
            except OSError:
                shutil.copyfile(self.path(one), new)
        return target
