"""What keeps methods without negatives from collapsing: with it there is no alarm, without it the alarm says so."""

import pytest

from tests.contract.runs import trained
from tests.helpers import processes

RUN = {"pretrain__epochs": 6, "pretrain__batch_size": 32, "pretrain__log_every": 5}
RATES = {"byol": 0.8, "simsiam": 2.0, "vicreg": 0.1}
PREDICTOR = {"layers": 2, "hidden": 32, "out": 16}
CASES = {  # what differs from the recipe, and how the alarm begins
    "byol": ("byol", {"momentum": [0.9, 1.0], "predictor": PREDICTOR}, None),
    "byol without predictor": ("byol", {"momentum": [0.9, 1.0], "predictor": PREDICTOR | {"layers": 0}}, "collapsed"),
    "byol whose target follows at once": ("byol", {"momentum": [0.0, 0.0], "predictor": PREDICTOR}, None),
    "simsiam": ("simsiam", {}, None),
    # the norm on its output keeps the mean of each dimension at 0, so that one direction is what is left
    "simsiam without stop-gradient": ("simsiam", {"stop_gradient": False}, "dimensional collapse"),
    "vicreg": ("vicreg", {}, None),
    "vicreg without variance": ("vicreg", {"variance": 0.0}, "collapsed"),
}


@pytest.mark.parametrize("case", CASES)
def test_the_alarm_tells_a_collapse(case, shards, tmp_path):
    method, knobs, begins = CASES[case]
    knobs = knobs | {"optimizer": {"name": "sgd", "lr": RATES[method], "momentum": 0.9, "weight_decay": 0.0}}
    knobs = {f"methods__{method}__{name}": value for name, value in knobs.items()}
    result = processes(1, trained, method, shards, tmp_path, RUN | knobs)
    last = result.rows[-1]
    print(f"{case}: spread {last['spread']:.3f}, rank {last['rankme']:.1f}, {result.alarm}")
    assert (result.alarm or "").split(":")[0] == (begins or "")
    if begins is None:
        assert last["spread"] > 0.6  # 1: isotropic
    else:
        assert last["spread"] < 0.1 if begins == "collapsed" else last["rankme"] < 1.5
