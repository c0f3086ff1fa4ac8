"""The whole of `dvc repro` on folders that people really have: awkward images, and images without labels."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from selfsup import digests
from selfsup.config import parse
from selfsup.data.loader import open_split, open_splits
from selfsup.evaluation import protocols
from selfsup.features.encode import encode
from selfsup.params import Params, load
from selfsup.training.encoders import SUPERVISED, encoder_of
from tests.evaluation import workspace
from tests.helpers import ROOT, SMALL, values

SMALLEST = SMALL | {
    "tracking__enabled": False,
    "pretrain__epochs": 2,
    "pretrain__batch_size": 4,
    "pretrain__knn_every": 1,
    "data__image__source": "image_folder",
    **workspace.quick(),
}


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def awkward(root: Path) -> None:
    """Twenty images of every mode and format that people have, in two nested classes."""
    rng = np.random.default_rng(0)

    def noise(height, width, channels=3, dtype=np.uint8):
        high = 256 if dtype == np.uint8 else 65536
        shape = (height, width, channels) if channels > 1 else (height, width)
        return rng.integers(0, high, shape).astype(dtype)

    rgb = Image.fromarray(noise(20, 30))
    turned = Image.Exif()
    turned[0x0112] = 6
    transparent = rgb.convert("P")
    frames = [Image.fromarray(noise(9, 9)) for _ in range(3)]
    files = {
        "grey 8 bit.png": (Image.fromarray(noise(8, 8, 1)), {}),
        "grey 16 bit.png": (Image.fromarray(noise(8, 9, 1, np.uint16)), {}),
        "grey 16 bit.tif": (Image.fromarray(noise(8, 9, 1, np.uint16)), {}),
        "float.tif": (Image.fromarray(rng.random((7, 7)).astype(np.float32)), {}),
        "palette.png": (transparent, {}),
        "palette transparent.gif": (transparent, {"transparency": 3}),
        "rgba.png": (Image.fromarray(noise(12, 10, 4)), {}),
        "grey alpha.png": (Image.fromarray(noise(12, 10, 4)).convert("LA"), {}),
        "cmyk.jpg": (rgb.convert("CMYK"), {}),
        "one bit.png": (rgb.convert("1"), {}),
        "turned.jpg": (rgb, {"exif": turned}),
        "animated.gif": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "animated.webp": (frames[0], {"save_all": True, "append_images": frames[1:]}),
        "one pixel.png": (Image.fromarray(noise(1, 1)), {}),
        "wide.png": (Image.fromarray(noise(1, 3000)), {}),
        "tall.png": (Image.new("RGB", (2, 20000), "red"), {}),
        "größe 图像 🙂.png": (rgb, {}),
        "UPPER.JPG": (rgb, {"format": "JPEG"}),
        "bitmap.bmp": (rgb, {}),
        "<b>&amp; $(name).webp": (rgb, {}),
    }
    assert len(files) == 20
    for i, (name, (image, options)) in enumerate(files.items()):
        save(image, root / ("beasts/cats & <i>lions</i>" if i % 2 else "things") / name, **options)
    (root / "things/notes.txt").write_text("not an image")


def project(folder: Path, kind: Callable[[Path], None] = lambda package: None, **overrides) -> Path:
    """A fresh checkout of the project with its own parameters; `kind` adds a kind of data to its package."""
    folder.mkdir(parents=True)
    for name in ("dvc.yaml", ".dvcignore", ".gitignore", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("ssl", "stages", ".dvc"):
        ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "cache", "tmp")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    kind(folder / "ssl/selfsup")
    YAML().dump(values(**(SMALLEST | overrides)), folder / "params.yaml")
    dvc(folder, "git", "init", "-q")
    return folder


def dvc(folder: Path, *command: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {name: value for name, value in os.environ.items() if name != "DVC_ROOT"}
    environment |= {"PATH": path, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pipeline") / "project"
    awkward(folder.parent / "images")
    project(folder, data__image__path=str(folder.parent / "images"))
    dvc(folder, "dvc", "repro")
    return folder


def test_awkward_images_go_through_the_whole_pipeline(finished):
    index = json.loads((finished / "data/shards/index.json").read_text())
    assert sum(shard["samples"] for shards in index["splits"].values() for shard in shards) == 20
    assert index["classes"] == ["beasts/cats & <i>lions</i>", "things"] and index["skipped"] == []
    for protocol in values()["evaluation"]["protocols"]:
        rows = json.loads((finished / f"metrics/evaluate/{protocol}.json").read_text())[protocol]
        assert {"method", "random", "pixels", "supervised"} <= set(rows)
    page = (finished / "report/index.html").read_text()
    assert "<i>lions</i>" not in page and "&lt;i&gt;lions" in page
    assert (finished / "models/backbone/config.json").exists()
    for name in ("pretrain", "baseline"):
        assert json.loads((finished / f"metrics/times/{name}.json").read_text())["peak_memory_process"] > 1e8


@pytest.mark.parametrize("row", ["method", "supervised", "random"])
def test_features_are_those_of_the_rows_encoder(finished, row, monkeypatch):
    """The network that is rebuilt for a protocol is the one whose features lie in the file."""
    monkeypatch.chdir(finished)
    params = load()
    splits = open_splits(params.data)
    encoder = encoder_of(row, params, splits["train"])
    folder = finished / "features" / ("pretrained" if row == "method" else f"baselines/{row}")
    found = encode(encoder, splits["test"], torch.device("cpu"))
    np.testing.assert_allclose(found.numpy(), np.load(folder / "test.npy"), atol=1e-5)
    assert not encoder.training
    assert encoder_of("pixels", params, splits["train"]) is None
    if row == "supervised":
        meta = json.loads((folder / "meta.json").read_text())
        assert meta["weights"] == digests.of_files(SUPERVISED)


def ran(out: str) -> set[str]:
    """The stages that DVC ran, but for the one that always runs to see whether images have changed."""
    stages = {line.split("'")[1].partition("@")[0] for line in out.splitlines() if line.startswith("Running stage")}
    return stages - {"watch"}


def test_nothing_to_do_does_nothing(finished):
    out = dvc(finished, "dvc", "repro")
    assert not ran(out) and out.count("is cached") + out.count("didn't change") > 5


def test_an_equal_training_leaves_equal_outs_and_nothing_after_it_runs(finished):
    before = (finished / "dvc.lock").read_text()
    dvc(finished, "dvc", "repro", "--force", "--single-item", "pretrain")
    assert [path.name for path in (finished / "models/pretrained").iterdir()] == ["task.safetensors"]
    after = YAML(typ="safe", pure=True).load((finished / "dvc.lock").read_text())["stages"]["pretrain"]["outs"]
    outs = {out["path"]: out["md5"] for out in YAML(typ="safe", pure=True).load(before)["stages"]["pretrain"]["outs"]}
    assert {out["path"] for out in after if out["md5"] != outs[out["path"]]} <= {"metrics/times/pretrain.json"}
    assert not ran(dvc(finished, "dvc", "repro"))


def test_changed_images_are_sharded_again_and_so_are_the_images_of_before(finished):
    """A folder of another version and back: what DVC keeps of the first version must not be taken for the second."""
    image = finished.parent / "images/things/bitmap.bmp"
    before, first = image.read_bytes(), shards_and_source(finished, image.name)
    assert first == (before, before)
    for content in (before[:-30] + bytes(30), before):
        image.write_bytes(content)
        dvc(finished, "dvc", "repro", "shard")
        assert shards_and_source(finished, image.name) == (content, content)


def shards_and_source(folder: Path, name: str) -> tuple[bytes, bytes]:
    """An image's bytes in the shards and in the folder they were made of."""
    (source,) = (folder.parent / "images").rglob(name)
    values = parse(Params, YAML(typ="safe").load(folder / "params.yaml"))
    for split in ("train", "validation", "test"):
        opened = open_split(folder / "data/shards", split, values.data)
        for number, own in enumerate(opened.names):
            if own.endswith(name):
                return opened.read(number), source.read_bytes()
    raise AssertionError(name)


