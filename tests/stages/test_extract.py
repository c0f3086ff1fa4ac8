"""`stages/extract.py`, without a network."""

import pytest

from selfsup.training import extraction as extract
from tests.helpers import params


@pytest.mark.parametrize(("count", "inside"), [(1, False), (2, False), (2, True)])
def test_shards_are_verified_by_one_process(monkeypatch, count, inside):
    """Hashing takes a pass over all bytes: the launcher does it for its workers, and a lone process for itself."""
    done = []

    monkeypatch.setattr(extract.launch, "processes", lambda: count)
    monkeypatch.setattr(extract.launch, "inside", lambda: inside)
    monkeypatch.setattr(extract.launch, "check_devices", lambda _: None)
    monkeypatch.setattr(extract.launch, "relaunch", lambda _: True)
    monkeypatch.setattr(extract.signals, "stop_on_sigterm", lambda: None)
    monkeypatch.setattr(extract, "verify", lambda _, level: done.append(level))
    monkeypatch.setattr(extract, "work", lambda *_, verified: done.append("size" if verified else "full"))
    extract.extract(params())
    assert done == (["size"] if inside else ["full"])
