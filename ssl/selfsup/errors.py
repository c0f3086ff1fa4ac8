"""The one exception that reaches the user as a line instead of a traceback."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


def _line(text: str) -> str:
    """One line, whatever is in the names of files and classes: line ends and other controls are written out."""
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


class UserError(Exception):
    """Something the user can mend. The message names the file or parameter and the remedy, in one line."""

    def __str__(self) -> str:
        return _line(super().__str__())


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a `UserError`, and an operating-system error such as a full disk, into one line on stderr and exit 1.

    Ctrl-C is a line and exit 130.
    """
    try:
        yield
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        what = f"error: {error.strerror or error}{where}: free space or mend access, then run the same command again"
        sys.exit(_line(what))
