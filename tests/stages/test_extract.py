"""The stage `extract` on shards that are not those of the index."""

import pytest

from tests.stages.test_pretrain import stage, the_line, workspace


@pytest.mark.parametrize("count", ["1", "2"])
def test_a_byte_that_flipped_in_a_shard_stops_the_stage_on_any_number_of_processes(count, hundred, tmp_path):
    """The size is right: only a pass over all bytes finds it."""
    folder = workspace(tmp_path, hundred)
    shard = next((folder / "data/shards/test").glob("*.tar"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    line = the_line(stage(folder, "extract", NPROC=count))
    assert str(shard.relative_to(folder)) in line