def test_another_method_reruns_only_what_depends_on_it(finished):
    assert not ran(dvc(finished, "dvc", "repro", "--dry"))
    text = (finished / "params.yaml").read_text()
    (finished / "params.yaml").write_text(text.replace("method: simclr", "method: rotation"))
    dvc(finished, "dvc", "repro", "pretrain")
    assert not ran(dvc(finished, "dvc", "repro", "--dry", "shard", "pixels", "baseline"))
    assert not [*finished.glob("metrics/evaluate/*.json"), *finished.glob("metrics/extract.json")]  # of simclr
    out = dvc(finished, "dvc", "repro")
    assert ran(out) == {"extract", "evaluate", "report"}
    assert "rotation" in json.loads((finished / "metrics/pretrain.json").read_text())["method"]
    (finished / "params.yaml").write_text(text)
    assert not ran(dvc(finished, "dvc", "repro"))  # all of it comes from the run cache


def changed(folder: Path) -> set[str]:
    """The stages that DVC would run if none of those before them changed a file, but for `watch`, which always runs."""
    said = json.loads(dvc(folder, "dvc", "status", "--json"))
    return {name.partition("@")[0] for name in said} - {"watch"}


def change(folder: Path, before: str, after: str) -> None:
    """Change params.yaml, and write what the method now needs of it."""
    path = folder / "params.yaml"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after, 1))
    dvc(folder, "dvc", "repro", "check")


