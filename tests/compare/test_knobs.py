"""The ranges of tuning: each knob is the method's, and its range holds the recipe's value and nothing it refuses."""

import json

import pytest

from selfsup import methods
from selfsup.compare import knobs, setup
from selfsup.compare.knobs import Knob, Ranges
from selfsup.config import parse, read_yaml
from selfsup.errors import UserError
from tests.helpers import METHODS, ROOT

BASE = setup.base_of(ROOT)
BLOCKS = BASE["methods"]
OURS = parse(Ranges, read_yaml(ROOT / knobs.FILE), file=knobs.FILE)


def of(values: dict, method: str = "simclr", blocks: dict = BLOCKS) -> dict[str, Knob]:
    ranges = parse(Ranges, values, file="r.yaml")
    knobs.check(ranges, blocks, "r.yaml")
    return knobs.of_method(ranges, method, blocks[method], "r.yaml")


@pytest.mark.parametrize("name", ["", *setup.names(ROOT)])
def test_every_method_of_every_set_up_has_knobs_that_it_accepts(name):
    blocks = setup.merged(BASE, setup.read(ROOT, name, BASE) if name else {})["methods"]
    knobs.check(OURS, blocks, knobs.FILE)
    for method in METHODS:
        found = knobs.of_method(OURS, method, blocks[method], knobs.FILE)
        assert {"optimizer.lr", "optimizer.weight_decay"} <= set(found) and len(found) <= 5


def test_a_method_has_the_knobs_of_all_of_its_family_and_its_own():
    values = {
        "every": {"optimizer.lr": {"times": [0.1, 10]}, "temperature": {"log": [0.01, 1]}, "eps": {"log": [0.01, 1]}},
        "families": {"contrastive": {"temperature": {"linear": [0.1, 0.5]}}, "clustering": {"eps": {"log": [0.02, 1]}}},
        "methods": {"simclr": {"optimizer.lr": None, "projector.layers": {"linear": [1, 3]}}},
    }
    assert of(values) == {
        "temperature": Knob("temperature", 0.2, 0.1, 0.5),
        "projector.layers": Knob("projector.layers", 2, 1, 3),
    }
    assert of(values, "dcl")["optimizer.lr"] == Knob("optimizer.lr", 2.0, 0.2, 20.0, log=True)
    assert of(values, "swav")["eps"].low == 0.02 and "eps" not in of(values, "mae")


def test_the_recipes_own_value_is_a_choice():
    assert of({"methods": {"byol": {"momentum.0": {"choices": [0.9, 0.97]}}}}, "byol")["momentum.0"].choices == (
        0.99,
        0.9,
        0.97,
    )
    assert of({"every": {"stop_gradient": {"choices": [True, False]}}}, "simsiam")["stop_gradient"].settings == 2


