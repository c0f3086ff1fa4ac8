"""What `after_step` is given: rows in the order of the global batch, whatever the processes and chunks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from selfsup.data.loader import train_ids
from selfsup.nn.distributed import rank
from selfsup.task import Output
from tests.contract.runs import build
from tests.helpers import processes


def carried(shards: Path, resume: Path, chunk: int | None) -> tuple[list[Tensor], list[Tensor], set[str]]:
    """Of three steps: the ids that `after_step` was given, those of the batches, and what else it was given."""
    from selfsup.processes.accelerator import make_accelerator
    from selfsup.training.build import method_params
    from selfsup.training.loop import Plan, train

    method = "instance_discrimination"
    task, split, params = build(method, shards, double=False, pretrain__epochs=1, pretrain__chunk_size=chunk)
    seen, names = [], set()

    def after(carry, _):
        assert not any(x.requires_grad for x in carry.values())
        seen.append(carry["id"].clone())
        names.update(carry)

    task.after_step = after
    plan = Plan(params.seed, params.pretrain, method_params(params, method).optimizer, resume)
    train(task, split, split.data.image_size, plan, make_accelerator("fp32"))
    batches = train_ids(split.samples, params.seed, params.pretrain.batch_size, range(len(seen)))
    return seen, list(batches), names


@pytest.mark.parametrize(("world", "chunk"), [(1, None), (1, 8), (2, None), (2, 8)])
def test_rows_come_in_the_order_of_the_global_batch(hundred, tmp_path, world, chunk):
    seen, batches, names = processes(world, carried, hundred, tmp_path, chunk)
    assert len(seen) == len(batches) == 3 and names == {"f", "id", "log_z"}
    for ids, batch in zip(seen, batches, strict=True):
        assert torch.equal(ids, batch)


def gathered() -> dict[str, Tensor]:
    """Rows and a tensor of the whole batch that two processes hand over, two chunks each."""
    from selfsup.processes.accelerator import make_accelerator

    make_accelerator("fp32")
    rows = torch.tensor([[0.0, 1], [4, 5]]) + 2 * rank()  # of the batch 0..7, cut in two chunks of two shares each
    z = torch.ones(2, requires_grad=True)
    return Output(z.sum(), rows={"row": rows.flatten()}, carry={"centre": z.mean()}).detached().carried(chunks=2)


def test_tensors_of_the_whole_batch_are_passed_on_as_they_are():
    found = processes(2, gathered)
    assert found["row"].tolist() == list(range(8))
    assert found["centre"].item() == 1 and not found["centre"].requires_grad
