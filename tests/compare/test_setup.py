"""Set-ups are checked files in the form of params.yaml, and DVC reads the flags made of them as they were meant."""

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from selfsup.compare import setup
from selfsup.config import parse
from selfsup.errors import UserError
from selfsup.nets.image import build_backbone
from selfsup.params import Params
from tests.helpers import ROOT

SETUPS = setup.names(ROOT)
BASE = setup.base_of(ROOT)
GREY = SimpleNamespace(mean=[0.5] * 3, std=[0.5] * 3)


def by_dvc(values: dict, words: list[str], folder) -> dict:
    """`values` after the overrides `words`, as `dvc exp run -S` applies them to a file."""
    from dvc.utils.hydra import apply_overrides

    path = folder / "overridden.json"  # read and written much faster than YAML
    path.write_text(json.dumps(values))
    apply_overrides(path, words)
    return json.loads(path.read_text())


@pytest.mark.parametrize("name", SETUPS)
def test_a_set_up_gives_the_experiment_its_values_and_networks_that_see_its_images(name, tmp_path):
    overlay = setup.read(ROOT, name, BASE)
    values = by_dvc(BASE, list(setup.overrides(BASE, overlay)), tmp_path)
    assert values == setup.merged(BASE, overlay)
    assert by_dvc(values, list(setup.overrides(values, overlay)), tmp_path) == values, "DVC leaves them in params.yaml"
    chosen = parse(Params, values)
    for architecture in chosen.backbones.values():
        size = chosen.data.of("image").image_size
        net = build_backbone(architecture, SimpleNamespace(image_size=size), GREY).eval()
        assert net(torch.rand(1, 3, size, size))["pooled"].shape == (1, net.width)


@pytest.mark.parametrize("name", SETUPS)
def test_the_head_of_a_set_up_has_its_command_time_and_figure(name):
    head = (ROOT / f"setups/{name}.yaml").read_text().partition("\ndata:")[0]
    assert all(line.startswith("#") for line in head.splitlines())
    assert re.search(rf"dvc exp run \$\(python -m selfsup\.compare\.setup {name}\) -S ", head)
    assert "# Time: " in head and "# Expect: " in head
    for file in re.findall(r"benchmarks/[\w./-]+\.md", head):
        assert (ROOT / file).exists()


def test_sections_are_merged_and_what_depends_on_a_name_is_replaced(tmp_path):
    base = {
        "a": {"x": 1, "y": 2},
        "net": {"options": {"width": 16}},
        "optimizer": {"name": "lars", "lr": 2.0, "trust": 1},
    }
    overlay = {"a": {"y": 3}, "net": {"options": {"depth": 4}}, "optimizer": {"name": "sgd", "lr": 0.1}}
    expected = {"a": {"x": 1, "y": 3}, "net": {"options": {"depth": 4}}, "optimizer": {"name": "sgd", "lr": 0.1}}
    assert setup.merged(base, overlay) == expected
    assert by_dvc(base, list(setup.overrides(base, overlay)), tmp_path) == expected
    faster = {"optimizer": {"lr": 4.0}}
    assert setup.merged(base, faster)["optimizer"] == {"name": "lars", "lr": 4.0, "trust": 1}
    assert list(setup.overrides(base, faster)) == ["optimizer.lr=4.0"]
    assert base["a"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    "value",
    [None, True, False, -3, 1e22, 1e-05, 0.5, "a", "/home/me", "v1.5-x", "", "null", "True", "nan", "1", "1e-3", "é",
     "~", "it's", "end\\", "a\\'b", "a'b'c\\\\", r"(patient\d+)_", "a b", "a=b", "a,b", "[x]", "{z}", "x:y",
     "http://u:p@h/{0..9}.tar", "pipe:cat x | y", [], [1, [2.5, "b c"]], {"a": "x y", "b": [None, False]}],
)  # fmt: skip
def test_every_value_reaches_the_experiment_as_it_is(value, tmp_path):
    assert by_dvc({"k": 0}, list(setup.overrides({"k": 0}, {"k": value})), tmp_path) == {"k": value}
    assert by_dvc({"k": 0}, list(setup.overrides({"k": 0}, {"new": value})), tmp_path) == {"k": 0, "new": value}


