"""Methods of another kind of data keep the promises that all methods keep; no file of the package names the kind."""

import os
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from selfsup import methods, nets, views
from selfsup.data.shards import write
from selfsup.errors import UserError
from selfsup.params import BackboneParams
from selfsup.training.build import build_task, method_params
from tests import toykinds
from tests.contract.runs import TOLERANCE, build, largest_difference, run, steps_in_float64
from tests.contract.test_resume import STEPS, differences
from tests.helpers import params, processes, small

pytestmark = pytest.mark.usefixtures("sequence_kind")
SEED = int(os.environ.get("KILL_SEED") or random.SystemRandom().randrange(2**32))  # another one each time
OWN = ["hidden_number", "same_sequence"]
OPTIONS = toykinds.PARAMS | {"pretrain__batch_size": 72, "pretrain__epochs": 2}  # three steps per epoch


@pytest.fixture(scope="module")
def sequences(sequence_kind, tmp_path_factory) -> Path:  # noqa: ARG001 - mounted before
    folder = tmp_path_factory.mktemp("sequences") / "shards"
    write(params(**toykinds.PARAMS).data.of("sequence"), 0, folder, processes=1)
    return folder


def mounted(function: Callable, *arguments: Any) -> Any:
    """The function's result in a process that does not know the kind yet."""
    with pytest.MonkeyPatch.context() as patch:
        toykinds.mount(patch)
        return function(*arguments)


@pytest.mark.parametrize("method", OWN)
def test_two_processes_equal_one(method, sequences, tmp_path):
    one, two = (
        processes(world, mounted, steps_in_float64, method, sequences, tmp_path / str(world), "", OPTIONS)
        for world in (1, 2)
    )
    assert largest_difference(one.end, two.end)[1] < TOLERANCE
    assert largest_difference(one.start, one.end)[1] > 1e-3, "weights that stood still"


@pytest.mark.parametrize("method", OWN)
def test_killed_equals_uninterrupted(method, sequences, tmp_path):
    step = random.Random(f"{SEED} {method}").randrange(1, STEPS)
    print(f"killed in step {step}; to do the same again: KILL_SEED={SEED} pytest -k '{method} and killed'")
    train = partial(run, method, sequences, **OPTIONS)
    assert processes(1, mounted, train, tmp_path / "killed", step) is None
    whole, again = (processes(1, mounted, train, tmp_path / name) for name in ("whole", "killed"))
    assert differences(whole, again) == [], f"killed in step {step}, KILL_SEED={SEED}"


def test_the_supervised_baseline_takes_the_kind_of_the_chosen_method(sequences):
    _, split, chosen = build("hidden_number", sequences, False, **OPTIONS)
    block = method_params(chosen, "supervised").model_copy(update={"backbone": "numbers"})
    task = build_task(chosen, "supervised", block, split)
    assert task.backbone(views.find("sequence").plain(split.gather([0, 1]), split.data))["pooled"].shape == (2, 16)
    assert methods.kind_of("supervised", chosen) == "sequence"
    assert (
        methods.kind_of("supervised", small()) == methods.kind_of("supervised", small(method="supervised")) == "image"
    )


def test_an_exported_network_gives_the_same_features(sequences, tmp_path):
    task, split, chosen = build("same_sequence", sequences, False, **OPTIONS)
    nets.find("sequence").export_backbone(task.encoder(), chosen.backbones["numbers"], split.data, tmp_path)
    tokens = views.find("sequence").plain(split.gather(range(5)), split.data)
    program = torch.export.load(tmp_path / "backbone.pt2").module()
    torch.testing.assert_close(program(tokens), task.encoder()(tokens)["pooled"])


def test_a_backbone_of_another_kind_is_one_line():
    chosen = BackboneParams(name="resnet9", small_stem=False, options={})
    with pytest.raises(UserError, match="resnet9 is no network for sequences"):
        nets.find("sequence").check_backbone(chosen, params(**toykinds.PARAMS).data.of("sequence"))


@pytest.mark.parametrize(("room", "lines"), [(views, "def plain(): ..."), (nets, "class Raw: ...")])
def test_a_file_without_its_declarations_is_one_line(room, lines, tmp_path, monkeypatch):
    name = room.__name__.rpartition(".")[2]
    (tmp_path / "half.py").write_text(lines)
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    with pytest.raises(UserError, match=rf"^{name}/half\.py: .*, .* missing; .* {', '.join(room.DECLARED)}$"):
        room.find("half")
    with pytest.raises(UserError, match=rf"^{name}/quarter\.py: not found"):
        room.find("quarter")
    (tmp_path / "third.py").write_text("import nothing_such")
    with pytest.raises(ModuleNotFoundError, match="nothing_such"):
        room.find("third")
