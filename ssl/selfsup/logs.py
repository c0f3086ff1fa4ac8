"""The project's log: Python's logging on stderr, by one configuration; and the tracebacks of faults, in files.

SELFSUP_LOG=warning dvc repro      no notes, only warnings and errors; debug | info (the default) | warning | error
SELFSUP_LOG=debug dvc repro        every step with its time and module, and the traceback of every error

A module logs with `logging.getLogger("selfsup.<module>")`. Results are not logged: stages print them on stdout.
"""

import copy
import logging
import os
import platform
import shlex
import sys
import time
import traceback
from pathlib import Path

LEVELS = ("debug", "info", "warning", "error")
KEPT = 20  # files of tracebacks, the newest
_LONGEST = 200_000  # characters of one file


def one_line(text: str) -> str:
    """One line: line ends and other control characters, such as in names of files and classes, are escaped."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class _Stderr(logging.Handler):
    """Writes to the current `sys.stderr`, which a worker process replaces by the launcher's."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text, record = record.getMessage(), copy.copy(record)
            record.msg, record.args = one_line(text.lstrip("\n")), ()
            lead = "\n" if text.startswith("\n") else ""  # below a progress bar
            print(lead + self.format(record), file=sys.stderr, flush=True)
        except Exception:  # noqa: BLE001 - a log that fails must not end the run
            self.handleError(record)


def level() -> str:
    """SELFSUP_LOG from the environment. Raises `ValueError`."""
    name = os.environ.get("SELFSUP_LOG", "info").lower()
    if name not in LEVELS:
        raise ValueError(f"SELFSUP_LOG={name}: must be one of {', '.join(LEVELS)}")
    return name


def configure() -> None:
    """Log records of the level of SELFSUP_LOG or above to stderr. Raises `ValueError` for an unknown level."""
    name = level()
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if isinstance(handler, _Stderr)]:
        root.removeHandler(old)
    handler = _Stderr(name.upper())
    debug = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(logging.Formatter(debug if name == "debug" else "%(message)s"))
    root.addHandler(handler)  # libraries' warnings are logged in the same way
    logging.getLogger("selfsup").setLevel(name.upper())


def keep_fault(text: str) -> Path:
    """Write a fault's traceback to a new file in .cache/logs and keep the newest `KEPT` files. Raises `OSError`."""
    folder = Path(os.environ.get("DVC_ROOT") or ".", ".cache", "logs")
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(sys.argv[0]).stem or "python"
    path = folder / f"{stage}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST // 2]}\n... cut ...\n{text[-_LONGEST // 2 :]}"
    where = f"Python {platform.python_version()}, {platform.platform()}, in {Path.cwd()}"
    path.write_text(f"{shlex.join(sys.argv)}\n{where}\n\n{text}", encoding="utf-8", errors="backslashreplace")
    for old in sorted(folder.glob("*.log"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
    return path


def traceback_of(error: BaseException) -> str:
    """The whole traceback, including the causes'."""
    return "".join(traceback.format_exception(error))
