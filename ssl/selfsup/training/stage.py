"""A stage that trains or extracts, on NPROC processes. Its checkpoints are its own, and are deleted at its end."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfsup.data.loader import open_splits
from selfsup.processes import launch, signals
from selfsup.training import session

ROOT = Path(os.environ.get("DVC_ROOT", "."))


def alone(stage: str, params: Any, method: str, architecture: str, work: Callable[[Any, Path, int], None]) -> None:
    """Run `work(splits, resume, count)` on NPROC processes, and keep other runs out of the folder `resume`.

    Checkpoints are deleted only after the outputs are written. The launching process and the first worker hold separate
    locks, so a rerun after the launcher was killed waits until the old workers have exited.
    """
    count, worker = launch.processes(), launch.inside()
    splits = open_splits(params.data, verified=worker)
    resume = session.resume_folder(ROOT, stage, params, method, architecture, splits["train"].checksum)
    if not worker:
        launch.check_devices(count)
    with contextlib.nullcontext() if worker else session.owned(resume):
        if not worker and count > 1:
            clear = launch.relaunch(count)
        else:
            import accelerate  # noqa: F401 - see below

            # Only now: an exception that the handler raises during an import from C is printed and swallowed.
            signals.stop_on_sigterm()
            writer = session.owned(resume, "writer") if launch.first_process() else contextlib.nullcontext()
            with writer, launch.quiet_when_left_alone():
                work(splits, resume, count)
            clear = not worker
        if clear:
            signals.ignore_requests()  # the work is done and the checkpoints go: the stage must not report a failure
            session.finished(resume)
