"""A run that is killed by SIGKILL and started again ends with the bits of one that was never disturbed."""

import os
import random

import pytest
import torch

from tests.contract.runs import run, stale, whole_and_again
from tests.helpers import METHODS, processes

STEPS = 6  # two epochs of three
SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(2**32))  # another one each time


def differences(a, b):
    return [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("world", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_killed_equals_uninterrupted(method, world, hundred, tmp_path):
    step = random.Random(f"{SEED} {method} {world}").randrange(1, STEPS)
    print(f"killed in step {step}; to do the same again: KILL_SEED={SEED} pytest -k '{method} and killed'")
    assert processes(world, run, method, hundred, tmp_path / "killed", step) is None
    assert list((tmp_path / "killed").glob("step-*.pt")) or step < 2
    whole, again = processes(world, whole_and_again, method, hundred, tmp_path / "whole", tmp_path / "killed")
    assert differences(whole, again) == [], f"killed in step {step}, KILL_SEED={SEED}"


@pytest.mark.parametrize("method", ["simclr", "moco", "dino"])
def test_a_checkpoint_that_does_not_belong_to_its_step_is_noticed(method, hundred, tmp_path):
    processes(1, run, method, hundred, tmp_path / "stale", 4)
    stale(tmp_path / "stale")
    whole, again = processes(1, whole_and_again, method, hundred, tmp_path / "whole", tmp_path / "stale")
    assert differences(whole, again)
