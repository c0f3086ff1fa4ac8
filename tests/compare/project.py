"""A project whose pipeline is real and whose stages are not: each copies prepared outputs in a moment.

DVC, git, the code in the package and params.yaml are those of the project, so that dvc.lock is a true one.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from ruamel.yaml import YAML

from selfsup import needs
from selfsup.params import Params
from tests.evaluation import workspace
from tests.helpers import ROOT, params, values

STAGE = """
import json, os, re, shutil, sys, time
from pathlib import Path

name, given = Path(sys.argv[0]).stem, Path({prepared!r})
text = Path("params.yaml").read_text()
method, seed = re.search(r"^method: (\\w+)", text, re.M)[1], int(re.search(r"^seed: (\\d+)", text, re.M)[1])
note = Path(os.environ["DVC_ROOT"], ".cache", "asked")
(note / f"{{name}}-{{method}}-{{seed}}").mkdir(parents=True, exist_ok=True)
if (note / "fail").exists() and (note / "fail").read_text() == f"{{name}} {{method}}":
    sys.exit(f"error: {{method}} cannot be trained on this")
if name == "pretrain" and (note / "wait").exists():
    (note / "waiting").touch()
    time.sleep(600)
for source in sorted((given / " ".join([name, *sys.argv[1:]])).rglob("*")):
    target = source.relative_to(given / " ".join([name, *sys.argv[1:]]))
    if source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)
        if target.suffix == ".safetensors":
            target.write_text(f"weights of {{method}}, seed {{seed}}")
        if target.suffix == ".json" and target.parts[0] == "metrics":
            found = json.loads(target.read_text())
            target.write_text(json.dumps(found | {{"method": method, "seed": seed}}))
"""
OUTS = {
    "check": ["data/needs/shards.json", "data/needs/backbone.json"],
    "watch": ["data/watched.txt"],
    "shard": ["data/shards"],
    "pretrain": ["models/pretrained", "models/backbone", "metrics/pretrain.json", "metrics/times/pretrain.json",
                 "plots/pretrain.csv"],
    "extract": ["features/pretrained", "metrics/extract.json", "metrics/times/extract.json"],
    "baseline pixels": ["features/baselines/pixels"],
    "baseline backbone": ["features/baselines/random", "features/baselines/supervised", "models/baselines",
                          "metrics/baseline.json", "metrics/times/baseline.json", "plots/baseline.csv"],
    "evaluate knn": ["evaluations/knn", "metrics/evaluate/knn.json"],
}  # fmt: skip
CHOSEN = {"evaluation__protocols": ["knn"], "tracking__enabled": False}


def prepared(folder: Path, shards: Path, monkeypatch) -> None:
    """What the stages write, in a folder per stage."""
    whole = folder / "whole"
    whole.mkdir(parents=True)
    used = workspace.make(whole, shards)
    with monkeypatch.context() as patch:
        patch.chdir(whole)
        workspace.evaluate("knn", used)
    (whole / "data/watched.txt").write_text("images: not watched, digits are part of scikit-learn\n")
    run = {"backbone": "conv", "weights": "w", "alarm": None, "loss": 1.0, "last": {}, "computed_from": {}}
    written = {
        "metrics/pretrain.json": json.dumps(run),
        "metrics/times/pretrain.json": json.dumps({"seconds": 9.0, "images_per_second": 100.0}),
        "plots/pretrain.csv": "step,loss,spread\n1,3.0,\n2,2.0,0.5\n",
        "models/pretrained/task.safetensors": "weights",
        "metrics/extract.json": json.dumps({"computed_from": {"weights": "w"}, "features": _features(whole)}),
    }
    for name, text in written.items():
        (whole / name).parent.mkdir(parents=True, exist_ok=True)
        (whole / name).write_text(text)
    for stage, outs in OUTS.items():
        for out in outs:
            source, target = whole / out, folder / "stages" / stage / out
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copyfile(source, target)
            else:
                target.write_text("{}\n")


def _features(whole: Path) -> str:
    return json.loads((whole / "metrics/evaluate/knn.json").read_text())["computed_from"]["features"]["method"]


def make(folder: Path, shards: Path, monkeypatch) -> Path:
    """The project in `folder`/project, committed."""
    prepared(folder / "prepared", shards, monkeypatch)
    root = folder / "project"
    root.mkdir()
    for name in ("ssl", "compare", "setups", ".dvc", "dvc.yaml", ".dvcignore", ".gitignore"):
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "tmp", "cache", "config.local", "*.egg-info")
            shutil.copytree(ROOT / name, root / name, ignore=ignored)
        else:
            shutil.copyfile(ROOT / name, root / name)
    (root / "stages").mkdir()
    for path in (ROOT / "stages").glob("*.py"):
        (root / "stages" / path.name).write_text(STAGE.format(prepared=str(folder / "prepared/stages")))
    YAML().dump(values(**CHOSEN), root / "params.yaml")
    commit(root)
    return root


def commit(root: Path) -> None:
    who = ["-c", "user.name=A", "-c", "user.email=a@b.c"]
    for words in (["init", "--quiet"], ["add", "."], [*who, "commit", "--quiet", "--message", "A"]):
        subprocess.run(["git", *words], cwd=root, check=True)


def needed(root: Path, used: Params | None = None) -> None:
    """The files in data/needs that `check` would write."""
    needs.write(used or params(**CHOSEN), "image", "conv", root)
