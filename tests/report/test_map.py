"""The interactive map: what is in its data, that it is self-contained, bounded, and safe for any name."""

import base64
import io
import json
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from selfsup.data import formats
from selfsup.report import map as interactive
from selfsup.report import pictures
from selfsup.report.charts import palette

NAMES = {"method": "byol", "pixels": "raw pixels"}


class Images:
    """Stands for the test split: image i is filled with grey i, `size` x `size` pixels; some are half as high."""

    def __init__(self, labels, size=8, classes=("cat", "dog"), names=None):
        self.labels, self.samples, self.size, self.classes = np.array(labels), len(labels), size, list(classes)
        self.names, self.format = names or [f"{i}.png" for i in range(len(labels))], formats.find("image")
        self.data = SimpleNamespace(noun="images")

    def gather(self, ids):
        grey = torch.as_tensor(ids, dtype=torch.uint8)[:, None, None, None]
        box = [[self.size // (1 + i % 2), self.size] for i in ids]
        return {"image": grey.expand(-1, 3, self.size, self.size), "box": torch.tensor(box)}


def made(split, rows=("method", "pixels")):
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 6))
    features = {row: centres[np.arange(split.samples) % 4] + 0.05 * rng.normal(size=(split.samples, 6)) for row in rows}
    sets = [
        SimpleNamespace(row=row, load=lambda _, __, own=own: own.astype(np.float32)) for row, own in features.items()
    ]
    return sets, interactive.layouts(sets, split, 0)


def page(split, **options):
    sets, places = made(split, **options)
    text = interactive.page("byol on pets", NAMES, sets, split, places, 0)
    data = json.loads(re.search(r'id="data">(.*?)</script>', text, re.DOTALL)[1])
    return text, data, places


def test_points_have_their_place_name_and_class():
    split = Images([0, 1, -1] * 10)
    _, data, places = page(split)
    assert [one["title"] for one in data["maps"]] == ["byol, t-SNE", "raw pixels, t-SNE"]
    assert data["names"] == split.names
    of = data["colourings"][0]
    assert (of["title"], of["groups"]) == ("class", ["cat", "dog", "no label"])
    assert [of["groups"][group] for group in of["of"]] == ["cat", "dog", "no label"] * 10
    first = (palette(2) * 255).round().astype(int)[0]
    assert of["colours"] == [f"rgb({first[0]},{first[1]},{first[2]})", of["colours"][1], "rgb(128,128,128)"]
    drawn = np.array(data["maps"][0]["places"])
    own = places["method"]["t-SNE"]
    assert drawn.min() >= 0 and drawn.max() <= 1
    assert np.allclose(drawn - drawn.mean(0), (own - own.mean(0)) / np.ptp(own, axis=0).max(), atol=2e-3), "one scale"


def test_without_labels_points_are_coloured_by_cluster():
    _, data, _ = page(Images([-1] * 40, classes=()))
    assert [one["title"] for one in data["colourings"]] == ["cluster of byol", "cluster of raw pixels"]
    of = np.array(data["colourings"][0]["of"])
    assert all(len(set(of[group::4])) >= 1 for group in range(4)) and set(of) == set(
        range(len(data["colourings"][0]["groups"]))
    )
    assert not {*of[0::4]} & {*of[1::4]}, "groups that lie apart share no cluster"


def test_the_sheet_has_every_image_in_its_square():
    split = Images([0] * 30, size=8)
    text, data, _ = page(split)
    kind, body = re.search(r'sheet.src = "data:image/(\w+);base64,([^"]*)"', text).groups()
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(body))).convert("L"))
    assert kind == "png" and (data["columns"], data["side"]) == (6, 8) and sheet.shape == (40, 48)
    for number in range(30):
        row, column = divmod(number, 6)
        middle = sheet[8 * row + 4, 8 * column + 4]
        assert middle == number, "an image of half the height lies in the middle"


