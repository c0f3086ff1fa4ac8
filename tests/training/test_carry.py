"""What `after_step` is given: rows in the order of the global batch, whatever the processes and chunks."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from selfsup.data.loader import train_ids
from selfsup.nn.distributed import rank
from selfsup.task import Output, Progress, Task
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
    train(task, split, plan, make_accelerator("fp32"))
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


class Separate(Task):
    """Its loss is the mean of the samples' own, and it hands over rows, or a tensor of the whole batch."""

    mixes_batch = False

    def __init__(self, carries: bool):
        super().__init__()
        self.weight, self.carries = nn.Parameter(torch.ones(())), carries

    def forward(self, views, _):
        loss = (self.weight * views).mean()
        return Output(loss, {"loss": loss}, {"id": views}, {"mean": loss} if self.carries else {}, [views[:, None]])


def separately(carries: bool) -> tuple[Output, Tensor | None]:
    from selfsup.processes.accelerator import make_accelerator
    from selfsup.training.chunks import Step, backward

    task = Separate(carries)
    views = [lambda part=part: part for part in torch.arange(6.0).chunk(3)]
    output = backward(make_accelerator("fp32"), Step(task), task, views, Progress(0, 1, 1))
    return output, task.weight.grad


def test_rows_of_chunks_are_joined_where_each_chunk_has_a_loss_of_its_own():
    output, gradient = separately(carries=False)
    assert gradient is not None and gradient.item() == output.loss.item() == 2.5
    assert output.carried(chunks=3)["id"].tolist() == list(range(6))
    assert output.embeddings[0].shape == (6, 1) and not output.logs["loss"].requires_grad


def test_a_tensor_of_the_whole_batch_needs_the_whole_batch():
    with pytest.raises(NotImplementedError, match="gives `embed` and `loss`"):
        separately(carries=True)
