"""Comparisons by DVC itself, with stages that take a moment: what is run, what is found again, what a stop leaves."""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from selfsup.compare import gather, jobs, run
from selfsup.compare.jobs import DONE, QUEUED
from selfsup.errors import UserError
from tests.compare import project

METHODS = ["--methods", "simclr", "byol", "moco", "--seeds", "0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory, shards) -> Path:
    """The project. DVC is on PATH, and reports to nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        patch.setenv("DVC_NO_ANALYTICS", "true")
        yield project.make(tmp_path_factory.mktemp("a folder with spaces"), shards, patch)


def asked(root: Path, *words: str) -> run.Asked:
    return run.ask(root, run.options(root).parse_args(list(words)), "the command")


def state(root: Path) -> tuple:
    """All that is the user's: files, index, branch and stashes."""
    words = (["status", "--porcelain"], ["rev-parse", "--abbrev-ref", "HEAD"], ["stash", "list"], ["diff", "--cached"])
    said = [subprocess.run(["git", *one], cwd=root, capture_output=True, text=True).stdout for one in words]
    return (*said, (root / "params.yaml").read_bytes(), (root / "params.yaml").stat().st_mtime_ns)


def noted(root: Path) -> set[str]:
    """The stages that were really run since the last call."""
    folder = root / ".cache/asked"
    names = {path.name for path in folder.glob("*-*")}
    shutil.rmtree(folder, ignore_errors=True)
    return names


def test_a_run_by_hand_is_found_what_is_missing_is_run_and_the_workspace_stays(root):
    with (root / "params.yaml").open("a") as file:
        file.write("# not committed\n")
    subprocess.run(["dvc", "exp", "run", "--quiet", "--temp", "evaluate"], cwd=root, check=True, capture_output=True)
    noted(root)
    (root / ".cache/asked").mkdir(parents=True)
    (root / ".cache/asked/fail").write_text("pretrain moco")
    found, before = asked(root, *METHODS), state(root)
    assert [one.state for one in found.jobs] == [DONE, QUEUED, QUEUED]
    run.execute(found, 1)
    assert state(root) == before
    one, other = (f"{{}}-{method}-0".format for method in ("byol", "moco"))
    assert noted(root) == {*map(one, ("check", "watch", "pretrain", "extract", "evaluate"))} | {
        *map(other, ("check", "watch", "pretrain"))
    }
    comparison = run.collected(found)
    assert (comparison.rows, comparison.seeds) == (["simclr", "byol", "moco"], [0])
    assert [(one.row, one.reason) for one in comparison.absent] == [("moco", "moco cannot be trained on this")]
    simclr, byol = comparison.runs
    assert simclr.conditions == byol.conditions and simclr.images == byol.images
    assert byol.experiment.startswith("byol-s0-") and byol.command == "dvc exp run evaluate -S method=byol"
    assert byol.found["knn"].results["method"].metrics["top1"].value > 0.5
    assert list(byol.found["knn"].results) == ["method", "supervised", "random", "pixels", "majority"]
    assert byol.curve[-1] == {"step": 2.0, "loss": 2.0, "spread": 0.5} and byol.classes == list("0123456789")
    assert [one.state for one in asked(root, *METHODS).jobs] == [DONE, DONE, QUEUED]
    assert {one.state for one in asked(root, *METHODS, "-S", "pretrain.epochs=9").jobs} == {QUEUED}


def test_the_runs_of_a_killed_comparison_end_and_the_same_command_finishes_them(root):
    folder, copies = root / ".cache/asked", root / ".cache/compare/runs"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "wait").touch()
    moco = ["--methods", "moco", "--seeds", "0"]
    child = subprocess.Popen([sys.executable, "compare/run.py", *moco], cwd=root, stderr=subprocess.DEVNULL)
    until(lambda: (folder / "waiting").exists())
    child.kill()
    child.wait()
    until(lambda: not working(copies))
    assert [path for path in copies.iterdir() if path.is_dir()], "nobody was there to remove it"
    (folder / "wait").unlink()
    found = asked(root, *moco)
    run.execute(found, 1)
    assert found.jobs[0].state == DONE, found.jobs[0].reason
    assert not [path for path in copies.iterdir() if path.is_dir()]


def until(true, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def working(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder.resolve()):
                found.append(process.name)
        except OSError:
            continue
    return found


def test_parameters_that_were_edited_after_a_run_do_not_change_what_it_is(root, monkeypatch):
    byol = ["--methods", "byol", "--seeds", "0"]
    before = asked(root, *byol).jobs[0].found
    edited = replace(before, values={**before.values, "method": "moco", "seed": 9})
    monkeypatch.setattr(gather, "experiments", lambda _: [edited])
    (found,) = run.collected(asked(root, *byol)).runs
    assert (found.method, found.seed, list(found.found), found.skipped) == ("byol", 0, ["knn"], {})
    assert found.command == "dvc exp run evaluate -S method=byol"


def test_a_run_on_data_that_changed_meanwhile_is_not_shown(root):
    found = asked(root, "--methods", "byol", "simclr", "--seeds", "0")
    byol = found.jobs[0]
    byol.wanted = replace(byol.wanted, given={**byol.wanted.given, "data/watched.txt": "other"})
    jobs.Runner(found.project, found.cache, 1, print)._check(byol)
    assert byol.state == jobs.FAILED and byol.reason.startswith("not what was asked for: ")
    comparison = run.collected(found)
    assert [one.row for one in comparison.runs] == ["simclr"] and comparison.absent[0].reason == byol.reason


def test_the_leaderboard_has_every_run_of_this_data(root):
    args = run.options(root).parse_args(["--leaderboard"])
    comparison = run.leaderboard_of(root, args, "the command")
    assert comparison.rows == ["byol", "moco", "simclr"]
    assert all(one.conditions == comparison.runs[0].conditions for one in comparison.runs)
    with pytest.raises(
        UserError, match=r"^no experiment of this data set is done; run one: .*: \d experiments of other"
    ):
        run.leaderboard_of(root, run.options(root).parse_args(["--leaderboard", "-S", "data.limit=50"]), "c")


def test_a_comparison_that_another_process_makes_is_refused_and_shown_so_far(root, monkeypatch, capsys):
    from selfsup.compare import workspace

    monkeypatch.chdir(root)
    with workspace.held(root / workspace.PLACE / "methods.lock"):
        monkeypatch.setattr(sys, "argv", ["run", *METHODS])
        with pytest.raises(UserError, match=r"^methods: another process is making this comparison"):
            run.main()
        monkeypatch.setattr(sys, "argv", ["run", *METHODS, "--done"])
        run.main()
    assert capsys.readouterr().out == "comparison: compare/methods/index.html\n"


def test_without_dvc_or_git_one_line_says_what_to_do(root, tmp_path, monkeypatch):
    found = asked(root, "--methods", "swav", "--seeds", "0")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match=r"^dvc is not on PATH: activate the environment first"):
        run.execute(found, 1)
    with pytest.raises(UserError, match=r"^git is not on PATH: install it"):
        asked(root, *METHODS)
