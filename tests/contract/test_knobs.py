"""Every knob of a method's block does something: one that is read nowhere, or a constant in its place, is found."""

import functools
from collections.abc import Iterator
from itertools import chain
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from selfsup import methods
from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.params import HeadParams
from selfsup.task import Progress
from tests.contract.runs import build
from tests.helpers import METHODS, SMALL, values

EPOCHS = {"pretrain__epochs": 4}
LARGER = EPOCHS | {"data__image__image_size": 20}  # images in which other sizes of patches fit


def knobs(method: str) -> Iterator[tuple[str, ...]]:
    """The paths of the block's values; backbone, optimiser and heads, which all methods have, are tested elsewhere.

    They are those of params.yaml: no method is imported, so that a broken one does not stop the tests of the others.
    """

    def within(block: dict[str, Any], *path: str) -> Iterator[tuple[str, ...]]:
        for name, value in block.items():
            yield from within(value, *path, name) if isinstance(value, dict) else [(*path, name)]

    for name, value in values(**SMALL)["methods"].get(method, {}).items():
        if name not in ("backbone", "optimizer") and not is_head(value):
            yield from within({name: value})


def is_head(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() >= HeadParams.model_fields.keys()


def others(method: str, path: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Overrides that give the knob another value: near ones first. Not all of them need be admitted."""
    value: Any = values(**SMALL)["methods"][method]
    for name in path:
        value = value[name]
    annotation = methods.find(method)[0].model_fields[path[0]].annotation
    choices = get_args(annotation) if get_origin(annotation) is Literal else ()
    for other in alternatives(value, choices):
        yield {f"methods__{method}__{'__'.join(path)}": other}


def alternatives(value: Any, choices: tuple[Any, ...] = ()) -> list[Any]:
    if choices:
        return [choice for choice in choices if choice != value]
    if isinstance(value, list):
        return [[*value[:i], other, *value[i + 1 :]] for i, x in enumerate(value) for other in alternatives(x)]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int):
        return [value + 1, value + 2, max(0, value - 1), 2 * value]
    return [value / 2, 2 * value, 0.3, 0.6]


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


@functools.cache
def usual(method: str, shards: Any, settings: tuple[tuple[str, Any], ...]) -> list[float] | None:
    return admitted(method, shards, dict(settings))


def admitted(method: str, shards: Any, settings: dict[str, Any]) -> list[float] | None:
    """The trace, or None where the settings are refused."""
    try:
        return trace(method, shards, settings)
    except UserError:
        return None


def acts(method: str, shards: Any, path: tuple[str, ...]) -> bool:
    """Whether another value of the knob leaves another trace: in the usual settings, in larger images, or where one
    other knob of the block has another value (a weight, for one, that a switch turns on)."""
    rest = (change for other in knobs(method) if other != path for change in others(method, other))
    for base in chain([EPOCHS, LARGER], (EPOCHS | change for change in rest)):
        before = usual(method, shards, tuple(sorted((key, freeze(value)) for key, value in base.items())))
        for change in others(method, path) if before else ():
            found = admitted(method, shards, base | change)
            if found and (len(found) != len(before) or found != pytest.approx(before, rel=1e-7, abs=1e-12)):
                return True
    return False


def freeze(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


CASES = [(method, path) for method in METHODS for path in knobs(method)]


@pytest.mark.parametrize(("method", "path"), CASES, ids=[" ".join([method, *path]) for method, path in CASES])
def test_every_knob_acts(hundred, method, path):
    assert acts(method, hundred, path)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_settings_leave_the_same_trace(hundred, method):
    """The comparison above is not one of chance."""
    first, second = (trace(method, hundred, EPOCHS) for _ in range(2))
    assert first == pytest.approx(second, rel=1e-9, abs=1e-14)
