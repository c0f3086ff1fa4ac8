"""What keeps BYOL from collapsing is its predictor: without it the alarm says so, with it there is none."""

from tests.contract.runs import trained
from tests.helpers import processes, values

RUN = {"pretrain__epochs": 12, "pretrain__batch_size": 64, "pretrain__log_every": 5, "methods__byol__momentum": 0.9}
OPTIMIZER = {"name": "sgd", "lr": 0.4, "momentum": 0.9, "weight_decay": 0.0}


def test_byol_without_predictor_collapses_and_the_alarm_says_so(shards, tmp_path):
    head = values()["methods"]["byol"]["predictor"]
    with_predictor, without = (
        processes(
            1,
            trained,
            "byol",
            shards,
            tmp_path / name,
            RUN
            | {
                "methods__byol__optimizer": OPTIMIZER,
                "methods__byol__predictor": head | {"layers": layers, "hidden": 32, "out": 16},
            },
        )
        for name, layers in (("with", 2), ("without", 0))
    )
    assert with_predictor.alarm is None
    assert without.alarm is not None and without.alarm.startswith("collapsed")
    assert without.rows[-1]["spread"] < 0.1 < with_predictor.rows[-1]["spread"]
