"""A mistake in params.yaml is one line that names the parameter and the remedy."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import PositiveFloat

from selfsup.blocks import KindData, models
from selfsup.errors import UserError, one_line_errors
from selfsup.params import METHODS, HeadParams, MethodParams, choose, known, load, parse

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "params.yaml").read_text()


class Block(MethodParams):
    """Such as a method has."""

    temperature: PositiveFloat
    projector: HeadParams


SGD = {"name": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.0}
BLOCK = {"backbone": "conv", "optimizer": SGD, "temperature": 0.1, "projector": {"layers": 2, "hidden": 8, "out": 4}}


@pytest.fixture
def read(tmp_path):
    """Reads params.yaml with the first line of a key replaced, and returns the parameters or the line of the error."""

    def reader(key: str = "", line: str = "", text: str = TEXT):
        if key:
            text, count = re.subn(rf"^( *){key}:.*$", lambda found: found[1] + line, text, count=1, flags=re.MULTILINE)
            assert count == 1
        path = tmp_path / "params.yaml"
        path.write_text(text)
        try:
            return load(path)
        except UserError as error:
            assert "\n" not in str(error)
            return str(error).replace(str(path), "params.yaml")

    return reader


def test_the_projects_own_file_is_valid():
    params = load(ROOT / "params.yaml")
    assert params.method in params.methods


def test_nothing_changes_after_loading(read):
    with pytest.raises(ValueError, match="frozen"):
        read().pretrain.epochs = 3


@pytest.mark.parametrize("number", ["1e-4", "1.0e-4", "1E-4", "0.0001", ".0001"])
def test_scientific_notation_is_a_number(read, number):
    assert read("warmup_epochs", f"warmup_epochs: {number}").pretrain.warmup_epochs == 1e-4


def test_a_whole_number_may_stand_for_a_real_one(read):
    assert read("flip", "flip: 1").views.flip == 1.0


@pytest.mark.parametrize(
    ("key", "line", "said"),
    [
        # unknown
        ("seed", "sead: 0", "sead: unknown parameter; did you mean seed? (and 1 more)"),
        ("epochs", "epoch: 50", "pretrain.epoch: unknown parameter; did you mean epochs? (and 1 more)"),
        ("jitter", "jitter: {p: 1, zoom: 2}", "views.jitter.zoom: unknown parameter; remove it (and 4 more)"),
        ("methods", "methods:\n  foo: {}", "methods: unknown 'foo'. Known: "),
        # missing
        ("seed", "", "seed: missing parameter; add it"),
        ("epochs", "", "pretrain.epochs: missing parameter; add it"),
        ("jitter", "jitter: {p: 1, brightness: 0, contrast: 0, saturation: 0}", "views.jitter.hue: missing parameter"),
        # mistyped
        ("epochs", "epochs: fifty", "pretrain.epochs: input should be a valid integer, got 'fifty'"),
        ("epochs", 'epochs: "50"', "pretrain.epochs: input should be a valid integer, got '50'"),
        ("epochs", "epochs: 50.5", "pretrain.epochs: input should be a valid integer, got 50.5"),
        ("epochs", "epochs: true", "pretrain.epochs: input should be a valid integer, got true"),
        ("epochs", "epochs:", "pretrain.epochs: input should be a valid integer, got null"),
        ("method", "method: null", "method: input should be a valid string, got null"),
        ("compile", "compile: yes", "pretrain.compile: input should be a valid boolean, got 'yes'"),
        ("options", "options: null", "backbones.conv.options: must be a section of `name: value` lines, got null"),
        ("experiment", "experiment: 3", "tracking.experiment: input should be a valid string, got 3"),
        # out of range
        ("epochs", "epochs: 0", "pretrain.epochs: input should be greater than 0, got 0"),
        ("batch_size", "batch_size: 1", "pretrain.batch_size: input should be greater than or equal to 2, got 1"),
        ("seed", "seed: 99999999999", "seed: input should be less than 2147483648, got 99999999999"),
        ("seed", "seed: -1", "seed: input should be greater than or equal to 0, got -1"),
        ("validation", "validation: 0.5", "data.validation: input should be less than 0.5, got 0.5"),
        ("flip", "flip: 1.5", "views.flip: input should be less than or equal to 1, got 1.5"),
        ("warmup_epochs", "warmup_epochs: .nan", "pretrain.warmup_epochs: input should be a finite number, got nan"),
        ("clip_grad_norm", "clip_grad_norm: .inf", "pretrain.clip_grad_norm: input should be a finite number"),
        ("crop_scale", "crop_scale: [0.9, 0.2]", "views.crop_scale: needs 0 < low <= high, got [0.9, 0.2]"),
        ("crop_scale", "crop_scale: [0.2, 1.5]", "views.crop_scale: a crop cannot cover more than the image, got 1.5"),
        ("crop_scale", "crop_scale: [0.9]", "views.crop_scale: list should have at least 2 items, not 1, got [0.9]"),
        ("protocols", "protocols: []", "evaluation.protocols: list should have at least 1 item, not 0, got []"),
        # names
        ("method", "method: simclir", "method: unknown 'simclir'; did you mean simclr? Known: "),
        ("method", "method: SimCLR", "method: unknown 'SimCLR'; did you mean simclr? Known: "),
        ("method", "method: zzz", "method: unknown 'zzz'. Known: "),
        ("protocols", "protocols: [knn, knn]", "evaluation.protocols: names something twice, got ['knn', 'knn']"),
        (
            "encoder_protocols",
            "encoder_protocols: [layers, layers]",
            "evaluation.encoder_protocols: names something twice, got ['layers', 'layers']",
        ),
        (
            "baselines",
            "baselines: [pixel]",
            "baselines.0: input should be 'majority', 'pixels', 'random' or 'supervised'",
        ),
        ("baselines", "baselines: [random, random]", "baselines: names something twice"),
        ("precision", "precision: fp64", "pretrain.precision: input should be 'fp32', 'bf16' or 'fp16', got 'fp64'"),
        ("source", "source: image_folder", "data.image.path: source image_folder needs a path"),
        ("source", "source: torchvision", "data.image.name: source torchvision needs the name of a data set"),
        # kinds of data
        ("limit", "source: digits", "data.source: is now data.image.source; move it there"),
        ("limit", "limitt: 3", "data.limitt: unknown parameter; did you mean limit?"),
        ("image", "imagse:", "data.imagse: unknown parameter; did you mean image?"),
        ("source", "sorce: digits", "data.image.sorce: unknown parameter; did you mean source?"),
        ("source", "limit: 3", "data.image.limit: unknown parameter; remove it"),
        ("source", "source: digit", "data.image.source: input should be 'digits', 'image_folder', 'torchvision' or"),
        ("range", "range: [3, 1]", "data.image.range: needs low < high, got [3, 1]; swap them"),
        ("image_size", "image_size: 7", "data.image.image_size: input should be greater than or equal to 8, got 7"),
        # not YAML
        ("method", "method: [simclr", "is not valid YAML: expected ',' or ']'"),
        ("source", "\tsource: digits", "is not valid YAML: found character '\\t'"),
        ("seed", "seed: 0\nseed: 1", "is not valid YAML: found duplicate key"),
        ("seed", "seed: *x", "is not valid YAML: found undefined alias"),
        ("seed", "seed: \x01", "is not valid YAML: unacceptable character"),
        ("seed", "seed: !!python/object/apply:os.system [ls]", "is not valid YAML: could not determine a constructor"),
    ],
)
def test_a_mistake_is_one_line(read, key, line, said):
    found = read(key, line)
    assert isinstance(found, str), "nothing was noticed"
    assert found.startswith("params.yaml: ")
    assert said in found


@pytest.mark.parametrize("text", ["", "- a\n", "hello\n", "# nothing\n"])
def test_a_file_without_sections(read, text):
    assert read(text=text).startswith("params.yaml: must be a section of")


def test_invalid_yaml_names_the_line(read):
    number = TEXT.splitlines().index(next(line for line in TEXT.splitlines() if line.startswith("seed:"))) + 1
    assert read("seed", "seed: *x").startswith(f"params.yaml: line {number} is not valid YAML")


def test_a_section_without_a_block_for_the_kind(read):
    text = TEXT[: TEXT.index("  image:")] + TEXT[TEXT.index("  labels:") :]
    with pytest.raises(UserError) as caught:
        read(text=text).data.of("image")
    assert str(caught.value) == "params.yaml: data.image: missing block; add it (there are: none)"


def test_a_source_of_another_kind_is_one_line(read, monkeypatch):
    class Words(KindData):
        kind = "words"
        source: Literal["letters"]

    monkeypatch.setitem(models(), "words", Words)
    assert read("source", "source: letters") == (
        "params.yaml: data.image.source: letters is a source of the kind words; choose one of digits, image_folder, "
        "torchvision, webdataset"
    )


def test_a_kind_joins_the_shared_keys_and_its_block(read):
    section = read().data
    data = section.of("image")
    assert (data.image_size, data.validation, data.source) == (16, section.validation, "digits")
    assert data.read() == {"image_size": 16, "store_size": None} and data.of("image") is data
    with pytest.raises(UserError, match="of the kind image, but text is needed"):
        data.of("text")


@pytest.mark.parametrize(
    ("name", "said"),
    [("smal", "methods.simclr.backbone: unknown 'smal'; did you mean small? Known: conv, small, vit"), ("small", "")],
)
def test_a_backbone_of_ones_own(read, name, said):
    """A block under `backbones` may have any name, and a method may name it."""
    from selfsup.training.build import method_params

    small = "  small: {name: resnet9, small_stem: false, options: {width: 4}}\n"
    text = TEXT.replace("\nbaselines:", f"{small}\nbaselines:").replace("backbone: conv", f"backbone: {name}", 1)
    params = read(text=text)
    assert params.backbones["small"].options == {"width": 4}
    if said:
        with pytest.raises(UserError, match=re.escape(f"params.yaml: {said}")):
            method_params(params, "simclr")
    else:
        assert method_params(params, "simclr").backbone == "small"


def test_a_method_needs_its_block(read):
    text = TEXT.replace("  simclr:\n", "  # simclr:\n", 1)
    lines = text.splitlines(keepends=True)
    start = lines.index("  # simclr:\n") + 1
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("    "))
    text = "".join(lines[:start] + lines[end:])
    assert read("method", "method: simclr", text) == "params.yaml: methods.simclr: missing block; add it"


def test_known_methods_are_listed(read):
    said = read("method", "method: zzz")
    names = said.partition("Known: ")[2].split(", ")
    assert names == known(METHODS)
    assert {"simclr", "byol", "rotation", "mae", "supervised"} <= set(names)


def test_a_missing_file():
    with pytest.raises(UserError, match=r"nowhere\.yaml: not found; run from the project's root"):
        load("nowhere.yaml")


def test_a_file_that_is_not_text(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"seed: \xff\n")
    with pytest.raises(UserError, match=r"^\S+params\.yaml: .*0xff|#x00ff") as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"temperature": -1.0}, "temperature: input should be greater than 0, got -1.0"),
        ({"temprature": 1.0}, "temprature: unknown parameter; did you mean temperature?"),
        ({"backbone": 3}, "backbone: input should be a valid string, got 3"),
        (
            {"projector": {"layers": 9, "hidden": 8, "out": 4}},
            "projector.layers: input should be less than or eq",
        ),
        (
            {"projector": {"layer": 2, "hidden": 8, "out": 4}},
            "projector.layer: unknown parameter; did you mean l",
        ),
        ({"optimizer": {**SGD, "name": "sdg"}}, "optimizer: unknown name 'sdg'. Known: 'sgd', 'lars', 'adamw'"),
        ({"optimizer": {**SGD, "lrr": 1.0}}, "optimizer.lrr: unknown parameter; did you mean lr?"),
        ({"optimizer": {**SGD, "trust_coefficient": 1.0}}, "optimizer.trust_coefficient: unknown parameter; remove"),
        (
            {"optimizer": {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0}},
            "optimizer.lr: missing parameter; add",
        ),
        ({"optimizer": {"lr": 0.1}}, "optimizer: missing parameter name; add it"),
        ({"optimizer": {**SGD, "lr": "1e-4"}}, "optimizer.lr: input should be a valid number, got '1e-4'"),
    ],
)
def test_a_mistake_in_a_methods_block(change, line):
    with pytest.raises(UserError) as caught:
        parse(Block, {**BLOCK, **change}, prefix="methods.simclr")
    assert str(caught.value).startswith(f"params.yaml: methods.simclr.{line}")
    assert "\n" not in str(caught.value)


def test_a_block_that_is_right():
    assert parse(Block, BLOCK).optimizer.lr == 0.1


def test_a_long_value_is_cut():
    with pytest.raises(UserError) as caught:
        parse(Block, {**BLOCK, "temperature": "x" * 1000})
    assert len(str(caught.value)) < 200


def test_every_method_reads_its_block():
    from selfsup.methods import find

    params = load(ROOT / "params.yaml")
    assert sorted(params.methods) == known(METHODS)
    for name, block in params.methods.items():
        assert parse(find(name)[0], block, f"methods.{name}").backbone in params.backbones


def test_the_nearest_name_is_offered():
    assert choose("method", "b", ["a", "b"]) == "b"
    with pytest.raises(ValueError, match=r"^method: unknown 'x'\. Known: a, b$"):
        choose("method", "x", ["a", "b"])


def test_a_stage_ends_with_one_line_and_status_one(tmp_path):
    code = (
        "from selfsup.errors import one_line_errors\nfrom selfsup.params import load\nwith one_line_errors(): load()\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"error: params.yaml: not found; run from the project's root, {ROOT}\n"


def test_a_full_disk_is_one_line():
    with pytest.raises(SystemExit, match=r"^error: No space left on device \(x\.npy\): free some disk") as caught:  # noqa: SIM117
        with one_line_errors():
            raise OSError(28, "No space left on device", "x.npy")
    assert "\n" not in str(caught.value)


def test_reading_parameters_needs_neither_torch_nor_mlflow():
    code = "import sys, selfsup.params; print(sorted({'torch', 'mlflow', 'dvc', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project whose root is not the working folder."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "params.yaml").write_text(TEXT)
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    monkeypatch.setattr("selfsup.params.ROOT", tmp_path)
    monkeypatch.chdir(tmp_path / "docs")
    return tmp_path


def test_from_a_subfolder_the_root_is_named(project):
    with pytest.raises(UserError, match=rf"^params\.yaml: not found; run from the project's root, {project}$"):
        load()


def test_what_dvc_writes_into_a_subfolder_is_not_taken_for_the_parameters(project):
    """`dvc exp run -S +pretrain.epochs=2`, which DVC's own hint proposes there, makes it."""
    stray = Path("params.yaml")
    stray.write_text("pretrain:\n  epochs: 2\n")
    with pytest.raises(UserError) as caught:
        load()
    assert str(caught.value) == (
        f"params.yaml: {project / 'docs'} is not the project's root; delete this file and run from the project's root, "
        f"{project}"
    )


def test_an_incomplete_file_in_the_root_or_in_a_project_of_its_own_is_incomplete(project):
    stray = Path("params.yaml")
    stray.write_text("pretrain:\n  epochs: 2\n")
    for other in (project, project / "docs"):
        (other / "dvc.yaml").write_text("stages: {}\n")
        (other / "params.yaml").write_text(stray.read_text())
        with pytest.raises(UserError, match="missing parameter; add it"):
            load(other / "params.yaml")