def project(folder, text: str):
    (folder / "setups").mkdir()
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (folder / "setups/mine.yaml").write_text(text)
    return folder


BAD = {
    "veiws: {flip: 0.5}": "setups/mine.yaml: veiws: unknown parameter; did you mean views?",
    "views: {flop: 0.5}": "setups/mine.yaml: views.flop: unknown parameter; did you mean flip?",
    "views: {flip: yes please}": "setups/mine.yaml: views.flip: input should be a valid number, got 'yes please'",
    "views: 3": "setups/mine.yaml: views: must be a section of `name: value` lines, got 3",
    "pretrain: {epochs: '20'}": "setups/mine.yaml: pretrain.epochs: input should be a valid integer, got '20'",
    "evaluation: {knn: {k: five}}": "setups/mine.yaml: evaluation.knn.k: input should be a valid list, got 'five'",
    "evaluation: {protocols: [kn]}": "setups/mine.yaml: evaluation.protocols: unknown 'kn'; did you mean knn? Known: ",
    "- views": "setups/mine.yaml: must be a section of `name: value` lines, got ['views']",
    "": "setups/mine.yaml: must be a section of `name: value` lines, got null",
    "views: {flip: [}": "setups/mine.yaml: line 1 is not valid YAML: ",
    "methods: {byoll: {queue: 3}}": "setups/mine.yaml: methods: unknown 'byoll'; did you mean byol? Known: ",
    "methods: {byol: {queue: 3}}": "setups/mine.yaml: methods.byol.queue: unknown parameter; remove it",
    "methods: {byol: 3}": "setups/mine.yaml: methods.byol: must be a section of `name: value` lines, got 3",
    "methods: {byol: {optimizer: {name: sgd, lr: 0.1}}}":
        "setups/mine.yaml: methods.byol.optimizer.momentum: missing parameter; add it",
    "methods: [byol]": "setups/mine.yaml: methods: must be a section of `name: value` lines, got ['byol']",
    "method: byoll": "setups/mine.yaml: method: unknown 'byoll'; did you mean byol? Known: ",
}  # fmt: skip


@pytest.mark.parametrize("text", BAD)
def test_a_bad_set_up_is_one_line_that_names_the_file_and_the_key(text, tmp_path, monkeypatch):
    monkeypatch.chdir(project(tmp_path, text))
    with pytest.raises(UserError) as error:
        setup.read(Path(), "mine", BASE)
    assert str(error.value).startswith(BAD[text]) and "\n" not in str(error.value)


def test_a_name_that_is_no_set_up_is_refused_with_the_nearest(tmp_path):
    with pytest.raises(UserError, match=r"^setups/: unknown 'mnie'; did you mean mine\? Known: mine$"):
        setup.read(project(tmp_path, "seed: 1"), "mnie", BASE)


def test_the_command_prints_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(project(tmp_path, "seed: 3\nbackbones: {conv: {options: {}}}\n"))
    monkeypatch.setattr(sys, "argv", ["setup", "mine"])
    setup.main()
    assert capsys.readouterr().out.split() == ["-S", "seed=3", "-S", "~backbones.conv.options.width"]


@pytest.mark.parametrize("argv", [[], ["mnie"], ["mine"]])
def test_a_set_up_that_is_refused_stops_the_experiment_too(argv, tmp_path, monkeypatch, capsys):
    """Without it, `dvc exp run $(...)` would run on params.yaml alone."""
    from dvc.cli.parser import get_main_parser

    monkeypatch.chdir(project(tmp_path, "data: {image: {path: /home/my photos}}"))
    monkeypatch.setattr(sys, "argv", ["setup", *argv])
    with pytest.raises((UserError, SystemExit)) as error:
        setup.main()
    if argv == ["mine"]:
        assert (
            str(error.value) == "setups/mine.yaml: data.image.path: a shell cuts a value at its space; set it with -S"
        )
    words = capsys.readouterr().out.split()
    assert words == [setup.REFUSED]
    _, unknown = get_main_parser().parse_known_args(["exp", "run", *words, "-S", "method=byol"])
    assert unknown == words, "dvc must refuse it"
