"""Two processes that hold different halves of every batch train the same weights as one process, for every task."""

import pytest
import torch

from tests.contract.runs import in_settings, steps_in_float64, swept
from tests.helpers import METHODS, processes

TOLERANCE = 1e-9  # relative, float64


def largest_difference(a, b):
    """Over all parameters and buffers, relative to each tensor's largest value."""
    worst = {}
    for name, x in a.items():
        y = b[name]
        worst[name] = (
            ((x - y).abs().max() / x.abs().max().clamp(min=1e-6)).item()  # some means are 0
            if x.is_floating_point()
            else float(not torch.equal(x, y))
        )
    return max(worst.items(), key=lambda item: item[1])


@pytest.fixture(scope="module")
def one(hundred, tmp_path_factory):
    return processes(1, steps_in_float64, METHODS, hundred, tmp_path_factory.mktemp("one"))


@pytest.fixture(scope="module")
def two(hundred, tmp_path_factory):
    return processes(2, steps_in_float64, METHODS, hundred, tmp_path_factory.mktemp("two"))


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_equal_one(one, two, method):
    name, difference = largest_difference(one[method], two[method])
    print(f"{method}: largest relative difference {difference:.1e} ({name})")
    assert difference < TOLERANCE, name


VARIANTS = {  # settings that the recipes do not use, and epochs after the first, with clusters and queues of one's own
    "weighted dcl": ("dcl", {"methods__dcl__weighted": True}),
    "pairs": ("metric_learning", {"methods__metric_learning__form": "pair"}),
    "triplets of classes": (
        "metric_learning",
        {"methods__metric_learning__form": "triplet", "methods__metric_learning__labels": True},
    ),
    "deepcluster, 2 epochs": ("deepcluster", {"pretrain__epochs": 2}),
    "deepcluster_v2, 2 epochs": ("deepcluster_v2", {"pretrain__epochs": 2}),
    "sela_v2, 2 epochs": ("sela_v2", {"pretrain__epochs": 2}),
    "moco, 2 epochs": ("moco", {"pretrain__epochs": 2}),
    "full softmax": ("instance_discrimination", {"methods__instance_discrimination__negatives": 0}),
}


@pytest.fixture(scope="module")
def varied(hundred, tmp_path_factory):
    return [processes(world, in_settings, VARIANTS, hundred, tmp_path_factory.mktemp("varied")) for world in (1, 2)]


@pytest.mark.parametrize("variant", VARIANTS)
def test_two_processes_equal_one_in_other_settings(varied, variant):
    name, difference = largest_difference(*(found[variant] for found in varied))
    print(f"{variant}: largest relative difference {difference:.1e} ({name})")
    assert difference < TOLERANCE, name


@pytest.mark.parametrize("method", METHODS)
def test_three_steps_change_the_weights(one, method, hundred):
    """The comparison above is not one of weights that stood still."""
    from tests.contract.runs import build

    task, *_ = build(method, hundred, double=True)
    start = {name: x.detach() for name, x in task.named_parameters() if x.requires_grad}
    assert largest_difference(start, one[method])[1] > 1e-3


def test_a_gather_without_gradient_is_caught(one, hundred, tmp_path):
    broken = processes(2, steps_in_float64, ["simclr"], hundred, tmp_path, "gather")
    assert largest_difference(one["simclr"], broken["simclr"])[1] > 1e3 * TOLERANCE


def test_batch_norm_without_the_other_ranks_gradient_is_caught(one, hundred, tmp_path):
    normalised = ["simclr", "byol", "moco", "swav", "barlow_twins", "rotation", "supervised"]
    broken = processes(2, steps_in_float64, normalised, hundred, tmp_path, "sum")
    for method in normalised:
        assert largest_difference(one[method], broken[method])[1] > 1e3 * TOLERANCE, method


@pytest.mark.parametrize("world", [1, 2])
def test_a_sweep_has_all_samples_in_id_order_on_every_number_of_processes(world, hundred):
    found, single = processes(world, swept, hundred)
    torch.testing.assert_close(found, single, rtol=1e-4, atol=1e-5)
