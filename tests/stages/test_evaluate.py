import json
import re
import shutil
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from selfsup.evaluation import protocols
from tests.evaluation import workspace
from tests.helpers import ROOT, values

PROTOCOL = values()["evaluation"]["protocols"][0]


def run(folder, *arguments):
    command = [sys.executable, str(ROOT / "stages/evaluate.py"), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_an_unknown_protocol_is_one_line_with_the_known_ones(tmp_path):
    wrong = f"{PROTOCOL}s"
    done = run(tmp_path, wrong)
    assert done.returncode == 1
    known = ", ".join(protocols.names())
    assert done.stderr == f"error: protocol: unknown {wrong!r}; did you mean {PROTOCOL}? Known: {known}\n"


def test_help_names_the_protocols(tmp_path):
    done = run(tmp_path, "--help")
    assert done.returncode == 0
    assert ", ".join(protocols.names()) in " ".join(done.stdout.split())


def test_it_writes_its_outs_and_nothing_else(tmp_path, hundred):
    workspace.make(tmp_path, hundred, **workspace.quick())
    before = set(tmp_path.rglob("*"))
    done = run(tmp_path, PROTOCOL)
    assert done.returncode == 0, done.stderr
    files = {path.relative_to(tmp_path).as_posix() for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    metrics, folder = f"metrics/evaluate/{PROTOCOL}.json", f"evaluations/{PROTOCOL}/"
    assert {metrics, f"{folder}outcomes.npz", f"{folder}details.json"} <= files
    kept = r"\.cache/evaluations/\w+\.npz"  # results that the next run finds
    assert all(file == metrics or re.fullmatch(rf"{folder}\w+\.(npz|json|csv)|{kept}", file) for file in files)
    assert done.stdout.splitlines()[0].startswith(f"{PROTOCOL}: simclr: ")
    assert json.loads((tmp_path / metrics).read_text())[PROTOCOL]["method"]


def test_a_protocol_that_the_package_does_not_have_goes_through_the_stages(tmp_path, unlabelled_shards):
    """A file in the folder and its block: no other file says its name. The data have no labels."""
    copied = {"ignore": shutil.ignore_patterns("__pycache__")}
    for part in ("stages", "ssl/selfsup"):
        shutil.copytree(ROOT / part, tmp_path / "project" / part, **copied)
    toy = ROOT / "tests/evaluation/toys/nearest.py"
    shutil.copy(toy, tmp_path / "project/ssl/selfsup/evaluation/protocols/nearest.py")
    chosen = {"protocols": ["nearest"], "encoder_protocols": [], "nearest": {"k": 2}}
    (tmp_path / "work").mkdir()
    workspace.make(tmp_path / "work", unlabelled_shards, evaluation=chosen)
    for command in (["check.py"], ["evaluate.py", "nearest"], ["report.py"]):
        script = str(tmp_path / "project/stages" / command[0])
        done = subprocess.run(
            [sys.executable, script, *command[1:]], cwd=tmp_path / "work", capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "work/metrics/evaluate/nearest.json").read_text())
    assert metrics["nearest"]["method"]["distance"] > 0
    assert "cosine distance" in (tmp_path / "work/report/index.html").read_text()


@pytest.mark.parametrize(
    ("block", "line"),
    [
        ({"protocols": ["nothing"]}, "params.yaml: evaluation.protocols: unknown 'nothing'. Known: "),
        ({"protocols": [PROTOCOL]}, f"params.yaml: evaluation.{PROTOCOL}: missing block; add it"),
        ({"protocols": [PROTOCOL], PROTOCOL: {}, "nothing": {}}, "params.yaml: evaluation: unknown 'nothing'. Known: "),
        ({"protocols": [PROTOCOL], PROTOCOL: {}}, f"params.yaml: evaluation.{PROTOCOL}."),
    ],
)
def test_a_wrong_section_fails_before_any_work(tmp_path, block, line):
    YAML().dump(values(evaluation={"encoder_protocols": []} | block), tmp_path / "params.yaml")
    script = str(ROOT / "stages/check.py")
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {line}") and done.stderr.count("\n") == 1
    assert not (tmp_path / "data/needs").exists()


def test_features_of_other_images_are_one_line(tmp_path, hundred):
    workspace.make(tmp_path, hundred)
    (tmp_path / "features/pretrained/train.npy").write_bytes((tmp_path / "features/pretrained/test.npy").read_bytes())
    done = run(tmp_path, PROTOCOL)
    assert done.returncode == 1
    assert done.stderr.startswith("error: features/pretrained/train.npy: 359 rows for ")
    assert done.stderr.count("\n") == 1
