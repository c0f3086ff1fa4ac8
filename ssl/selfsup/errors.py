"""Errors in one line: `UserError` is an error that the user can fix, and `one_line_errors` prints all errors."""

import errno
import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from selfsup import logs

ROOT = Path(__file__).resolve().parents[2]  # of the project whose code runs
WORKERS = "SELFSUP_WORKERS"  # environment variable: the scratch folder that the processes of one stage share
AGAIN = "then run the same command again"
REMEDIES = {  # for errors of the system that are not faults of the program, by errno
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"free some disk space, {AGAIN}"),
    errno.EFBIG: f"raise the limit on the size of files (`ulimit -f`), {AGAIN}",
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), f"give this user access to it, {AGAIN}"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), f"raise the limit on open files (`ulimit -n`), {AGAIN}"),
    errno.EIO: f"check the disk or the network file system, {AGAIN}",
    errno.EPIPE: "the program that reads the output ended; run the command without it",
}
MEMORY = "end other programs, or in training lower pretrain.batch_size or set pretrain.chunk_size"
_log = logging.getLogger("selfsup.errors")


class UserError(Exception):
    """An error that the user can fix. The message names the file or parameter and the remedy, in one line."""

    def __str__(self) -> str:
        return logs.one_line(super().__str__())


def missing(path: Path | str, folder: Path = ROOT) -> UserError:
    """The error for a missing input. It names the stage that writes the input, according to `folder`/dvc.yaml."""
    stage = writer(path, folder)
    return UserError(f"{path}: not found; run `dvc repro{f' {stage}' if stage else ''}` first")


def writer(path: Path | str, folder: Path = ROOT) -> str | None:
    """The stage that writes `path` (relative to the working folder), such as `evaluate@knn`. None: no stage does.

    Where two stages may write it, it is the last one whose list in the working folder's params.yaml has the item.
    """
    from ruamel.yaml import YAML  # late: only a run that fails needs it

    if not (folder / "dvc.yaml").is_file():
        return None
    place, found = Path(os.path.relpath(path)).as_posix(), None
    yaml = YAML(typ="safe", pure=True)
    for name, stage in yaml.load(folder / "dvc.yaml")["stages"].items():
        entries = [*stage.get("outs", []), *stage.get("metrics", []), *stage.get("plots", [])]
        for out in [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries]:
            pattern = re.sub(r"\\\$\\\{item\\\.\w+\\\}", r"([\\w-]+)", re.escape(out))
            if (match := re.fullmatch(rf"{pattern}(?:/.*)?", place)) and (not found or _lists(yaml, stage, match)):
                found = "@".join([name, *match.groups()])
    return found


def _lists(yaml: Any, stage: dict[str, Any], match: re.Match[str]) -> bool:
    """Whether the list in params.yaml that the stage's matrix names has the item of `match`."""
    key = str(next(iter(stage.get("matrix", {"": ""}).values()))).strip("${}")
    chosen = yaml.load(Path("params.yaml")) if Path("params.yaml").is_file() else {}
    for part in key.split("."):
        chosen = chosen.get(part, {}) if isinstance(chosen, dict) else {}
    return match.groups()[0] in chosen if match.groups() else False


class KnobError(UserError):
    """A wrong value in a method's block. A method knows its parameters below the block and not its own name.

    `knob` is the parameter's path below the block, and `{block}` stands for the block wherever the problem names
    another parameter. Whoever builds the method raises the user's error with `of`.
    """

    def __init__(self, knob: str, problem: str):
        super().__init__(f"{{block}}.{knob}: {problem}")

    def of(self, block: str) -> UserError:
        """The same error with the block's name, such as `methods.moco`."""
        return UserError(str(self).replace("{block}", block))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Print every exception as one line on stderr and exit with 1, after Ctrl-C with 130. Sets up the log.

    The line of a `UserError` is its message. The line of an error of the system that the user can fix (a full disk, no
    access, no memory) ends with a remedy. The line of a missing input names the stage that writes it. Everything else
    is a fault of the program: the line names the file in .cache/logs that holds the traceback. If several processes of
    a stage fail, only the first prints its line. SELFSUP_LOG=debug prints all tracebacks.
    """
    try:
        logs.configure()
    except ValueError as error:
        sys.exit(f"error: {error}")
    try:
        yield
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - every error is printed as one line
        line = logs.one_line(_line(error))
        _log.debug("this ends the stage", exc_info=error)
        sys.exit(f"error: {line}" if _first() else 1)


def _line(error: Exception) -> str:
    if isinstance(error, UserError):
        return str(error)
    what = f"{error.strerror or error}" if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
    where = f" ({error.filename})" if isinstance(error, OSError) and error.filename else ""
    if isinstance(error, FileNotFoundError) and error.filename and writer(os.fsdecode(error.filename)):
        return str(missing(os.fsdecode(error.filename)))
    if isinstance(error, OSError) and error.errno in REMEDIES:
        return f"{what}{where}: {REMEDIES[error.errno]}"
    if (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "can't allocate mem" in str(error)
    ):
        return f"out of memory ({what[:200]}): {MEMORY}"
    text = logs.traceback_of(error)
    try:
        return f"{what[:300]}{where}: a fault of the program; its traceback is in {logs.keep_fault(text)}"
    except OSError as unwritten:
        print(text, file=sys.stderr)
        return f"{what[:300]}{where}: a fault of the program; its traceback is above ({unwritten.strerror})"


def _first() -> bool:
    """Whether no other process of this stage has printed its error, which is often the same in all of them."""
    folder = os.environ.get(WORKERS)
    if folder is None:
        return True
    try:
        Path(folder, "error").touch(exist_ok=False)
    except FileExistsError:
        return False
    except OSError:  # the launcher was killed
        return True
    return True
