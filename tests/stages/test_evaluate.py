import json
import subprocess
import sys

from tests.evaluation import workspace
from tests.helpers import ROOT


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "stages/evaluate.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_an_unknown_protocol_is_one_line_with_the_known_ones(tmp_path):
    done = run(tmp_path, "few_labels")
    assert done.returncode == 1
    expected = "error: protocol: unknown 'few_labels'; did you mean few_label? Known: few_label, knn, linear\n"
    assert done.stderr == expected


def test_help_names_the_protocols(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert "few_label, knn, linear" in done.stdout


def test_it_writes_its_outs_and_nothing_else(tmp_path, hundred):
    workspace.make(tmp_path, hundred)
    before = set(tmp_path.rglob("*"))
    done = run(tmp_path, "knn")
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert files == {
        "metrics/evaluate/knn.json",
        *(f"evaluations/knn/{name}" for name in ("outcomes.npz", "details.json", "confusion.csv", "per_class.csv")),
    }
    assert done.stdout.splitlines()[0].startswith("knn: simclr: top1 ")
    assert json.loads((tmp_path / "metrics/evaluate/knn.json").read_text())["knn"]["method"]["top1"] > 0.5


def test_features_of_other_images_are_one_line(tmp_path, hundred):
    workspace.make(tmp_path, hundred)
    (tmp_path / "features/pretrained/train.npy").write_bytes((tmp_path / "features/pretrained/test.npy").read_bytes())
    done = run(tmp_path, "linear")
    assert done.returncode == 1
    assert done.stderr.startswith("error: features/pretrained/train.npy: 359 rows for ")
    assert done.stderr.count("\n") == 1
