"""The copy in which an experiment runs has the user's files; whatever happens there, the user's stay as they are."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from selfsup.compare import child, git, workspace
from selfsup.errors import UserError


def in_git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    return subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


@pytest.fixture
def project(tmp_path) -> Path:
    root = tmp_path / "project"
    (root / "ssl").mkdir(parents=True)
    (root / ".gitignore").write_text("/.cache/\n")
    for name, text in {
        "ssl/a.py": "1",
        "params.yaml": "seed: 0\n",
        "gone.txt": "x",
        ".dvc/config": "",
        "notes": "1",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    in_git(root, "init", "--quiet")
    in_git(root, "add", ".")
    in_git(root, "commit", "--quiet", "--message", "A")
    (root / "ssl/a.py").write_text("changed")
    (root / "ssl/new.py").write_text("never added")
    (root / "large.bin").write_text("never added, of no stage")
    (root / "notes").write_text("staged")
    in_git(root, "add", "notes")
    (root / "gone.txt").unlink()
    return root


def test_uncommitted_changes_are_in_the_copy_and_stay_where_they_are(project, tmp_path):
    before = in_git(project, "status", "--porcelain"), (project / ".git/index").read_bytes()
    taken = git.snapshot(project)
    with workspace.made(project, taken, "name", "key", tmp_path / "cache", ["seed=3"]) as copy:
        files = {path.relative_to(copy.folder).as_posix() for path in copy.folder.rglob("*") if path.is_file()}
        assert {name for name in files if not name.startswith(".")} == {
            "ssl/a.py",
            "ssl/new.py",
            "params.yaml",
            "notes",
        }
        assert (copy.folder / "ssl/a.py").read_text() == "changed"
        assert (copy.folder / "params.yaml").read_text() == "seed: 3\n"
        assert str(tmp_path / "cache") in (copy.folder / ".dvc/config.local").read_text()
        assert in_git(copy.folder, "rev-parse", "HEAD") == in_git(project, "rev-parse", "HEAD")
        with (
            pytest.raises(workspace.InUse),
            workspace.made(project, taken, "name", "key", tmp_path / "cache", []),
        ):
            pass
        workspace.tidy(project)
        assert copy.folder.exists(), "it is in use"
    assert not copy.folder.exists()
    assert (in_git(project, "status", "--porcelain"), (project / ".git/index").read_bytes()) == before


def test_what_a_killed_process_left_is_removed(project):
    (project / workspace.PLACE / "runs/abc/ssl").mkdir(parents=True)
    workspace.tidy(project)
    assert not (project / workspace.PLACE / "runs/abc").exists()


@pytest.mark.parametrize(
    ("prepare", "message"),
    [
        (lambda root: None, "no git repository here; run `git init`, then commit"),
        (lambda root: in_git(root, "init"), "the git repository has no commit yet; commit the project"),
        (lambda root: in_git(root.parent, "init"), "the git repository is "),
    ],
)
def test_without_a_repository_or_a_commit_one_line_says_what_to_do(prepare, message, tmp_path):
    root = tmp_path / "outer/project"
    root.mkdir(parents=True)
    prepare(root)
    with pytest.raises(UserError) as error:
        git.snapshot(root)
    assert str(error.value).startswith(message)


def test_only_experiments_are_listed_the_newest_first(project):
    head = in_git(project, "rev-parse", "HEAD").strip()
    for ref in ("exps/ab/cdef/mine", "exps/exec/EXEC_HEAD", "exps/stash", "exps/celery/stash"):
        in_git(project, "update-ref", f"refs/{ref}", head)
    assert git.experiments(project) == [("mine", head)]


SCRIPT = """
import signal, subprocess, sys, time
from pathlib import Path

def stop(number, _):
    Path(sys.argv[1], "asked").write_text(str(number))
    if {obeys}:
        sys.exit(3)

signal.signal(signal.SIGINT, stop)
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(2, signal.SIG_IGN); time.sleep(600)"])
Path(sys.argv[1], "started").touch()
while True:
    time.sleep(0.05)
"""


@pytest.mark.parametrize("obeys", [True, False])
def test_a_command_whose_parent_is_gone_is_asked_to_stop_and_all_its_processes_end(obeys, tmp_path):
    (tmp_path / "work.py").write_text(SCRIPT.format(obeys=obeys))
    quick = Path(child.__file__).read_text().replace("GRACE = 15", "GRACE = 1")
    (tmp_path / "child.py").write_text(quick)
    words = [sys.executable, "-I", tmp_path / "child.py", tmp_path / "log", sys.executable, "work.py", tmp_path]
    process = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE)
    wait_for(lambda: (tmp_path / "started").exists())
    process.send_signal(signal.SIGTERM)  # not a request: those come from the parent
    time.sleep(0.1)
    assert process.poll() is None
    process.stdin.close()
    assert process.wait(timeout=20) == child.STOPPED
    assert (tmp_path / "asked").read_text() == str(int(signal.SIGINT))
    wait_for(lambda: not working(tmp_path))


def test_a_commands_status_is_passed_on_and_what_it_left_behind_is_ended(tmp_path):
    left = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); sys.exit(7)"
    )
    words = [sys.executable, "-I", child.__file__, tmp_path / "log", sys.executable, "-c", left]
    process = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE)
    assert process.wait(timeout=20) == 7
    wait_for(lambda: not working(tmp_path))


def test_a_request_to_stop_reaches_the_command(project, tmp_path):
    stop = threading.Event()
    with workspace.made(project, git.snapshot(project), "name", "key", tmp_path / "cache", []) as copy:
        threading.Timer(0.5, stop.set).start()
        assert copy.run([sys.executable, "-c", "import time; time.sleep(600)"], dict(os.environ), stop) == child.STOPPED


def working(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cwd").readlink().is_relative_to(folder) and "Z" not in (
                process / "stat"
            ).read_text().split()[2]:
                found.append(process.name)
        except OSError:
            continue
    return found


def wait_for(true, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)
