"""An exported backbone gives the same features in an interpreter that has never heard of this package."""

import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch

from selfsup.nets.image import build_backbone, export_backbone
from selfsup.params import BackboneParams

SIZE = SimpleNamespace(image_size=32)
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "class_token": False, "global_pool": "avg"}
CASES = {
    "resnet9": (BackboneParams(name="resnet9", small_stem=False, options={"width": 4}), "torch.export"),
    "small stem": (BackboneParams(name="resnet10t", small_stem=False, options={"stem_width": 8}), "timm"),
    "resnet": (BackboneParams(name="resnet18", small_stem=True, options={"channels": [8, 16, 16, 32]}), "torch.export"),
    "vit": (BackboneParams(name="vit_tiny_patch16_224", small_stem=False, options=VIT | {"fc_norm": False}), "timm"),
}
WITH = {
    "timm": """
        import json, timm
        net = timm.create_model("local-dir:backbone", pretrained=True).eval()
        config = json.load(open("backbone/config.json"))["pretrained_cfg"]
        mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("mean", "std"))
        features = net((images - mean) / std)
    """,
    "torch.export": """
        features = torch.export.load("backbone/backbone.pt2").module()(images)
    """,
}


@pytest.mark.parametrize("case", CASES)
def test_features_are_the_same_elsewhere(case, tmp_path):
    params, way = CASES[case]
    torch.manual_seed(0)
    backbone = build_backbone(params, SIZE, SimpleNamespace(mean=[0.4, 0.5, 0.6], std=[0.2, 0.3, 0.25]))
    for name, buffer in backbone.named_buffers():  # statistics that are not those of a fresh batch norm
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    config = export_backbone(backbone, params, SIZE, tmp_path / "backbone")
    assert config["loads_with"] == way
    images = torch.rand(5, 3, 32, 32)
    torch.save({"images": images, "features": backbone(images)["pooled"].detach()}, tmp_path / "expected.pt")
    script = "import sys, torch\n"
    script += 'expected = torch.load("expected.pt", weights_only=True); images = expected["images"]\n'
    script += "with torch.no_grad():\n" + textwrap.indent(textwrap.dedent(WITH[way]), "    ")
    script += "\nprint((features - expected['features']).abs().max().item(), 'selfsup' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    difference, ours = done.stdout.split()
    assert float(difference) < 1e-6 and ours == "False"
