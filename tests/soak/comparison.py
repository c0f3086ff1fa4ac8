"""A comparison twice from scratch, the second time killed again and again: equal tables, equal figures, nothing left.

    python -m tests.soak.comparison --methods simclr byol mae --seeds 0 1 2 --kills 5
    python -m tests.soak.comparison --methods simclr byol --seeds 0 1 -S pretrain.epochs=2 -S pretrain.warmup_epochs=0.2

Each time in a new clone of the project's last commit, with a DVC cache of its own. Every other kill is SIGKILL, the
others SIGTERM; the moments are drawn from --seed. After a SIGKILL, no process of the comparison may be left half a
minute later. In the end, the outputs of all experiments must have equal checksums but for times, index.md and index.csv
equal bytes, and the clone must be as it was.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from selfsup.compare import gather
from tests.helpers import ROOT

NOT_COMPARED = ("metrics/times/", "models/backbone")  # the exported program notes the folder that it was made in
TABLES = ("index.md", "index.csv")
PATIENCE = 30  # seconds in which the processes of a killed comparison must have ended


def clone(folder: Path) -> Path:
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / "own.txt").write_text("the user's\n")
    with (folder / "params.yaml").open("a") as file:
        file.write("# a change that was not committed\n")
    return folder


def started(folder: Path, words: list[str]) -> subprocess.Popen:
    with (folder / "../out.log").resolve().open("a") as log:
        return subprocess.Popen(
            [sys.executable, "compare/run.py", *words], cwd=folder, stdout=log, stderr=log, start_new_session=True
        )


def left(folder: Path) -> list[str]:
    """Processes that work in the clone."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder.resolve()):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def killed(folder: Path, words: list[str], kills: int, draw: random.Random) -> None:
    """Run the comparison to its end, and kill it `kills` times on the way."""
    for number in range(kills):
        process = started(folder, words)
        wait = draw.uniform(2, 60)
        try:
            process.wait(timeout=wait)
            print(f"kill {number}: it was done before", flush=True)
            return
        except subprocess.TimeoutExpired:
            pass
        how = signal.SIGTERM if number % 2 else signal.SIGKILL
        process.send_signal(how)
        process.wait()
        end = time.monotonic() + PATIENCE
        while left(folder) and time.monotonic() < end:
            time.sleep(0.2)
        assert not left(folder), left(folder)
        print(f"kill {number}: {how.name} after {wait:.0f} s; all processes ended", flush=True)
    finish(folder, words)


def finish(folder: Path, words: list[str]) -> None:
    if started(folder, words).wait():
        sys.exit((folder / "../out.log").resolve().read_text()[-2_000:])


def outputs(folder: Path) -> dict[str, dict[str, str]]:
    """By experiment: the checksums of its outputs."""
    found = {}
    for one in gather.experiments(folder):
        kept = {path: total for path, total in one.made.items() if not path.startswith(NOT_COMPARED)}
        found[f"{one.values['method']}, seed {one.values['seed']}"] = kept
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    args, words = parser.parse_known_args()
    draw = random.Random(args.seed)
    with tempfile.TemporaryDirectory(prefix="comparison-") as scratch:
        first, second = (clone(Path(scratch, name, "project")) for name in ("whole", "killed"))
        finish(first, words)
        killed(second, words, args.kills, draw)
        of_first, of_second = outputs(first), outputs(second)
        assert of_first and of_first == of_second, differences(of_first, of_second)
        (pages,) = [path.parent for path in (first / "compare").glob("*/index.html")]
        for name in TABLES:
            assert (pages / name).read_bytes() == (second / "compare" / pages.name / name).read_bytes(), name
        for folder in (first, second):
            status = subprocess.run(["git", "status", "--short"], cwd=folder, capture_output=True, text=True).stdout
            assert status.splitlines() == [" M params.yaml", "?? own.txt"], status
            assert not [path for path in (folder / ".cache/compare/runs").iterdir() if path.is_dir()]
            stashes = subprocess.run(["git", "stash", "list"], cwd=folder, capture_output=True, text=True).stdout
            assert not stashes, stashes
        print((pages / TABLES[0]).read_text())
    print(f"{len(of_first)} experiments: equal outputs, equal tables")


def differences(a: dict[str, dict[str, str]], b: dict[str, dict[str, str]]) -> str:
    lines = [f"{key}: {path}" for key in a for path in a[key] if a[key][path] != b.get(key, {}).get(path)]
    return "; ".join(lines) or f"{sorted(a)} and {sorted(b)}"


if __name__ == "__main__":
    main()
