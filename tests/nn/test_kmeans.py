"""Whitening and spherical k-means against slow transcriptions, and their edge cases."""

import numpy as np
import pytest
import torch

from selfsup.nn import kmeans
from selfsup.nn.contrastive import unit
from selfsup.nn.kmeans import nearest, spherical_kmeans, split_empty, whitened
from tests.helpers import processes


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def blobs(n: int = 90, d: int = 6, k: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit rows around k directions, and which."""
    torch.manual_seed(0)
    labels = torch.arange(n) % k
    return unit(torch.eye(d, dtype=torch.float64)[labels] + 0.1 * torch.randn(n, d, dtype=torch.float64)), labels


def test_whitening_equals_a_singular_value_decomposition():
    torch.manual_seed(0)
    x = torch.randn(50, 8, dtype=torch.float64) @ torch.randn(8, 8, dtype=torch.float64) + 3
    u, _, _ = np.linalg.svd(x.numpy() - x.numpy().mean(0), full_matrices=False)
    expected = u[:, :5] / np.linalg.norm(u[:, :5], axis=1, keepdims=True)
    found = whitened(x, 5).flip(1).numpy()  # rising there, falling here
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-9)


def test_directions_without_variance_are_left_out():
    torch.manual_seed(0)
    x = torch.cat([torch.randn(40, 3), torch.full((40, 2), 7.0), torch.zeros(40, 1)], dim=1)
    assert whitened(x, 6).shape == (40, 3)
    assert whitened(x, 2).shape == (40, 2)
    torch.testing.assert_close(whitened(x, 6).norm(dim=1), torch.ones(40))


def test_an_empty_cluster_takes_half_of_the_largest():
    labels = torch.tensor([0, 0, 0, 0, 0, 3, 3])
    found = split_empty(labels, 4)
    assert found.tolist() == [0, 1, 2, 1, 0, 3, 3]  # 1 takes two of five, then 2 one of three
    assert split_empty(torch.zeros(9, dtype=torch.int64), 9).bincount().tolist() == [1] * 9


def test_clusters_that_are_apart_are_found():
    x, truth = blobs()
    for seed in range(5):
        labels, centroids = spherical_kmeans(x, 3, generator(seed))
        if len({(int(a), int(b)) for a, b in zip(labels, truth, strict=True)}) == 3:
            torch.testing.assert_close(centroids.norm(dim=1), torch.ones(3, dtype=torch.float64))
            assert torch.equal(nearest(x, centroids), labels)
            return
    pytest.fail("no start found them")


@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_equals_a_loop(rounds):
    x, _ = blobs(d=4, k=4)
    labels, centroids = spherical_kmeans(x, 5, generator(), rounds)
    data = x.numpy()
    c = data[torch.randperm(len(x), generator=generator())[:5].numpy()]
    for _ in range(rounds):
        own = np.array([max(range(5), key=lambda k: row @ c[k]) for row in data])
        c = np.array([data[own == k].sum(0) for k in range(5)])
        c /= np.linalg.norm(c, axis=1, keepdims=True)
    own = np.array([max(range(5), key=lambda k: row @ c[k]) for row in data])
    assert labels.tolist() == own.tolist()
    for k in range(5):
        mean = data[own == k].mean(0)
        np.testing.assert_allclose(centroids[k], mean / np.linalg.norm(mean), atol=1e-12)


def test_no_centroid_is_lost_between_rounds(monkeypatch):
    """Among equal first centroids only one finds members; the others must not become the zero vector."""
    found, real = [], kmeans.nearest
    monkeypatch.setattr(kmeans, "nearest", lambda x, c: found.append(c.norm(dim=1).min().item()) or real(x, c))
    x, _ = blobs(d=4, k=4)
    x[:80] = x[0]
    spherical_kmeans(x, 5, generator())
    assert len(found) == 11 and min(found) == pytest.approx(1)


def test_no_cluster_is_empty_even_among_equal_rows():
    x = unit(torch.ones(20, 3))
    labels, centroids = spherical_kmeans(x, 7, generator())
    assert (labels.bincount(minlength=7) > 0).all()
    assert centroids.isfinite().all()


def _of_rank() -> list[int]:
    from selfsup.nn.distributed import rank
    from selfsup.processes.accelerator import make_accelerator

    make_accelerator("fp32")
    x, _ = blobs()
    labels, _ = spherical_kmeans(x, 5, generator(rank()))  # a start of its own on every process
    total = labels.clone()
    torch.distributed.all_reduce(total)
    return (total - 2 * labels).tolist()


def test_every_process_has_the_first_ones_clusters():
    assert processes(2, _of_rank) == [0] * 90