BAD = {
    "{evry: {}}": "r.yaml: evry: unknown parameter; did you mean every?",
    "{every: {optimizer.lrr: {times: [0.1, 10]}}}": "r.yaml: every.optimizer.lrr: unknown parameter; did you mean "
    "optimizer.lr?",
    "{families: {contrastiv: {}}}": "r.yaml: families: unknown 'contrastiv'; did you mean contrastive? Known: ",
    "{families: {contrastive: {mask_ratio: {log: [0.1, 0.9]}}}}": "r.yaml: families.contrastive.mask_ratio: unknown ",
    "{methods: {simclrr: {}}}": "r.yaml: methods: unknown 'simclrr'; did you mean simclr? Known: ",
    "{methods: {simclr: {temprature: {log: [0.1, 1]}}}}": "r.yaml: methods.simclr.temprature: unknown parameter; did "
    "you mean temperature?",
    "{methods: {simclr: {momentum.0: {choices: [1]}}}}": "r.yaml: methods.simclr.momentum.0: unknown parameter",
    "{every: {temperature: {log: [0.5, 0.1]}}}": "r.yaml: methods.simclr.temperature: needs low < high, got [0.5, 0.1]",
    "{every: {temperature: {log: [0.2, 0.2]}}}": "r.yaml: methods.simclr.temperature: needs low < high, got [0.2, 0.2]",
    "{every: {temperature: {log: [0, 1]}}}": "r.yaml: methods.simclr.temperature: a logarithmic scale begins above 0, ",
    "{every: {temperature: {linear: [0, 1]}}}": "r.yaml: methods.simclr.temperature: input should be greater than 0, "
    "got 0.0 (from the range of temperature, at 0.0)",
    "{methods: {simclr: {temperature: {log: [0.5, 1]}}}}": "r.yaml: methods.simclr.temperature: the recipe's own "
    "value, 0.2, is not in [0.5, 1.0]; widen the range",
    "{every: {temperature: {times: [1, 1.0001]}}}": "r.yaml: methods.simclr.temperature: leaves nothing to choose, ",
    "{every: {temperature: {log: [0.1]}}}": "r.yaml: every.temperature.log: list should have at least 2 items",
    "{every: {temperature: {log: [0.1, .inf]}}}": "r.yaml: every.temperature.log.1.",
    "{every: {temperature: {log: [0.1, 1], linear: [0.1, 1]}}}": "r.yaml: every.temperature: needs one of times, log, "
    "linear, choices, got log, linear",
    "{every: {temperature: {}}}": "r.yaml: every.temperature: needs one of times, log, linear, choices, got none",
    "{every: {temperature: {lgo: [0.1, 1]}}}": "r.yaml: every.temperature.lgo: unknown parameter; remove it",
    "{every: {temperature: 0.3}}": "r.yaml: every.temperature: must be a section of `name: value` lines, got 0.3",
    "{every: {temperature: {choices: []}}}": "r.yaml: every.temperature.choices: list should have at least 1 item",
    "{every: {temperature: {choices: [0.2]}}}": "r.yaml: methods.simclr.temperature: leaves nothing to choose, got ",
    "{every: {temperature: {choices: [0.3, 0.3]}}}": "r.yaml: methods.simclr.temperature: names a choice twice, got ",
    "{every: {temperature: {choices: [0.3, hot]}}}": "r.yaml: methods.simclr.temperature: input should be a valid "
    "number, got 'hot' (from the range of temperature, at 'hot')",
    "{methods: {simclr: {projector: {choices: [1]}}}}": "r.yaml: methods.simclr.projector: is a section or a list in "
    "the recipe",
    "{methods: {simclr: {optimizer.name: {log: [1, 2]}}}}": "r.yaml: methods.simclr.optimizer.name: is 'lars' in the "
    "recipe, which is no number; use choices",
    "{every: {projector.layers: {log: [0.5, 2]}}}": "r.yaml: methods.simclr.projector.layers: input should be a valid "
    "integer",
    "{every: {eps: {log: [0.01, 1]}}}": "r.yaml: methods.simclr: has no knob to vary; add one",
    "{}": "r.yaml: methods.simclr: has no knob to vary; add one",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_range_is_one_line_that_names_the_knob(text, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        of(read_yaml(tmp_path / "r.yaml"))
    assert str(error.value).startswith(BAD[text]) and "\n" not in str(error.value)


def test_a_factor_of_nothing_is_refused():
    blocks = BLOCKS | {"simclr": json.loads(json.dumps(BLOCKS["simclr"]))}
    blocks["simclr"]["optimizer"]["momentum"] = 0.0
    with pytest.raises(UserError, match=r"optimizer\.momentum: the recipe's own value is 0\.0, which no factor"):
        of({"methods": {"simclr": {"optimizer.momentum": {"times": [0.5, 2]}}}}, blocks=blocks)


def test_a_shared_range_is_widened_to_a_recipe_or_left_out_so_that_a_new_method_needs_no_line():
    blocks = {**BLOCKS, "simclr": json.loads(json.dumps(BLOCKS["simclr"]))}
    blocks["simclr"]["temperature"] = 0.001
    blocks["simclr"]["optimizer"]["momentum"] = 0.0
    shared = {"optimizer.momentum": {"times": [0.1, 10]}, "optimizer.name": {"log": [1, 2]}}
    shared |= {"projector": {"choices": [1]}}
    found = of({"every": shared | {"temperature": {"log": [0.1, 1]}}}, blocks=blocks)
    assert found == {"temperature": Knob("temperature", 0.001, 0.001, 1.0, log=True)}


def test_a_method_that_was_taken_out_of_params_yaml_is_no_fault_of_the_ranges():
    few = {name: BLOCKS[name] for name in ("simclr", "supervised")}
    knobs.check(OURS, few, knobs.FILE)
    assert len(knobs.of_method(OURS, "simclr", few["simclr"], knobs.FILE)) == 3
    with pytest.raises(UserError, match=r"^r\.yaml: methods\.simclr\.temperature: needs one of times, log, "):
        of({"every": {"temperature": {}}}, blocks=few)


def test_values_reach_the_block_and_the_set_up():
    block = BLOCKS["byol"]
    values = {"momentum.0": 0.9, "optimizer.lr": 1.5, "projector.hidden": 64, "projector.out": 32}
    own = knobs.overlay(block, values)
    assert own == {"momentum": [0.9, 1.0], "optimizer": {"lr": 1.5}, "projector": {"hidden": 64, "out": 32}}
    assert setup.merged(block, own) == knobs.applied(block, values)
    assert block["momentum"] == [0.99, 1.0], "the recipe stays"
    methods.find("byol")[0].model_validate(knobs.applied(block, values))


def test_suggestions_are_short_and_stay_in_the_range():
    knob = Knob("lr", 0.0051, 0.001, 0.1, log=True)
    assert knob.rounded(0.0123456) == 0.0123 and knob.rounded(0.0051) == 0.0051
    assert Knob("x", 1.0, 1.0004, 2.0).rounded(1.00041) == 1.0004
    assert Knob("n", 2, 1, 4).rounded(3) == 3 and Knob("c", "a", choices=("a", "b")).rounded("b") == "b"
