"""A run that is too short for what counts epochs shortens it, says so, and starts with every method."""

import re
from typing import Any

import pytest
import torch

from selfsup import methods
from selfsup.blocks.image import ImageData
from selfsup.data.loader import open_split, open_splits
from selfsup.draw import Draw
from selfsup.epochs import AtMost, fitted, shortened
from selfsup.errors import UserError
from selfsup.params import Pretrain
from selfsup.processes.accelerator import make_accelerator
from selfsup.task import Progress
from selfsup.training import session
from selfsup.training.build import build_task, method_params, short_run
from selfsup.training.loop import Plan, peak_lr, train
from selfsup.training.schedule import warmup_cosine
from tests.contract.runs import state
from tests.helpers import METHODS, params, small, values

OWN = ("frozen_epochs", "queue_epoch", "every")  # knobs of methods that count epochs
DEFAULTS = {  # of what the tests' small networks switch off
    f"methods__{method}__{knob}": values()["methods"][method][knob]
    for method in METHODS
    for knob in OWN
    if knob in values()["methods"][method]
}


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (1, {"warmup_epochs": 0.5, "knn_every": 1}),
        (2, {"warmup_epochs": 1, "knn_every": 2}),
        (8, {"warmup_epochs": 4, "knn_every": 8}),
        (9, {"warmup_epochs": 4.5, "knn_every": 9}),
        (10, {}),
        (200, {}),
    ],
)
def test_the_rule(epochs, expected):
    pretrain = params(pretrain__epochs=epochs, pretrain__warmup_epochs=5, pretrain__knn_every=10).pretrain
    assert shortened(pretrain, epochs) == expected
    after = fitted(pretrain, epochs)
    assert (after.warmup_epochs, after.knn_every) == tuple(
        expected.get(name, asked) for name, asked in (("warmup_epochs", 5), ("knn_every", 10))
    )
    assert (pretrain.warmup_epochs, pretrain.knn_every) == (5, 10), "what is recorded is what was asked for"


@pytest.mark.parametrize("name", ["warmup_epochs", "knn_every"])
def test_zero_stays_zero(name):
    pretrain = params(pretrain__epochs=1, **{f"pretrain__{name}": 0}).pretrain
    assert getattr(fitted(pretrain, 1), name) == 0


def marked(model: Any) -> set[str]:
    return {
        name for name, field in model.model_fields.items() if any(isinstance(mark, AtMost) for mark in field.metadata)
    }


@pytest.mark.parametrize("method", METHODS)
def test_all_knobs_that_count_epochs_are_known(method):
    """By their names: a new one must not end in a layer that is never trained, or a queue that never acts."""
    model = methods.find(method)[0]
    assert marked(model) == {name for name in model.model_fields if re.search(r"epoch|every|warmup_steps", name)}
    in_steps = {"log_every", "checkpoint_every"}
    assert marked(Pretrain) == {n for n in Pretrain.model_fields if re.search("_epoch|every", n)} - in_steps


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_starts_with_its_defaults(method, epochs, shards):
    chosen = params(method=method, pretrain__epochs=epochs, data__cache="none")
    split = open_splits(chosen.data, shards, verified=True)["train"]
    build_task(chosen, method, method_params(chosen, method), split)


def shortened_to(epochs: int, method: str) -> str | None:
    chosen = params(pretrain__epochs=epochs)
    return short_run(chosen, method, method_params(chosen, method))


def test_the_note_says_what_was_done():
    note = shortened_to(2, "swav")
    assert note == (
        "note: pretrain.epochs: 2 shortens pretrain.warmup_epochs from 5 to 1, pretrain.knn_every from 10 to 2, "
        "methods.swav.queue_epoch from 5 to 1"
    )
    assert "methods.deepcluster.every from 10 to 1" in str(shortened_to(1, "deepcluster"))
    assert "methods.swav.frozen_epochs from 1 to 0.5" in str(shortened_to(1, "swav"))
    assert short_run(params(), "swav", method_params(params(), "swav")) is None


LAST = {"swav": "prototypes", "dino": "head.1.weight", "ibot": "head.1.weight"}


@pytest.mark.parametrize("epochs", [1, 2])
@pytest.mark.parametrize("method", LAST)
def test_a_layer_that_is_frozen_first_trains_in_the_second_half(method, epochs, hundred, tmp_path):
    knobs = {"pretrain__epochs": epochs, "pretrain__warmup_epochs": 5, f"methods__{method}__frozen_epochs": 1}
    chosen = small(method=method, **DEFAULTS | knobs)
    splits = open_splits(chosen.data, hundred, verified=True)
    block = method_params(chosen, method)
    before = state(build_task(chosen, method, block, splits["train"]))[LAST[method]]
    seen: list[bool] = []

    def log(*_: Any) -> None:
        seen.append(torch.allclose(task.state_dict()[LAST[method]], before, rtol=0, atol=1e-6))

    task = build_task(chosen, method, block, splits["train"])
    plan = Plan(0, chosen.pretrain, block.optimizer, tmp_path, log=log)
    result = train(task, splits["train"], plan, make_accelerator("fp32"))
    steps = result.steps
    rates = [row["lr"] for row in result.rows]
    assert seen == [step < steps / 2 for step in range(steps)]
    schedule = warmup_cosine(peak_lr(plan.optimizer, chosen.pretrain), steps / 2)
    assert rates == pytest.approx([schedule(Progress(step, steps, steps // epochs)) for step in range(steps)])


def test_the_queue_acts_from_the_middle_of_a_short_run(hundred):
    chosen = small(method="swav", pretrain__epochs=1, **DEFAULTS)
    split = open_splits(chosen.data, hundred, verified=True)["train"]
    task = build_task(chosen, "swav", method_params(chosen, "swav"), split)
    views = task.views(split.gather(range(32)), Draw(0, 0, torch.arange(32)))
    losses = []
    for keys in (0.0, 1.0):
        for queue in task.queues:
            queue.keys.add_(keys * torch.randn(queue.keys.shape))
        losses.append([task(views, Progress(step, 4, 4)).loss.item() for step in range(4)])
    assert [a != b for a, b in zip(*losses, strict=True)] == [False, False, True, True]
    assert method_params(chosen, "swav").queue_epoch == 5, "what is recorded is what was asked for"


def test_the_note_is_printed_by_the_run(hundred, tmp_path, capsys):
    chosen = small(method="rotation", pretrain__epochs=1, pretrain__warmup_epochs=5)
    splits = open_splits(chosen.data, hundred, verified=True)
    block, accelerator = method_params(chosen, "rotation"), make_accelerator("fp32")
    session.run(chosen, "rotation", block, splits, tmp_path, "rotation", lambda row, step: None, accelerator)
    said = capsys.readouterr().err
    assert said.count("note: pretrain.epochs: 1 shortens pretrain.warmup_epochs from 5 to 0.5\n") == 1


def test_shards_of_another_kind_are_one_line(hundred):
    """As they are after `method` was changed and `dvc repro` did not run all stages."""

    class Words(ImageData):
        kind = "words"

    chosen = small()
    split = open_split(hundred, "train", chosen.data)
    split.kind = "words"
    with pytest.raises(UserError) as caught:
        build_task(chosen, "simclr", method_params(chosen, "simclr"), split)
    assert str(caught.value) == "data/shards: of the kind words, but simclr needs image; run dvc repro shard"
    with pytest.raises(UserError) as caught:
        open_split(hundred, "train", Words(**chosen.data.of("image").model_dump()))
    assert str(caught.value) == "data: of the kind words, but image is needed; run dvc repro shard"
