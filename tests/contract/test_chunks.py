"""A batch that goes through the network in chunks gives the gradients of the whole batch, for every method."""

import pytest
import torch

from selfsup.data.shards import write
from tests.contract.runs import dropped, steps_in_float64
from tests.contract.test_processes import TOLERANCE, largest_difference
from tests.helpers import HEADS, METHODS, params, processes, sized

HEAD = {"layers": 1, "hidden": 32, "out": 16}  # nothing that normalises over the batch
EXACT = {f"methods__{method}__backbone": "vit" for method in METHODS} | {
    f"methods__{method}__{head}": sized(method, head, **HEAD) for method, head in HEADS
}
# without the batch norm on its output
EXACT |= {
    f"methods__{method}__{head}": HEAD | {"layers": 0}
    for method in ("simsiam", "moco_v3")
    for head in ("projector", "predictor")
}


BATCH = 16


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """Three steps of BATCH."""
    folder = tmp_path_factory.mktemp("few") / "shards"
    write(params(data__limit=60).data.of("image"), 0, folder, processes=1)
    return folder


@pytest.fixture(scope="module")
def whole(few, tmp_path_factory):
    settings = EXACT | {"pretrain__batch_size": BATCH}
    return processes(1, steps_in_float64, METHODS, few, tmp_path_factory.mktemp("whole"), "", settings)


@pytest.fixture(scope="module", params=[(1, 1), (1, 2), (2, 4)], ids=lambda p: f"{p[0]} processes, chunks of {p[1]}")
def chunked(request, few, tmp_path_factory):
    world, size = request.param
    settings = EXACT | {"pretrain__batch_size": BATCH, "pretrain__chunk_size": size}
    return processes(world, steps_in_float64, METHODS, few, tmp_path_factory.mktemp("chunked"), "", settings)


@pytest.mark.parametrize("method", METHODS)
def test_chunks_equal_the_whole_batch(whole, chunked, method):
    name, difference = largest_difference(whole[method], chunked[method])
    assert difference < TOLERANCE, name


def test_chunks_equal_the_whole_batch_with_sinkhorn_and_koleo(few, tmp_path):
    knobs = EXACT | {"methods__ibot__centring": "sinkhorn", "methods__ibot__koleo": 0.1, "pretrain__batch_size": BATCH}
    whole, chunked = (
        processes(1, steps_in_float64, ["ibot"], few, tmp_path / str(size), "", knobs | {"pretrain__chunk_size": size})
        for size in (BATCH, 2)
    )
    name, difference = largest_difference(whole["ibot"], chunked["ibot"])
    assert difference < TOLERANCE, name


def test_batch_norm_takes_its_statistics_chunk_by_chunk_on_any_number_of_processes(hundred, tmp_path):
    settings = {"pretrain__chunk_size": 8}
    runs = [
        processes(world, steps_in_float64, ["simclr", "supervised"], hundred, tmp_path / str(world), "", settings)
        for world in (1, 2)
    ]
    plain = processes(1, steps_in_float64, ["simclr", "supervised"], hundred, tmp_path / "plain")
    for method in plain:
        assert largest_difference(runs[0][method], runs[1][method])[1] < TOLERANCE
        assert largest_difference(runs[0][method], plain[method])[1] > 1e3 * TOLERANCE
        counts = {x.item() for name, x in runs[0][method].items() if name.endswith("num_batches_tracked")}
        assert counts == {3 * 4}, "steps x chunks: the pass without graph leaves running statistics alone"


def test_both_passes_drop_the_same_units(hundred):
    found, expected = processes(1, dropped, hundred, 2)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)
