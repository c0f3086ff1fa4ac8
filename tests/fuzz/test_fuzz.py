"""A short fuzz with fixed seeds. `make fuzz` goes on for longer."""

import pytest

from tests.fuzz.__main__ import fuzz
from tests.fuzz.targets import TARGETS

EXAMPLES = {"shard_reader": 150, "tar_reader": 300, "params_loader": 60}


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_read_rightly_or_refused_in_one_line(name):
    found = fuzz(name, EXAMPLES[name])
    assert found["refused"] > 0.1 * EXAMPLES[name]
    assert found["read"] > 0.02 * EXAMPLES[name]
