"""A checkpoint is resumed by the code it was written by, as far as that decides weights."""

import shutil

import pytest

from selfsup.imports import PACKAGE
from selfsup.training.session import code_checksum


@pytest.mark.parametrize(
    ("method", "decides", "does_not"),
    [
        (
            "deepcluster",
            ["features/encode.py", "nn/kmeans.py", "methods/deepcluster.py", "training/loop.py", "views/ops.py"],
            ["evaluation/linear.py", "evaluation/knn.py", "report/page.py", "data/sources.py", "methods/byol.py"],
        ),
        ("dino", ["multicrop.py", "nn/ema.py", "backbones.py", "data/decode.py"], ["nn/kmeans.py", "siamese.py"]),
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
