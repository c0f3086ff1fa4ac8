"""A stage that trains: on NPROC processes, alone with its checkpoints, which are deleted when its outs are written."""

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from selfsup.data.loader import open_splits
from selfsup.processes import launch
from selfsup.training import session

ROOT = Path(os.environ.get("DVC_ROOT", "."))


def alone(stage: str, params: Any, method: str, work: Callable[[Any, Path, int], None]) -> None:
    """Run `work(splits, resume, count)` on NPROC processes, alone with the resume folder of exactly this run.

    The checkpoints go only when nothing is left to do: until then, who stops the stage loses no training.
    The process that launches holds one lock and the first worker another, so that a run that is given again when the
    launcher was killed waits for the last worker's end.
    """
    count, worker = launch.processes(), launch.inside()
    splits = open_splits(params.data, verified=worker)
    resume = session.resume_folder(ROOT, stage, params, method, splits["train"].checksum)
    if not worker:
        launch.check_devices(count)
    with contextlib.nullcontext() if worker else session.owned(resume):
        if not worker and count > 1:
            clear = launch.relaunch(count)
        else:
            import accelerate  # noqa: F401 - before the handler: an import from C drops what a handler raises, aloud

            launch.stop_on_sigterm()
            writer = session.owned(resume, "writer") if launch.first_process() else contextlib.nullcontext()
            with writer, launch.quiet_when_left_alone():
                work(splits, resume, count)
            clear = not worker
        if clear:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)  # a stage without checkpoints must not seem to have failed
            session.finished(resume)
