"""A run that is killed by SIGKILL and started again ends with the bits of one that was never disturbed."""

import random

import pytest
import torch

from tests.contract.runs import run, runs, stale
from tests.helpers import METHODS, processes

STEPS = 6  # two epochs of three


def differences(a, b):
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.fixture(scope="module", params=[1, 2], ids=["1 process", "2 processes"])
def ends(request, hundred, tmp_path_factory):
    """Weights of undisturbed runs and of those that were killed, by method, and the steps in which they were."""
    world, place = request.param, tmp_path_factory.mktemp("resume")
    whole = processes(world, runs, METHODS, hundred, place / "whole", timeout=600)
    steps = {method: random.SystemRandom().randrange(1, STEPS) for method in METHODS}
    for method, step in steps.items():
        assert processes(world, run, method, hundred, place / "killed" / method, step) is None
        assert list((place / "killed" / method).glob("step-*.pt")) or step < 2
    return whole, processes(world, runs, METHODS, hundred, place / "killed", timeout=600), steps


@pytest.mark.parametrize("method", METHODS)
def test_killed_equals_uninterrupted(method, ends):
    whole, again, steps = ends
    assert differences(whole[method], again[method]) == [], f"killed in step {steps[method]}"


@pytest.mark.parametrize("method", ["simclr", "moco", "dino"])
def test_a_checkpoint_that_does_not_belong_to_its_step_is_noticed(method, hundred, tmp_path):
    whole = processes(1, run, method, hundred, tmp_path / "whole")
    processes(1, run, method, hundred, tmp_path / "stale", 4)
    stale(tmp_path / "stale")
    assert differences(whole, processes(1, run, method, hundred, tmp_path / "stale"))
