"""Names, commands, pickles and YAML made to do harm: refused in one line, or harmless."""

import ast
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from ruamel.yaml import YAML

from selfsup import params
from selfsup.data.loader import open_split
from selfsup.data.shards import write
from selfsup.errors import UserError, one_line_errors
from selfsup.features.store import FeatureSet
from selfsup.training import checkpoint
from tests.data.make import class_folders, data
from tests.helpers import ROOT
from tests.test_architecture import unsafe

CODE = sorted(path for folder in ("ssl", "stages", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


# names


def test_names_that_look_like_markup_commands_or_lines(tmp_path):
    names = [
        "<img src=x onerror=alert(1)>",
        "a; rm -rf ~",
        "$(touch pwned)",
        "`id`",
        "two\nlines",
        "\u202etxet",
        "x" * 255,
    ]
    root = class_folders(tmp_path / "images", dict.fromkeys(names, 4))
    (root / "two\nlines" / "bad\x1b[2J.png").write_bytes(b"")
    values = data(source="image_folder", path=str(root))
    with pytest.raises(SystemExit) as ended, one_line_errors():
        write(values, 0, tmp_path / "shards", processes=1)
    assert str(ended.value.code).isprintable()
    assert r"two\nlines/bad\x1b[2J.png" in str(ended.value.code)
    index = write(values.model_copy(update={"on_error": "skip"}), 0, tmp_path / "shards", processes=1)
    assert sorted(index.classes) == sorted(names)
    assert open_split(tmp_path / "shards", "test", values).samples == len(names)


def shells(source: str) -> list[str]:
    """Calls that give text to a shell."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
            if given.get("shell", "False") != "False" or re.search(
                r"^os\.(system|popen|spawn|exec[lv])|getoutput", name
            ):
                found.append(ast.unparse(node))
            if re.search(r"(^|\.)(eval|exec)$", name) and "." not in name:
                found.append(ast.unparse(node))
    return found


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_no_text_reaches_a_shell_and_no_pickle_is_read(path):
    assert shells(path.read_text()) == []
    assert unsafe(path.read_text()) == []


@pytest.mark.parametrize("source", ["os.system(x)", "run(x, shell=True)", "os.popen(x)", "eval(x)", "run(x, shell=y)"])
def test_shells_are_found(source):
    assert shells(source)


def test_no_text_of_params_is_on_a_command_line():
    """But for protocols, whose names are checked against the known ones before any stage runs."""
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    for name, stage in stages.items():
        for text in re.findall(r"\$\{([^}]*)\}", stage["cmd"]):
            choices = stage["matrix"][text.removeprefix("item.")]
            assert choices.startswith("${evaluation.") or all(re.fullmatch(r"\w+", choice) for choice in choices), name
    assert "data/needs/shards.json" in stages["shard"]["deps"]  # so `check` is done before
    assert "data/shards" in stages["evaluate"]["deps"]


def test_the_interface_listens_on_this_machine_only():
    makefile, dockerfile = (ROOT / "Makefile").read_text(), (ROOT / "Dockerfile").read_text()
    ui = re.search(r"^ui:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert re.search(r"mlflow server .*(\\\n.*)?--host 127\.0\.0\.1 ", ui[1])
    for text in (makefile, dockerfile):
        assert "0.0.0.0" not in text
    assert not re.search(r"^EXPOSE", dockerfile, re.MULTILINE)


# pickles


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_in_a_feature_file_or_a_table_is_not_run(tmp_path, hundred):
    array = np.empty((3, 2), object)
    array[:] = Trap(tmp_path / "run")
    np.save(tmp_path / "train.npy", array, allow_pickle=True)
    with pytest.raises(UserError, match=r"train\.npy: not a readable array"):
        FeatureSet("method", "x", tmp_path, {}).load("train")
    folder = shutil.copytree(hundred, tmp_path / "shards")
    (folder / "train" / "000000.npz").write_bytes((tmp_path / "train.npy").read_bytes())
    for level in ("full", "size"):
        with pytest.raises(UserError, match=r"000000\.npz"):
            open_split(folder, "train", data(verify=level))
    assert not (tmp_path / "run").exists()


def test_a_pickle_in_a_checkpoint_is_not_run(tmp_path, capsys):
    checkpoint.save(tmp_path, 1, {"step": 1})
    checkpoint.save(tmp_path, 2, {"step": 2, "task": Trap(tmp_path / "run")})
    assert checkpoint.load(tmp_path) == {"step": 1}
    assert (
        "holds something other than weights; nothing in it is executed); using the previous checkpoint"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


# params.yaml


def load(tmp_path: Path, text: str) -> str:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        params.load(tmp_path / "params.yaml")
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_yaml_that_runs_code_is_refused(tmp_path):
    for tag in ("!!python/object/apply:os.system [touch run]", "!!python/name:os.system", "!!python/module:os"):
        assert "could not determine a constructor" in load(tmp_path, f"seed: {tag}\n")
    assert not Path("run").exists()


LAUGHS = "a0: &a0 [lol]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12))
MERGES = "a0: &a0 {x: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 9))


@pytest.mark.parametrize("text", [LAUGHS, MERGES, "a: &a [*a]\n"], ids=["laughs", "merges", "itself"])
def test_yaml_bombs_are_refused(tmp_path, text):
    assert "aliases stand for more than 10,000 values" in load(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 0\nseed: 1\n", "duplicate key"),
        ("data: {path: a, path: b}\n", "duplicate key"),
        ("seed: " + "[" * 5000, "not valid YAML"),
        ("seed: " + "9" * 5000, "not valid YAML"),
        ("seed: 2001-99-99\n", "not valid YAML"),
        ("se\ufeffed: 1\n", r"se\ufeffed: unknown parameter"),
        ("# " + "x" * 200_000, "more than 100,000 bytes"),
    ],
)
def test_other_hostile_yaml(tmp_path, text, said):
    assert said in load(tmp_path, text)


def test_aliases_in_bounds_are_fine(tmp_path):
    text = (ROOT / "params.yaml").read_text()
    text = text.replace("blur: [0.0, 0.0]", "blur: &pair [0.0, 0.0]").replace("solarize: [0.0, 0.0]", "solarize: *pair")
    (tmp_path / "params.yaml").write_text(text)
    assert params.load(tmp_path / "params.yaml") == params.load(ROOT / "params.yaml")
