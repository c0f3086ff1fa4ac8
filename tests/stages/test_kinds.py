"""Another kind of data than images goes through the whole pipeline, and what is rerun is what depends on it."""

import json
import re

import pytest
import torch

from selfsup.params import load
from tests import toykinds
from tests.stages.test_pipeline import SMALLEST, change, changed, dvc, project, ran

SETTINGS = (
    SMALLEST
    | toykinds.PARAMS
    | {
        "method": "hidden_number",
        "data__image__source": "digits",
        "data__limit": 100,
        "pretrain__batch_size": 20,
        "pretrain__knn_every": 1,
        "evaluation__protocols": ["knn"],
        "evaluation__encoder_protocols": [],
    }
)


def said_of_images(page: str) -> list[str]:
    """What a page says of images to a reader: its text without parameters, scripts and the tags themselves."""
    text = re.sub(r"<(script|style|svg|pre)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    labels = re.findall(r'(?:alt|title|aria-label)="([^"]*)"', page)
    return re.findall(r"(?:\S+\s+){0,3}\bimages?\b", " ".join([text, *labels]))


@pytest.mark.usefixtures("sequence_kind")
def test_another_kind_of_data_goes_through_the_whole_pipeline(tmp_path):
    """Then the four sentences on what another method, another kind and the first kind again cost."""
    folder = project(tmp_path / "project", kind=toykinds.copy_into, **SETTINGS)
    out = dvc(folder, "dvc", "repro")
    assert ran(out) == {"check", "shard", "pretrain", "extract", "pixels", "baseline", "evaluate", "report"}
    rows = json.loads((folder / "metrics/evaluate/knn.json").read_text())["knn"]
    assert {"method", "supervised", "random", "pixels", "majority"} <= set(rows)
    trained = json.loads((folder / "metrics/pretrain.json").read_text())
    assert (trained["computed_from"]["kind"], trained["backbone"]) == ("sequence", "numbers")
    assert {"knn_validation", "spread", "rankme"} <= set(trained["last"])
    page = (folder / "report/index.html").read_text()
    assert "hidden_number" in page and "data:image/png" in page, "thumbnails"
    for text in (page, (folder / "report/map.html").read_text()):
        assert "sequences" in text and said_of_images(text) == [], "words for another kind"
    length = load(folder / "params.yaml").data.of("sequence").length
    program = torch.export.load(folder / "models/backbone/backbone.pt2").module()
    assert program(torch.zeros(3, length, dtype=torch.int64)).shape == (3, 16)

    # Another method of the same kind reruns no shard and no baseline.
    change(folder, "method: hidden_number", "method: same_sequence")
    assert changed(folder) == {"pretrain", "extract", "report"}
    dvc(folder, "dvc", "repro", "pretrain")
    # Another kind shards once.
    change(folder, "method: same_sequence", "method: simclr")
    assert {"shard", "pixels", "baseline", "pretrain"} <= changed(folder)
    assert ran(dvc(folder, "dvc", "repro", "shard")) == {"shard"}
    assert json.loads((folder / "data/shards/index.json").read_text())["kind"] == "image"
    change(folder, "method: simclr", "method: rotation")
    assert "shard" not in changed(folder)
    # Back again, everything comes from the run cache.
    change(folder, "method: rotation", "method: hidden_number")
    assert not ran(dvc(folder, "dvc", "repro"))
    assert json.loads((folder / "data/shards/index.json").read_text())["kind"] == "sequence"
    assert json.loads((folder / "metrics/evaluate/knn.json").read_text())["knn"] == rows
