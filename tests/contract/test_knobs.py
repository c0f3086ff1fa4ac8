"""Every knob of a method's block does something: one that is read nowhere, or a constant in its place, is found."""

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from selfsup import methods
from selfsup.draw import Draw
from selfsup.task import Progress
from tests.contract.runs import build
from tests.helpers import HEADS, METHODS, SMALL, values

ELSEWHERE = {"backbone", "optimizer", *(head for _, head in HEADS)}  # of all methods, with tests of their own
SETTINGS = {  # in which every knob has a say; else those of the other tests
    "cpc": {"data__image__image_size": 20, "methods__cpc__steps": 1},
    "dcl": {"methods__dcl__weighted": True},
    "deepcluster": {"methods__deepcluster__dims": 10, "pretrain__epochs": 4},
    "ring": {"methods__ring__outer": 0.6, "methods__ring__inner": 0.5},
}
CHANGES = {  # where half of a number, or one more, is not admitted
    "cpc patch": [10],
    "dino temperature": [0.2],
    "ibot temperature": [0.2],
    "feature_transform negative": [1.2],
    "mae decoder width": [48],
    "mae decoder heads": [4],
    **{f"{method} crops size": [12] for method in METHODS},
}


def knobs(block: dict[str, Any], *path: str) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The block's values by their path, numbers of lists too."""
    for name, value in block.items():
        if not path and name in ELSEWHERE:
            continue
        if isinstance(value, dict):
            yield from knobs(value, *path, name)
        else:
            yield (*path, name), value


def others(method: str, path: tuple[str, ...], value: Any) -> list[Any]:
    """What else the knob may be, a list of single changes."""
    known = CHANGES.get(" ".join([method, *path]))
    if known is not None:
        return known
    annotation = methods.find(method)[0].model_fields[path[0]].annotation
    if get_origin(annotation) is Literal:
        return [choice for choice in get_args(annotation) if choice != value]
    if isinstance(value, list):
        return [[*value[:i], other, *value[i + 1 :]] for i, x in enumerate(value) for other in others(method, path, x)]
    if isinstance(value, bool):
        return [not value]
    return [value + 1] if isinstance(value, int) else [value / 2 or 0.3]


def trace(method: str, shards: Any, settings: dict[str, Any]) -> list[float]:
    """All that some steps of plain gradient descent show: losses, gradients, schedules, states and what is exported."""
    task, split, _ = build(method, shards, double=True, **settings)
    batch, out = split.gather(torch.arange(16)), []
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(split.samples, task.backbone.width, generator=generator, dtype=torch.float64)
    for step in (0, 2, 5, 15):
        progress = Progress(step, 20, 5)
        if progress.epoch * 5 == step:
            task.start_epoch(progress, lambda: features)
        output = task.train()(task.views(batch, Draw(0, progress.epoch, batch["id"])), progress)
        task.zero_grad()
        output.loss.backward()
        task.before_step(progress)
        out += [output.loss.item(), *(group.decay(progress) for group in task.groups() if group.decay)]
        with torch.no_grad():
            for p in task.parameters():
                out.append(-1.0 if p.grad is None else p.grad.abs().sum().item())
                p -= 0.0 if p.grad is None else 0.1 * p.grad
        task.after_step(output.carried(), progress)
        out += [x.double().norm().item() for x in task.state_dict().values()]
    return out + [p.double().norm().item() for p in task.encoder().parameters()]


CASES = [
    (method, path, other)
    for method in METHODS
    for path, value in knobs(values(**(SMALL | SETTINGS.get(method, {})))["methods"][method])
    for other in others(method, path, value)
]


@pytest.fixture(scope="module")
def usual(hundred):
    return {method: trace(method, hundred, SETTINGS.get(method, {})) for method in METHODS}


@pytest.mark.parametrize(("method", "path", "other"), CASES, ids=lambda part: part if isinstance(part, str) else None)
def test_every_knob_acts(usual, hundred, method, path, other):
    found = trace(method, hundred, SETTINGS.get(method, {}) | {f"methods__{method}__{'__'.join(path)}": other})
    assert len(found) != len(usual[method]) or found != pytest.approx(usual[method], rel=1e-7, abs=1e-12), path


@pytest.mark.parametrize("method", METHODS)
def test_the_same_settings_leave_the_same_trace(usual, hundred, method):
    """The comparison above is not one of chance."""
    assert trace(method, hundred, SETTINGS.get(method, {})) == pytest.approx(usual[method], rel=1e-9, abs=1e-14)
