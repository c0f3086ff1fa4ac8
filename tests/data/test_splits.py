"""Held-out samples and limits are shares of each class, the same for a seed."""

import numpy as np
import pytest

from selfsup.data.splits import held_out, kept, random_keys

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(5), [40, 10, 25, 3, 1]))


def test_keys_depend_on_seed_use_and_number_only():
    keys = random_keys(3, "test", 100)
    assert np.array_equal(keys[:10], random_keys(3, "test", 10))
    assert len(np.unique(keys)) == 100
    assert not np.array_equal(keys, random_keys(4, "test", 100))
    assert not np.array_equal(keys, random_keys(3, "validation", 100))
    assert keys[:2].tolist() == [0x76879B2F0ED74F70, 0x278254279DFA8207]  # as on every machine and version


def slow_held_out(labels, keys, share):
    out = [False] * len(labels)
    for label in set(labels.tolist()):
        members = sorted((i for i in range(len(labels)) if labels[i] == label), key=lambda i: int(keys[i]))
        for i in members[: max(1, int(len(members) * share + 0.5))]:
            out[i] = True
    return out


@pytest.mark.parametrize("share", [0.01, 0.1, 0.2, 0.49])
@pytest.mark.parametrize("seed", [0, 1])
def test_held_out_is_the_share_of_each_class(seed, share):
    keys = random_keys(seed, "test", len(LABELS))
    assert held_out(LABELS, keys, share).tolist() == slow_held_out(LABELS, keys, share)


def test_held_out_counts():
    keys = random_keys(0, "test", len(LABELS))
    assert np.bincount(LABELS[held_out(LABELS, keys, 0.2)]).tolist() == [8, 2, 5, 1, 1]


def test_unlabelled_samples_are_held_out_only_among_themselves():
    keys = random_keys(0, "test", 100)
    assert held_out(np.full(100, -1), keys, 0.2).sum() == 20
    partly = np.where(np.arange(100) < 50, -1, 0)
    held = held_out(partly, keys, 0.2)
    assert not held[:50].any()
    assert held[50:].sum() == 10


@pytest.mark.parametrize("limit", [5, 20, 33, 78, 79, 1000])
def test_a_limit_is_exact_stratified_and_nested(limit):
    keys = random_keys(0, "limit", len(LABELS))
    chosen = kept(LABELS, keys, limit)
    assert chosen.sum() == min(limit, len(LABELS))
    share = np.bincount(LABELS) * min(1, limit / len(LABELS))
    assert np.abs(np.bincount(LABELS[chosen], minlength=5) - share).max() <= 1
    assert not (kept(LABELS, keys, limit - 1) & ~chosen).any()


def test_another_seed_chooses_others():
    chosen = [kept(LABELS, random_keys(seed, "limit", len(LABELS)), 40) for seed in (0, 1)]
    assert not np.array_equal(*chosen)
