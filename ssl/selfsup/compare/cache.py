"""Outputs of any experiment, read from DVC's cache by their checksums: the workspace is not touched."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from selfsup.errors import UserError


class Cache:
    """DVC's cache of a project."""

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
