import subprocess
import sys

from tests.evaluation import workspace
from tests.helpers import ROOT


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "stages/report.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_it_writes_the_page_and_the_map_and_nothing_else(tmp_path, unlabelled_shards):
    workspace.make(tmp_path, unlabelled_shards)
    before = set(tmp_path.rglob("*"))
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    files = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert files == {"report/index.html", "report/map.html"}


def test_nothing_to_report_is_one_line(tmp_path):
    done = run(tmp_path)
    assert done.returncode == 1
    assert done.stderr == f"error: params.yaml: not found; run from the project's root, {ROOT}\n"


def test_help(tmp_path):
    assert "self-contained page" in run(tmp_path, "--help").stdout
