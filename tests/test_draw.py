"""Counter-based randomness: the right integers, independent of the batch, and statistically clean."""

import pytest
import torch

from selfsup.draw import Draw, epoch_order, splitmix64

GOLDEN = 0x9E3779B97F4A7C15
IDS = torch.arange(20_000)


def signed(x: int) -> int:
    return (x + 2**63) % 2**64 - 2**63


def splitmix64_of_ints(x: int) -> int:
    """The generator as its paper prints it, on unsigned Python integers."""
    x = (x + GOLDEN) % 2**64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
    return x ^ (x >> 31)


def test_published_outputs_of_splitmix64():
    """The first outputs from seeds 0 and 1234567, as published with the generator's reference implementations."""
    outputs = {0: [0xE220A8397B1DCDAF], 1234567: [6457827717110365317, 3203168211198807973, 9817491932198370423]}
    for seed, values in outputs.items():
        states = torch.tensor([signed(seed + i * GOLDEN) for i in range(len(values))])
        assert splitmix64(states).tolist() == [signed(value) for value in values]


def test_splitmix64_equals_integers_of_any_size():
    x = torch.tensor([0, 1, -1, 2**62, -(2**63), 2**63 - 1, 123456789])
    assert splitmix64(x).tolist() == [signed(splitmix64_of_ints(v % 2**64)) for v in x.tolist()]


def test_platforms_agree_on_a_table():
    draw = Draw(5, 3, torch.tensor([0, 1, 7, 2**40]))
    assert draw.key.tolist() == [
        4864211785349647905,
        3481527268574325881,
        4619779329729497666,
        -1489397101262343645,
    ]
    assert draw.bits("x", 2).tolist()[3] == [7790212963083464459, 7405069085746952911]
    assert draw.fork("a").key.tolist()[0] == 8597474452759211831
    assert draw.integers("i", 10, 3).tolist() == [[9, 0, 5], [7, 1, 5], [7, 1, 6], [0, 2, 1]]
    assert draw.permutation("p", 5).tolist()[0] == [3, 2, 1, 0, 4]
    assert draw.uniform("u", 2, 2)[0, 0].tolist() == [0.16354721784591675, 0.1495949625968933]
    assert epoch_order(1, 2, 9).tolist() == [5, 1, 6, 7, 2, 0, 4, 8, 3]


def test_rows_do_not_depend_on_the_batch():
    ids = torch.tensor([12, 5, 99_999, 3])
    whole = Draw(1, 2, ids)
    for i, sample in enumerate(ids):
        alone = Draw(1, 2, sample[None])
        assert torch.equal(alone.uniform("u", 3, 2)[0], whole.uniform("u", 3, 2)[i])
        assert torch.equal(alone.fork("f").permutation("p", 7)[0], whole.fork("f").permutation("p", 7)[i])
        assert torch.equal(whole[i : i + 1].bits("b", 4)[0], whole.bits("b", 4)[i])


def test_uses_drawn_together_are_those_drawn_alone():
    draw = Draw(3, 1, torch.tensor([4, 99, 2**33]))
    together = draw.uniforms({"a": 3, "b": 1, "c": 10})
    assert list(together) == ["a", "b", "c"]
    for use, values in together.items():
        assert torch.equal(values, draw.uniform(use, values.shape[1]))
    assert torch.equal(draw[1:].uniforms({"b": 1})["b"], together["b"][1:])


@pytest.mark.parametrize("other", [(1, 0, 0), (0, 1, 0), (0, 0, 1)])
def test_seed_epoch_and_id_each_matter(other):
    seed, epoch, shift = other
    assert not (Draw(0, 0, IDS).key == Draw(seed, epoch, IDS + shift).key).any()


def test_uniform_moments_and_bounds():
    u = Draw(0, 0, IDS).uniform("u", 8, low=-1.0, high=3.0).double()
    assert u.min() >= -1 and u.max() < 3
    assert abs(u.mean() - 1) < 0.015  # 5 standard errors of 160,000 draws
    assert abs(u.var() - 16 / 12) < 0.02
    counts = torch.histc(u, 16, -1, 3)
    assert ((counts - 10_000) ** 2 / 10_000).sum() < 45  # chi-square of 15 degrees: p < 1e-4


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    draw = Draw(0, 0, IDS)
    u = draw.uniform("u", 2)
    return {
        "uses": (u[:, 0], draw.uniform("v")),
        "columns": (u[:, 0], u[:, 1]),
        "forks": (u[:, 0], draw.fork("view").uniform("u", 2)[:, 0]),
        "two forks": (draw.fork("view 1").uniform("u"), draw.fork("view 2").uniform("u")),
        "adjacent ids": (u[:-1, 0], u[1:, 0]),
        "epochs": (u[:, 0], Draw(0, 1, IDS).uniform("u", 2)[:, 0]),
        "seeds": (u[:, 0], Draw(1, 0, IDS).uniform("u", 2)[:, 0]),
        "seed and epoch swapped": (Draw(1, 2, IDS).uniform("u"), Draw(2, 1, IDS).uniform("u")),
    }


@pytest.mark.parametrize("name", pairs())
def test_draws_are_uncorrelated(name):
    a, b = pairs()[name]
    assert abs(torch.corrcoef(torch.stack([a, b]))[0, 1]) < 0.03  # 4 standard errors
    assert (a == b).float().mean() < 0.001


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
def test_bernoulli_frequency(p):
    assert abs(Draw(0, 0, IDS).bernoulli("b", p, 4).float().mean() - p) <= 0.007 * (0 < p < 1)


def test_integers_are_uniform():
    counts = torch.bincount(Draw(0, 0, IDS).integers("i", 7, 3).flatten(), minlength=7)
    expected = 60_000 / 7
    assert len(counts) == 7
    assert ((counts - expected) ** 2 / expected).sum() < 30


def test_permutations_are_uniform():
    orders = Draw(0, 0, IDS).permutation("p", 4)
    assert torch.equal(orders.sort(dim=1).values, torch.arange(4).expand(len(IDS), 4))
    counts = torch.bincount((orders * torch.tensor([64, 16, 4, 1])).sum(1), minlength=256)
    counts = counts[counts > 0]
    assert len(counts) == 24
    assert ((counts - len(IDS) / 24) ** 2 / (len(IDS) / 24)).sum() < 58  # chi-square of 23 degrees: p < 1e-4


def test_an_epoch_visits_everything_once_in_a_new_order():
    first, second = epoch_order(0, 0, 1000), epoch_order(0, 1, 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert torch.equal(second.sort().values, torch.arange(1000))
    assert torch.equal(first, epoch_order(0, 0, 1000))
    assert (first == second).sum() < 10
    assert (first == torch.arange(1000)).sum() < 10
    assert abs(torch.corrcoef(torch.stack([first, second]).double())[0, 1]) < 0.12
