"""What a comparison asks of git: the user's files as they are now, and what DVC's experiments hold.

Nothing here changes the user's files, index, branch or stashes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from selfsup.errors import UserError
from selfsup.files import replaced

NEW = ("ssl", "stages", "setups")  # folders whose files count although they were never added to git
IDENTITY = ("user.name", "user.email")  # of the configuration: a commit needs them
CACHE = Path(".cache/compare/read")  # files of commits, already parsed


@dataclass(frozen=True)
class Snapshot:
    """The user's files: the commit that they are based on, and all of them as a tree, uncommitted changes included."""

    head: str
    tree: str
    files: Mapping[str, str]  # by path: the object that git keeps the content as


def git(folder: Path, *words: str, index: Path | None = None) -> str:
    """The output of a git command. Raises `UserError` with the first line of what it complains of."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    if index:
        environment["GIT_INDEX_FILE"] = str(index)
    done = subprocess.run(["git", *words], cwd=folder, env=environment, capture_output=True, start_new_session=True)
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise UserError(f"git {words[0]}: {lines[0]}")
    return done.stdout.decode(errors="surrogateescape")


def snapshot(root: Path) -> Snapshot:
    """The files below `root` as they are now: those that git tracks, and new ones in the folders `NEW`.

    Raises `UserError` where there is no git, no git repository, or none with a commit.
    """
    if not shutil.which("git"):
        raise UserError("git is not on PATH: install it; DVC keeps experiments in git")
    try:
        top = Path(git(root, "rev-parse", "--show-toplevel").strip())
    except UserError as error:
        if "not a git repository" not in str(error):  # such as a folder of another user
            raise
        raise UserError("no git repository here; run `git init`, then commit: DVC keeps experiments in git") from None
    if top.resolve() != root.resolve():
        raise UserError(f"the git repository is {top}, which is not the project's root; run `git init` here")
    try:
        head = git(root, "rev-parse", "--verify", "--quiet", "HEAD^{commit}").strip()
    except UserError:
        raise UserError(
            "the git repository has no commit yet; commit the project: DVC keeps experiments in git"
        ) from None
    with tempfile.TemporaryDirectory() as folder:
        index = Path(folder, "index")
        own = root / git(root, "rev-parse", "--git-path", "index").strip()
        if own.exists():
            shutil.copyfile(own, index)
        git(root, "add", "--update", "--", ".", index=index)
        new = [name for name in NEW if (root / name).is_dir()]
        if new:
            git(root, "add", "--", *new, index=index)
        tree = git(root, "write-tree", index=index).strip()
    return Snapshot(head, tree, listed(root, tree))


def listed(root: Path, revision: str) -> dict[str, str]:
    """The objects of all files of a commit or tree, by path."""
    lines = git(root, "ls-tree", "-r", "-z", "--full-tree", revision).split("\0")
    return {path: entry.split()[2] for entry, _, path in (line.partition("\t") for line in lines if line)}


def experiments(root: Path) -> list[tuple[str, str]]:
    """Name and commit of all experiments of DVC, the newest first; those of different commits may share a name."""
    fields = "--format=%(refname) %(objectname)"
    lines = git(root, "for-each-ref", "--sort=-committerdate", fields, "refs/exps/").splitlines()
    refs = [(ref.split("/"), commit) for ref, _, commit in (line.partition(" ") for line in lines)]
    # refs/exps/ab/cd.../name; stashes and the refs of a run in progress have other depths
    return [(parts[4], commit) for parts, commit in refs if len(parts) == 5 and len(parts[2]) == 2]


def parsed(root: Path, name: str) -> Any:
    """The content of a YAML file by its object. Parsing takes a tenth of a second, so values are kept in `CACHE`."""
    path = root / CACHE / f"{name}.json"
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.read_text(encoding="utf-8"))
    values = of_yaml(git(root, "cat-file", "blob", name))
    with contextlib.suppress(OSError, TypeError), replaced(path) as new:  # a date, which JSON does not have
        new.write_text(json.dumps(values), encoding="utf-8")
    return values


def of_yaml(text: str) -> Any:
    """The values of a YAML file; None where it is none."""
    from ruamel.yaml import YAML, YAMLError

    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return None


def files_at(root: Path, revision: str, paths: Sequence[str]) -> dict[str, str]:
    """The objects of files of a commit, by path; files that it does not have are left out."""
    lines = git(root, "ls-tree", "-z", "--full-tree", revision, "--", *paths).split("\0")
    return {path: entry.split()[2] for entry, _, path in (line.partition("\t") for line in lines if line)}
