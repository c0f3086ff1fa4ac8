"""Shards that several tests of data share."""

from pathlib import Path

import pytest

from tests.data.make import shards


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """The embedded digits in several shards a split."""
    folder = tmp_path_factory.mktemp("digits") / "shards"
    shards(folder, samples_per_shard=300)
    return folder
