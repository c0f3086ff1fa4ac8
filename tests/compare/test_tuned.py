"""A set-up says how its recipes were tuned, and is a set-up like any other."""

import json
from pathlib import Path

import pytest

from selfsup import digests
from selfsup.compare import setup, tuned
from selfsup.errors import UserError
from tests.helpers import ROOT

BASE = setup.base_of(ROOT)
CHOSEN = {"temperature": 0.31}
WINNER = {
    "trials": 12,
    "trial": 7,
    "recipe": 0.5,
    "best": 0.6,
    "block": digests.of_values(BASE["methods"]["simclr"] | CHOSEN),
}
SAID = {
    "seeds": [0],
    "epochs": 50,
    "held_out": [144],
    "trained": [1293],
    "data": ["1f"],
    "code": "2e",
    "ranges": "3d",
    "methods": {"simclr": WINNER},
}


def project(folder: Path, **overlay) -> Path:
    (folder / "setups").mkdir(exist_ok=True)
    (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
    (folder / "setups/mine.yaml").write_text(json.dumps(overlay))
    return folder


def test_a_set_up_tells_the_trials_of_each_method(tmp_path):
    root = project(tmp_path, methods={"simclr": CHOSEN}, tuned=SAID)
    assert tuned.trials_of("mine", root) == {"simclr": 12}
    assert setup.read(root, "mine", BASE) == {"methods": {"simclr": CHOSEN}}, "no parameter of the pipeline"


def test_what_was_edited_after_the_tuning_was_not_tuned(tmp_path):
    assert tuned.trials_of("mine", project(tmp_path, methods={"simclr": {"temperature": 0.3}}, tuned=SAID)) == {}
    root = project(tmp_path, methods={"simclr": CHOSEN}, tuned=SAID)
    text = (root / "params.yaml").read_text()
    (root / "params.yaml").write_text(text.replace("  simclr:\n    backbone: conv", "  simclr:\n    backbone: vit"))
    assert tuned.trials_of("mine", root) == {}


def test_a_set_up_that_was_not_tuned_has_no_trials(tmp_path):
    assert tuned.trials_of("mine", project(tmp_path, seed=1)) == {}
    assert tuned.read(tmp_path, "mine") is None


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"seeds": "all"}, "setups/mine.yaml: tuned.seeds: input should be a valid list, got 'all'"),
        ({"sedes": 3}, "setups/mine.yaml: tuned.sedes: unknown parameter; did you mean seeds?"),
        ({"methods": {"simclr": WINNER | {"trials": 0}}}, "setups/mine.yaml: tuned.methods.simclr.trials: input "),
    ],
)
def test_a_damaged_section_is_one_line(said, problem, tmp_path):
    with pytest.raises(UserError) as error:
        tuned.trials_of("mine", project(tmp_path, tuned=SAID | said))
    assert str(error.value).startswith(problem) and "\n" not in str(error.value)
