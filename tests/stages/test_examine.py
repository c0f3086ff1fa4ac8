"""The stage `examine`, on a protocol that the package does not have, and on networks that are not there."""

import json
import sys
from pathlib import Path

import pytest
import torch

from selfsup.data.loader import open_split
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.evaluation.run import evaluate, read_inputs
from selfsup.features.encode import encode
from selfsup.imports import PACKAGE, closure
from selfsup.report import page, pictures
from selfsup.training.build import build_task, method_params
from selfsup.training.encoders import encoder_of, save_weights
from tests.evaluation import workspace
from tests.helpers import ROOT, values

BLOCKS = values()["evaluation"]


@pytest.fixture
def project(tmp_path, hundred, monkeypatch, found_in):
    """A folder in which a method that learns nothing was trained, and a protocol of the encoder that is a toy."""
    found_in(ROOT / "tests/evaluation/toys_inside")
    monkeypatch.chdir(tmp_path)
    chosen = BLOCKS | {"encoder_protocols": ["brightness"], "brightness": {"most": 5}}
    small = {"backbones__conv__options": {"width": 2}, "baselines": ["pixels", "random", "supervised"]}
    params = workspace.make(tmp_path, hundred, evaluation=chosen, **small)
    split = open_split(hundred, "train", params.data)
    encoder = encoder_of("random", params, split)
    task = build_task(params, params.method, method_params(params, params.method), split)
    task.encoder().load_state_dict(encoder.state_dict())
    digest = save_weights(task, Path("models/pretrained/task.safetensors"))
    splits = {name: open_split(hundred, name, params.data) for name in ("train", "validation", "test")}
    arrays = {name: encode(encoder, own, torch.device("cpu")).detach().numpy() for name, own in splits.items()}
    for place, meta in {"pretrained": {"method": params.method, "weights": digest}, "baselines/random": {}}.items():
        workspace.write_features(tmp_path / "features" / place, meta | {"backbone": "conv"}, arrays)
    return params


def run(name, monkeypatch):
    """The stage's `main`, in this process."""
    monkeypatch.syspath_prepend(ROOT / "stages")
    monkeypatch.setattr(sys, "argv", ["stages/examine.py", name])
    import examine

    examine.main()


def test_a_toy_protocol_of_the_encoder_goes_through_stage_metrics_and_page(project, monkeypatch, capsys):
    Path("features/baselines/supervised/meta.json").write_text('{"skipped": "no time"}')
    run("brightness", monkeypatch)
    assert capsys.readouterr().out.startswith("brightness: simclr: size ")
    rows = json.loads(Path("metrics/evaluate/brightness.json").read_text())["brightness"]
    assert list(rows) == ["features", "method", "random", "pixels"], "the majority row has no network"
    assert rows["method"]["size"] == rows["random"]["size"] > 0 and rows["pixels"]["size"] != rows["random"]["size"]
    monkeypatch.setattr(pictures, "POINTS", 40)
    page.write_report(project, read_inputs(project), Path("report/index.html"))
    text = Path("report/index.html").read_text()
    assert "mean length" in text and "<h3>Lengths</h3>" in text
    assert "<h2>Pictures</h2>" in text and "“brightness”" in text
    assert text.count('alt="First image: an image"') == 1, "a picture that all rows share is shown once"
    assert 'href="map.html"' in text and Path("report/map.html").exists()


@pytest.mark.usefixtures("project")
def test_a_network_that_is_not_there_is_one_line_with_its_stage(monkeypatch):
    with pytest.raises(UserError, match=r"^models/baselines/\S+: not found; run `dvc repro baseline` first$"):
        run("brightness", monkeypatch)
    Path("models/pretrained/task.safetensors").write_bytes(b"of another training")
    with pytest.raises(UserError, match=r"not extracted from models/pretrained/\S+; run dvc repro extract"):
        run("brightness", monkeypatch)


def test_the_code_of_a_row_is_that_of_its_network_and_of_what_it_sees(project, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "stages")
    import examine

    monkeypatch.setattr(examine, "code_digest", lambda *starts, **choices: closure(starts, choices))
    files = {str(path.relative_to(PACKAGE)) for path in examine.networks(project).code("method")}
    assert {"views/image/__init__.py", "nets/image.py", f"methods/{project.method}.py"} <= files
    assert "methods/supervised.py" not in files


def test_another_method_with_the_same_network_examines_no_baseline_again(project, monkeypatch, capsys):
    Path("features/baselines/supervised/meta.json").write_text('{"skipped": "no time"}')
    run("brightness", monkeypatch)
    Path("params.yaml").write_text(Path("params.yaml").read_text().replace("method: simclr", "method: byol", 1))
    split = open_split("data/shards", "train", project.data)
    task = build_task(project, "byol", method_params(project, "byol"), split)
    digest = save_weights(task, Path("models/pretrained/task.safetensors"))
    meta = {"method": "byol", "weights": digest, "backbone": "conv"}
    Path("features/pretrained/meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    run("brightness", monkeypatch)
    lines = capsys.readouterr().out.splitlines()
    kept = {line.split(": ")[1]: line.endswith("(kept from an earlier run)") for line in lines[:3]}
    assert kept == {"byol": False, "random": True, "pixels": True}


def test_the_other_stage_names_this_one(project):
    with pytest.raises(UserError, match=r"^brightness: looks inside the network; run `dvc repro examine@brightness`$"):
        evaluate("brightness", project)
    assert protocols.find("knn").stage == "evaluate@knn"


@pytest.mark.usefixtures("project")
def test_images_are_needed_and_the_data_are_of_another_kind(monkeypatch, capsys):
    monkeypatch.setattr("selfsup.evaluation.networks.Networks.kind", "text")
    run("brightness", monkeypatch)
    assert capsys.readouterr().out == "brightness: skipped, needs images: the data set is of the kind text\n"
