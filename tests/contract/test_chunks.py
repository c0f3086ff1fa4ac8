"""A batch that goes through the network in chunks gives the gradients of the whole batch, for every method."""

import pytest
import torch

from selfsup.data.shards import write
from tests.contract.runs import TOLERANCE, dropped, in_chunks, largest_difference, steps_in_float64
from tests.helpers import METHODS, params, processes

BATCH = 16


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """Three steps of BATCH."""
    folder = tmp_path_factory.mktemp("few") / "shards"
    write(params(data__limit=60).data.of("image"), 0, folder, processes=1)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_chunks_equal_the_whole_batch(method, few, tmp_path):
    whole, pairs, single = processes(1, in_chunks, method, few, tmp_path / "1", BATCH, [BATCH, 2, 1])
    (shared,) = processes(2, in_chunks, method, few, tmp_path / "2", BATCH, [4])
    for chunks, found in {"of two images": pairs, "of one image": single, "on two processes": shared}.items():
        name, difference = largest_difference(whole, found)
        assert difference < TOLERANCE, f"{chunks}: {name}"


@pytest.mark.parametrize("method", ["simclr", "supervised"])
def test_batch_norm_takes_its_statistics_chunk_by_chunk_on_any_number_of_processes(method, hundred, tmp_path):
    one, two, plain = (
        processes(world, steps_in_float64, method, hundred, tmp_path / f"{world} {size}", "",
                  {"pretrain__chunk_size": size, "pretrain__batch_size": 32}).end
        for world, size in ((1, 8), (2, 8), (1, None))
    )  # fmt: skip
    assert largest_difference(one, two)[1] < TOLERANCE
    assert largest_difference(one, plain)[1] > 1e3 * TOLERANCE
    counts = {x.item() for name, x in one.items() if name.endswith("num_batches_tracked")}
    assert counts == {6 * 4}, "steps x chunks: the pass without graph leaves running statistics alone"


def test_both_passes_drop_the_same_units(hundred):
    found, expected = processes(1, dropped, hundred, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
