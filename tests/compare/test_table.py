"""The table of experiments prints a figure only where it is of that experiment."""

import copy

import pytest

from selfsup import digests
from selfsup.compare.table import read, render
from selfsup.evaluation import protocols
from selfsup.evaluation.run import settings
from tests.helpers import params, values


def experiment(name, **overrides):
    """An experiment of simclr as `dvc exp show --json` has it, all of whose figures are its own."""
    used, chosen = values(**overrides), params(**overrides)
    blocks = protocols.blocks(chosen.evaluation)
    evaluated = {
        protocol: {
            "method": "simclr",
            "seed": 0,
            "computed_from": {
                "labels": "l",
                "parameters": settings(blocks[protocol][1], chosen.seed, chosen.baselines),
                "features": {"method": "f", "pixels": "p"},
            },
            protocol: {"features": "normalised", "method": metrics, "pixels": {"top1": 0.5}},
        }
        for protocol, metrics in {
            "knn": {"top1": 0.75, "top1_se": 0.1, "top1_k5": 0.7, "k": 5},
            "few_label": {"per_class_1": 0.25, "per_class_1_std": 0.1, "per_class_1_balanced": 0.2},
        }.items()
    }
    metrics = {f"metrics/evaluate/{protocol}.json": {"data": found} for protocol, found in evaluated.items()}
    origin = {"parameters": digests.of_training(chosen, "simclr", "image", "conv")}
    trained = {"method": "simclr", "backbone": "conv", "seed": 0, "computed_from": origin}
    metrics["metrics/pretrain.json"] = {"data": trained | {"weights": "w"}}
    metrics["metrics/extract.json"] = {"data": {"computed_from": {"weights": "w"}, "features": "f"}}
    metrics["metrics/times/pretrain.json"] = {"error": {"type": "FileNotFoundError"}}
    return {"rev": "1" * 40, "name": name, "data": {"params": {"params.yaml": {"data": used}}, "metrics": metrics}}


def table(one):
    return render(read([{"rev": "workspace", "name": None, "data": None, "experiments": [{"revs": [one]}]}]))


def test_figures_of_the_experiment_are_printed():
    head, row = table(experiment("odd-yam")).splitlines()
    assert head.split() == ["experiment", "method", "seed", "kNN", "few", "labels"]
    assert row.split() == ["odd-yam", "simclr", "0", "75.0", "25.0"]


def test_metrics_of_other_units_are_printed_as_they_are_noted():
    one = experiment("odd-yam")
    written = one["data"]["metrics"]["metrics/evaluate/knn.json"]["data"]
    written |= {"units": {"distance": "none, lower is better", "gap": "points"}}
    written["knn"]["method"] |= {"distance": 0.43721, "distance_se": 0.1, "gap": 0.0123, "missing": None}
    head, row = table(one).splitlines()
    assert [name.strip() for name in head.split("  ") if name][3:] == [
        *("kNN", "kNN: distance", "kNN: gap", "kNN: missing", "few labels")
    ]
    assert [name.strip() for name in row.split("  ") if name][3:] == [
        *("75.0", "0.437 (none, lower is better)", "1.2 (points)", "-", "25.0")
    ]


def trained_alone(one):
    one["params.yaml"]["method"] = "byol"
    origin = {"parameters": digests.of_training(params(method="byol"), "byol", "image", "conv")}
    one["metrics/pretrain.json"] |= {"method": "byol", "weights": "of byol", "computed_from": origin}


def asked_alone(one):
    one["params.yaml"]["method"] = "byol"


def asked_with_another_seed(one):
    one["params.yaml"]["seed"] = 1


def trained_again(one):
    one["metrics/pretrain.json"]["weights"] = "other"


def extracted_alone(one):
    one["metrics/extract.json"]["features"] = "other"


def other_parameters(one):
    one["params.yaml"]["evaluation"]["few_label"]["draws"] = 2
    one["params.yaml"]["evaluation"]["knn"]["k"] = [200]


def other_training_parameters(one):
    one["params.yaml"]["pretrain"]["epochs"] = 200


def other_knobs(one):
    one["params.yaml"]["methods"]["simclr"]["temperature"] = 0.7


def other_image_size(one):
    one["params.yaml"]["data"]["image"]["image_size"] = 32


def of_an_earlier_version(one):
    del one["metrics/evaluate/knn.json"]["computed_from"], one["metrics/evaluate/few_label.json"]["computed_from"]


def of_another_version(one):
    one["params.yaml"]["evaluation"]["vote"] = {}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (trained_alone, "they are of simclr; run dvc exp apply odd-yam, then dvc exp run"),
        (asked_alone, "they are of simclr, seed 0"),
        (asked_with_another_seed, "they are of simclr, seed 0"),
        (trained_again, "they are of another training"),
        (extracted_alone, "they are computed from other features of simclr"),
        (other_parameters, "they are computed from other parameters"),
        (other_training_parameters, "they are of a training with other parameters"),
        (other_knobs, "they are of a training with other parameters"),
        (other_image_size, "they are of a training with other parameters"),
        (of_an_earlier_version, "they are of an earlier version"),
        (of_another_version, "they are of parameters that this version does not know"),
    ],
)
def test_figures_of_anything_else_are_refused_with_the_reason(change, why):
    one = copy.deepcopy(experiment("odd-yam"))
    parts = {path: entry["data"] for path, entry in one["data"]["metrics"].items() if "data" in entry}
    change(parts | {"params.yaml": one["data"]["params"]["params.yaml"]["data"]})
    _, row, _, *notes = table(one).splitlines()
    assert row.split()[3:] == ["stale", "stale"]
    method = row.split()[1]
    assert len(notes) == 1 and f"odd-yam: no figures of {method} in kNN, few labels: {why}" in notes[0]


def test_what_was_never_trained_has_no_line():
    one = experiment("odd-yam")
    del one["data"]["metrics"]["metrics/pretrain.json"]
    assert len(table(one).splitlines()) == 1
    assert len(table({"rev": "2", "name": None, "data": None}).splitlines()) == 1  # queued, running or failed