def test_the_page_is_bounded_and_large_images_are_shrunk():
    rng = np.random.default_rng(0)
    split = Images([0] * 2000, size=200)
    noise = torch.from_numpy(rng.integers(0, 255, (3, 200, 200), np.uint8))
    split.gather = lambda ids: {"image": noise.expand(len(ids), -1, -1, -1), "box": torch.full((len(ids), 2), 200)}
    sheet, side = interactive.sprite(split, np.arange(2000))
    assert side == interactive.TILE and sheet.startswith("data:image/jpeg") and len(sheet) < 6_000_000, "of noise"


def test_nothing_is_loaded_and_hostile_names_stay_text():
    hostile = ["</script><img src=x onerror=alert(1)>.png", "\u2028`${1}'\".png", "größe 🙂.png"]
    text, data, _ = page(Images([0] * 9, classes=['<b>cats</b> & "dogs"'], names=hostile * 3))
    assert data["names"][:3] == hostile and data["colourings"][0]["groups"] == ['<b>cats</b> & "dogs"']
    assert text.count("</script>") == 2 and "<img" not in text and "<b>" not in text
    without = re.sub(r'id="data">.*?</script>', "", text, flags=re.DOTALL)
    assert not re.search(r"(src|href)=|url\(|@import|fetch\(|https?://(?!www\.w3\.org)", without)
    assert "innerHTML" not in text


def test_keyboards_and_screen_readers_find_the_map():
    text, *_ = page(Images([0, 1] * 6))
    assert 'tabindex="0" role="application" aria-label="Map of 12 images"' in text
    assert 'aria-describedby="help"' in text and 'aria-live="polite"' in text
    assert all(key in text for key in ("ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown", "Home", "End"))
    assert "<label>Map <select" in text and "<label>Colour by <select" in text


def test_umap_is_beside_t_sne_where_it_is_installed_and_else_one_line_says_how(monkeypatch):
    class Umap:
        def __init__(self, **options):
            self.options = options

        def fit_transform(self, x):
            assert np.allclose(np.linalg.norm(x, axis=1), 1, atol=1e-5) and self.options["random_state"] == 0
            assert self.options["n_neighbors"] == min(15, len(x) - 1)
            return x[:, :2]

    find_spec = interactive.importlib.util.find_spec
    for there in (True, False):
        spec = {"umap": True} if there else {"umap": None}
        monkeypatch.setattr(
            interactive.importlib.util,
            "find_spec",
            lambda name, own=spec: own[name] if name in own else find_spec(name),
        )
        monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap))
        text, data, _ = page(Images([0, 1] * 6), rows=("method",))
        assert [one["title"] for one in data["maps"]] == ["byol, t-SNE"] + ["byol, UMAP"] * there
        assert (interactive.HOW_TO_GET_UMAP in text) == (not there)


def test_no_map_of_collapsed_features_and_one_of_the_other_row():
    split = Images([0, 1] * 6)
    flat = SimpleNamespace(row="method", load=lambda *_: np.ones((12, 4), np.float32))
    places = interactive.layouts([flat], split, 0)
    assert places == {"method": {}} and interactive.page("t", NAMES, [flat], split, places, 0) is None
    (pixels,), _ = made(split, rows=("pixels",))
    both = interactive.layouts([flat, pixels], split, 0)
    assert list(both["pixels"]) == ["t-SNE"] and interactive.page("t", NAMES, [flat, pixels], split, both, 0)


@pytest.mark.parametrize("count", [5, 7])
def test_few_images_have_a_map(count):
    assert page(Images([0] * count))[1]["names"]


def test_no_more_points_than_the_limit(monkeypatch):
    monkeypatch.setattr(pictures, "POINTS", 10)
    split = Images([0, 1] * 12)
    one = SimpleNamespace(
        row="method", load=lambda *_: np.random.default_rng(0).normal(size=(24, 4)).astype(np.float32)
    )
    text = interactive.page("t", NAMES, [one], split, interactive.layouts([one], split, 0), 0)
    shown = pictures.sample(24, 10, 0)
    assert all((f'"{name}"' in text) == (i in shown) for i, name in enumerate(split.names))