NARROW = "embed_dim: 32"  # of the vision transformer


def test_a_backbone_that_no_run_uses_reruns_nothing(finished):
    """But the report, which shows params.yaml."""
    change(finished, NARROW, "embed_dim: 48")
    try:
        assert changed(finished) == {"report"}
        change(finished, "backbones:", "backbones:\n  small: {name: resnet9, small_stem: false, options: {width: 2}}")
        assert changed(finished) == {"report"}
    finally:
        change(finished, "  small: {name: resnet9, small_stem: false, options: {width: 2}}\n", "")
        change(finished, "embed_dim: 48", NARROW)
    assert not changed(finished)


def test_keys_that_decide_no_shard_rerun_no_shard(finished):
    """How shards are verified and cached; and of what decides one, a change that leaves it equal retrains nothing."""
    change(finished, "verify: full", "verify: size")
    assert changed(finished) == {"report"}
    change(finished, "samples_per_shard: 10000", "samples_per_shard: 9999")
    assert changed(finished) == {"shard", "report"}
    dvc(finished, "dvc", "repro", "shard")
    assert changed(finished) == {"report"}
    change(finished, "samples_per_shard: 9999", "samples_per_shard: 10000")
    change(finished, "verify: size", "verify: full")
    assert not ran(dvc(finished, "dvc", "repro"))


def test_another_architecture_trains_its_own_baselines_and_the_first_ones_come_back(finished):
    def weights() -> bytes:
        return (finished / "features/baselines/random/test.npy").read_bytes()

    before = weights()
    change(finished, "method: simclr", "method: mae")
    try:
        assert not ran(dvc(finished, "dvc", "repro", "--dry", "shard", "pixels"))
        assert {"pretrain", "baseline"} <= changed(finished)
        assert ran(dvc(finished, "dvc", "repro", "baseline")) == {"baseline"}
        meta = json.loads((finished / "features/baselines/random/meta.json").read_text())
        assert meta["backbone"] == "vit" and weights() != before
        assert [path.name for path in (finished / "features/baselines").iterdir()].count("vit") == 0
    finally:
        change(finished, "method: mae", "method: simclr")
    assert not ran(dvc(finished, "dvc", "repro"))  # the run cache has them
    assert weights() == before


def test_images_without_labels_go_through_the_whole_pipeline(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(20):
        save(Image.fromarray(rng.integers(0, 256, (10 + i, 14, 3), np.uint8)), tmp_path / f"images/{i}.jpg")
    folder = project(tmp_path / "project", data__image__path=str(tmp_path / "images"), method="mae")
    dvc(folder, "dvc", "repro")
    for protocol in values()["evaluation"]["protocols"]:
        skipped = "skipped" in json.loads((folder / f"metrics/evaluate/{protocol}.json").read_text())[protocol]
        assert skipped == ("labels" in protocols.find(protocol).needs)
    page = (folder / "report/index.html").read_text()
    assert "needs labels" in page and "effective rank" in page
    for baseline in ("features/baselines/supervised", "models/baselines"):
        assert [path.name for path in (folder / baseline).iterdir()] == ["meta.json"]
        assert json.loads((folder / baseline / "meta.json").read_text())["skipped"]
