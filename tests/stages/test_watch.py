"""`stages/watch.py` under DVC, on a machine that has the shards but not the images."""

import shutil

import pytest

from tests.data.make import class_folders
from tests.stages.test_pipeline import dvc, project, ran


def test_shards_without_their_images_are_not_written_again(tmp_path):
    """As after a clone and `dvc pull`. A change of the path still needs the images."""
    class_folders(tmp_path / "images", {"a": 12, "b": 12})
    folder = project(tmp_path / "project", data__image__path=str(tmp_path / "images"))
    dvc(folder, "dvc", "repro", "shard")
    (tmp_path / "images").rename(tmp_path / "away")
    shutil.rmtree(folder / "data")
    dvc(folder, "dvc", "checkout", "check", "watch", "shard")
    out = dvc(folder, "dvc", "repro", "shard")
    assert not ran(out) and "so the recorded digest is kept" in out
    values = folder / "params.yaml"
    values.write_text(values.read_text().replace(str(tmp_path / "images"), str(tmp_path / "elsewhere")))
    with pytest.raises(AssertionError, match=r"data\.image\.path: no folder .*elsewhere"):
        dvc(folder, "dvc", "repro", "shard")
