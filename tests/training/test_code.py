"""A checkpoint is resumed by the code it was written by, as far as that decides weights."""

import shutil
from types import SimpleNamespace

import pytest

from selfsup.imports import PACKAGE
from selfsup.training.session import code_checksum, raw_folder


@pytest.mark.parametrize(
    ("method", "decides", "does_not"),
    [
        (
            "deepcluster",
            [
                *("features/encode.py", "nn/kmeans.py", "methods/deepcluster.py", "training/loop.py"),
                *("features/writer.py", "training/encoders.py", "views/image/ops.py"),
            ],
            [
                *("evaluation/protocols/linear.py", "evaluation/protocols/knn.py", "report/page.py"),
                *("data/sources/image_folder.py", "methods/byol.py"),
            ],
        ),
        (
            "dino",
            [
                "families/distillation.py",
                "families/multicrop.py",
                "nn/ema.py",
                "nets/image.py",
                "data/formats/image/files.py",
            ],
            ["nn/kmeans.py", "families/momentum.py", "families/clusters.py"],
        ),
    ],
)
def test_only_code_that_decides_weights_is_in_the_checksum(method, decides, does_not, tmp_path):
    copy = tmp_path / "selfsup"
    shutil.copytree(PACKAGE, copy)
    first = code_checksum(method, copy)
    assert first == code_checksum(method), "wherever it lies"
    for name in [*does_not, *decides]:
        text = (copy / name).read_text()
        (copy / name).write_text(text + "\n# changed\n")
        assert (code_checksum(method, copy) != first) == (name in decides), name
        (copy / name).write_text(text)


def test_raw_features_of_other_code_are_not_continued(tmp_path):
    copy = tmp_path / "selfsup"
    shutil.copytree(PACKAGE, copy)
    split = SimpleNamespace(kind="image", checksum="c", data=SimpleNamespace(read=dict))
    first = raw_folder(tmp_path, split, copy)
    for name, other in (("nets/image.py", True), ("views/image/recipe.py", True), ("methods/byol.py", False)):
        text = (copy / name).read_text()
        (copy / name).write_text(text + "\n# changed\n")
        assert (raw_folder(tmp_path, split, copy) != first) == other, name
        (copy / name).write_text(text)
