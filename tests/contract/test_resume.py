"""A run that is killed by SIGKILL and started again ends with the bits of one that was never disturbed."""

import random

import pytest
import torch

from tests.contract.runs import run, stale
from tests.helpers import METHODS, processes

STEPS = 6  # two epochs of three


def differences(a, b):
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_killed_equals_uninterrupted(method, world, hundred, tmp_path):
    whole = processes(world, run, method, hundred, tmp_path / "whole")
    step = random.SystemRandom().randrange(1, STEPS)
    assert processes(world, run, method, hundred, tmp_path / "killed", step) is None
    assert list((tmp_path / "killed").glob("step-*.pt")) or step < 2
    again = processes(world, run, method, hundred, tmp_path / "killed")
    assert differences(whole, again) == [], f"killed in step {step}"
    if world == 1:  # the comparison notices a checkpoint that does not belong to its step
        processes(1, run, method, hundred, tmp_path / "stale", 4)
        stale(tmp_path / "stale")
        assert differences(whole, processes(1, run, method, hundred, tmp_path / "stale"))
