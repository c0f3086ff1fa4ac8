"""DVC experiments that a script runs one after another in the workspace."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from selfsup.errors import UserError
from selfsup.files import replaced


@contextmanager
def experiment(root: Path, overrides: Sequence[str], title: str) -> Iterator[None]:
    """`dvc exp run evaluate -S ...`, overrides `a.b=c` or `~a.b`; inside, params.yaml and results are the run's.

    Afterwards params.yaml is as it was: DVC leaves overrides in it, where the next experiment would find them. No
    report is made. Raises `UserError`, which names `title`, when the run fails.
    """
    params = root / "params.yaml"
    before = params.read_bytes()
    try:
        words = [word for override in overrides for word in ("-S", override)]
        if subprocess.run(["dvc", "exp", "run", "evaluate", *words], cwd=root).returncode:
            raise UserError(f"{title} failed; mend it and run the same command again: what is done is kept")
        yield
    finally:
        with replaced(params) as new:
            new.write_bytes(before)
