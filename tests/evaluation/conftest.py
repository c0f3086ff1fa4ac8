"""Results are kept for the whole session: tests that judge the same features by the same protocol compute them once."""

from pathlib import Path

import pytest

from selfsup.evaluation import kept


@pytest.fixture(scope="session")
def session_results(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(autouse=True)
def results(monkeypatch, session_results):
    monkeypatch.setattr(kept, "place", lambda: session_results)
