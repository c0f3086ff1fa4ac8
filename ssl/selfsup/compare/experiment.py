"""DVC experiments that a script runs one after another in the workspace."""

import shutil
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
    report is made. Raises `UserError`, which names `title`, when the run fails, and when there is no DVC on PATH or an
    experiment that was killed could not put params.yaml back.
    """
    params, before = root / "params.yaml", root / "params.before.yaml"
    if before.exists():
        raise UserError(
            f"{params.name} may hold the settings of an experiment that was killed; what it held before is in "
            f"{before.name}: move that to its place, or remove it"
        )
    if not shutil.which("dvc"):
        raise UserError("dvc is not on PATH: activate the environment first, `source .venv/bin/activate`")
    with replaced(before) as new:
        new.write_bytes(params.read_bytes())
    try:
        words = [word for override in overrides for word in ("-S", override)]
        if subprocess.run(["dvc", "exp", "run", "evaluate", *words], cwd=root).returncode:
            raise UserError(
                f"{title} failed; fix the error above, then run the same command again: what is done is kept"
            )
        yield
    finally:
        before.replace(params)
