"""What keeps methods without negatives from collapsing: with it there is no alarm, without it the alarm says so."""

import pytest

from tests.contract.runs import trained
from tests.helpers import processes

RUN = {"pretrain__epochs": 6, "pretrain__batch_size": 32, "pretrain__log_every": 5}
RATES = {"byol": 0.8, "simsiam": 2.0, "vicreg": 0.1}
PREDICTOR = {"layers": 2, "hidden": 32, "out": 16}
CASES = {  # what differs from the recipe, and whether it collapses
    "byol": ("byol", {"momentum": [0.9, 1.0], "predictor": PREDICTOR}, False),
    "byol without predictor": ("byol", {"momentum": [0.9, 1.0], "predictor": PREDICTOR | {"layers": 0}}, True),
    "byol whose target follows at once": ("byol", {"momentum": [0.0, 0.0], "predictor": PREDICTOR}, False),
    "simsiam": ("simsiam", {}, False),
    "simsiam without stop-gradient": ("simsiam", {"stop_gradient": False}, True),
    "vicreg": ("vicreg", {}, False),
    "vicreg without variance": ("vicreg", {"variance": 0.0}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_the_alarm_tells_a_collapse(case, shards, tmp_path):
    method, knobs, collapses = CASES[case]
    knobs = knobs | {"optimizer": {"name": "sgd", "lr": RATES[method], "momentum": 0.9, "weight_decay": 0.0}}
    knobs = {f"methods__{method}__{name}": value for name, value in knobs.items()}
    result = processes(1, trained, method, shards, tmp_path, RUN | knobs)
    print(f"{case}: spread {result.rows[-1]['spread']:.3f}, {result.alarm}")
    assert (result.alarm or "").startswith("collapsed") == collapses
    spread = result.rows[-1]["spread"]
    assert spread < 0.1 if collapses else spread > 0.6  # 1: isotropic
