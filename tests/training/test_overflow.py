"""Half precision: a step whose gradient overflows is skipped and counted, and changes nothing."""

from pathlib import Path

import pytest
import torch

from tests.contract.runs import build, state
from tests.helpers import processes

BAD = 3  # the step whose loss is too large for the scale


def half_on_a_cpu():
    """Accelerate's half precision, which it grants to GPUs alone: autocast to float16 and a scaler."""
    from selfsup.processes.accelerator import make_accelerator

    accelerator = make_accelerator("fp32")
    accelerator.state._mixed_precision, accelerator.native_amp = "fp16", True
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=10**6)
    return accelerator


def overflowing(shards: Path, resume: Path, die_after: int | None, chunk: int | None = None) -> dict:
    from selfsup.params import SGD
    from selfsup.training import loop

    settings = {"pretrain__chunk_size": chunk, "pretrain__clip_grad_norm": 1.0, "pretrain__checkpoint_every": 1}
    task, split, params = build("simclr", shards, double=False, **settings)
    taken, weights, loss, freeze = [], {}, task.loss, task.before_step

    def large(embeddings, progress):
        output = loss(embeddings, progress)
        if progress.step == BAD:
            output.loss = output.loss * 1e36
        return output

    def before(progress):
        freeze(progress)
        weights[progress.step] = next(task.backbone.parameters()).detach().clone()

    task.loss, task.before_step = large, before
    task.after_step = lambda carry, progress: taken.append(progress.step)

    class Dead(Exception):
        pass

    def log(_, step):
        if step == die_after:
            raise Dead

    plan = loop.Plan(0, params.pretrain, SGD(name="sgd", lr=0.1, momentum=0.9, weight_decay=0), resume, log=log)
    try:
        result = loop.train(task, split, plan, half_on_a_cpu())
    except Dead:
        return {}
    return {"taken": taken, "skipped": result.skipped, "weights": weights, "state": state(task), "steps": result.steps}


@pytest.mark.parametrize("chunk", [None, 8])
def test_an_overflow_skips_the_step_and_is_counted(hundred, tmp_path, chunk):
    found = processes(1, overflowing, hundred, tmp_path, None, chunk)
    assert found["skipped"] == 1
    assert found["taken"] == [step for step in range(found["steps"]) if step != BAD]
    same = [torch.equal(found["weights"][step], found["weights"][step + 1]) for step in range(found["steps"] - 1)]
    assert same == [step == BAD for step in range(found["steps"] - 1)]
    assert all(x.isfinite().all() for x in found["state"].values())


def test_the_scale_and_the_count_survive_a_restart(hundred, tmp_path):
    whole = processes(1, overflowing, hundred, tmp_path / "whole", None)
    assert processes(1, overflowing, hundred, tmp_path / "cut", BAD + 2) == {}
    again = processes(1, overflowing, hundred, tmp_path / "cut", None)
    assert again["skipped"] == 1 and again["taken"][0] > BAD
    assert all(torch.equal(x, again["state"][name]) for name, x in whole["state"].items())
