"""A temporary workspace: a copy of the project in which one experiment runs, so that the user's is never touched.

DVC's own `exp run --temp` and `--queue` first stash the user's uncommitted changes, detach HEAD and reset the files,
and put everything back afterwards. A kill in between leaves the changes in a stash and HEAD detached. Here the copy is
made from a snapshot, an unreferenced tree in git, and the experiment is saved in the copy and fetched as a ref. The
copy shares git's objects and DVC's cache, run cache included, and `DVC_ROOT` is the project, as in `--temp`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

from selfsup.compare.by_dvc import override
from selfsup.compare.git import IDENTITY, Snapshot, git
from selfsup.errors import UserError

PLACE = Path(".cache/compare")  # below the project
CHILD = Path(__file__).with_name("child.py").resolve()
KEPT = ("dvc.lock", "data/watched.txt")  # of the workspace: without them, shards pulled from a remote are not known
LINKS = "reflink,hardlink,copy"  # how DVC puts outputs into the copy, where the user chose nothing


class InUse(Exception):
    """Another process holds the lock."""


@contextlib.contextmanager
def held(path: Path, wait: bool = False) -> Iterator[int]:
    """Hold the lock `path`, and yield its descriptor; a child that inherits it holds the lock with us.

    Where another process has it, waits if asked to, else raises `InUse`. The lock is free when the last process that
    has the descriptor ends, however it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InUse from None
        yield number
    finally:
        os.close(number)


@dataclass(frozen=True)
class Workspace:
    """The copy in `folder` of the project `root`."""

    root: Path
    folder: Path
    name: str  # of the experiment
    log: Path
    lock: int  # descriptor of the lock that is held

    def run(self, words: Sequence[str], environment: Mapping[str, str], stop: threading.Event) -> int:
        """Run a command in the copy until it ends or `stop` is set; its exit status."""
        words = [sys.executable, "-I", str(CHILD), str(self.log.resolve()), *words]
        child = subprocess.Popen(
            words,
            cwd=self.folder,
            env={**environment, "DVC_ROOT": str(self.root.resolve()), "DVC_EXP_NAME": self.name},
            stdin=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[self.lock],
        )
        assert child.stdin is not None
        while True:
            try:
                return child.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    child.stdin.close()  # the request to stop
                    return child.wait()

    def fetch(self, head: str) -> str:
        """Bring the saved experiment into the project's repository; its commit. Raises `UserError`."""
        ref = f"refs/exps/{head[:2]}/{head[2:]}/{self.name}"
        quiet = ("-c", "gc.auto=0", "-c", "fetch.writeCommitGraph=false")
        options = ("--quiet", "--no-tags", "--no-write-fetch-head")
        git(self.root, *quiet, "fetch", *options, str(self.folder.resolve()), f"+{ref}:{ref}")
        return git(self.root, "rev-parse", ref).strip()


@contextlib.contextmanager
def made(root: Path, taken: Snapshot, name: str, key: str, cache: Path, changes: Sequence[str]) -> Iterator[Workspace]:
    """A copy of the project as in the snapshot, with the `changes` of params.yaml, for as long as the context lasts.

    `key` names its folder and its lock. Raises `InUse` while another process has a copy with the same key.
    """
    folder = root / PLACE / "runs" / key
    log = root / PLACE / "logs" / f"{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with held(folder.with_suffix(".lock")) as lock:
        remove(folder)
        try:
            _fill(root, taken, folder, cache)
            if changes:
                override(folder / "params.yaml", changes)
            log.unlink(missing_ok=True)
            yield Workspace(root, folder, name, log, lock)
        finally:
            remove(folder)


def _fill(root: Path, taken: Snapshot, folder: Path, cache: Path) -> None:
    folder.mkdir(parents=True)
    objects = (root / git(root, "rev-parse", "--git-path", "objects").strip()).resolve()
    shallow = root / git(root, "rev-parse", "--git-path", "shallow").strip()
    git(folder, "init", "--quiet")
    (folder / ".git/objects/info").mkdir(parents=True, exist_ok=True)
    (folder / ".git/objects/info/alternates").write_text(f"{objects}\n")
    if shallow.is_file():
        shutil.copyfile(shallow, folder / ".git/shallow")
    for key in IDENTITY:
        with contextlib.suppress(UserError):  # not set
            git(folder, "config", key, git(root, "config", key).strip())
    git(folder, "update-ref", "--no-deref", "HEAD", taken.head)
    git(folder, "read-tree", "--reset", "-u", taken.tree)
    _configure(root, folder, cache)
    for path in KEPT:
        if (root / path).is_file() and not (folder / path).exists():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / path, folder / path)


def _configure(root: Path, folder: Path, cache: Path) -> None:
    """The user's local configuration of DVC, and the cache of the project."""
    config = ConfigParser(interpolation=None)
    config.read([root / ".dvc/config.local"])
    shared = ConfigParser(interpolation=None)
    shared.read([root / ".dvc/config"])
    if not config.has_section("cache"):
        config.add_section("cache")
    config["cache"]["dir"] = str(cache.resolve())
    if not shared.get("cache", "type", fallback=None):
        config["cache"].setdefault("type", LINKS)
    with (folder / ".dvc/config.local").open("w") as file:
        config.write(file)


def tidy(root: Path) -> None:
    """Remove the copies that processes left which were killed."""
    for folder in (root / PLACE / "runs").glob("*"):
        if folder.is_dir():
            with contextlib.suppress(InUse), held(folder.with_suffix(".lock")):
                remove(folder)


def remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
