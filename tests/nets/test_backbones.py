"""Which networks are refused, in one line: those with weights from elsewhere, and those that give no features."""

import sys
from types import SimpleNamespace

import pytest
import torch

from selfsup.errors import UserError
from selfsup.nets.image import check_backbone
from selfsup.params import BackboneParams
from tests.helpers import ROOT, params

LOADING = {
    "pretrained": True,
    "pretrained_cfg": "a1_in1k",
    "pretrained_cfg_overlay": {"file": "weights.safetensors"},
    "checkpoint_path": "weights.safetensors",
    "cache_dir": "weights",
    "weights": "DEFAULT",
}


@pytest.fixture
def check(monkeypatch, tmp_path):
    """`stages/check.py` on the project's parameters with changes, in this process; its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(ROOT / "stages")
    monkeypatch.setattr(sys, "argv", ["check.py"])
    import check

    def run(**overrides) -> str:
        monkeypatch.setattr(check, "load", lambda: params(**overrides))
        with pytest.raises(UserError) as caught:
            check.main()
        assert not (tmp_path / "data").exists()
        return str(caught.value)

    return run


@pytest.mark.parametrize("option", LOADING)
@pytest.mark.parametrize("architecture", ["conv", "vit"])
def test_weights_from_elsewhere_are_refused_with_the_reason(check, monkeypatch, architecture, option):
    """Also in the architecture that this run does not need: a later one would."""
    monkeypatch.setattr("timm.create_model", lambda *_, **__: pytest.fail("nothing may be loaded"))
    name = "resnet18" if architecture == "conv" else "vit_tiny_patch16_224"
    chosen = {"name": name, "small_stem": False, "options": {option: LOADING[option]}}
    line = check(**{f"backbones__{architecture}": chosen}, baselines=["pixels"])
    assert line.startswith(f"backbones: option {option} of {name} loads weights, which is not supported: ")
    assert "random weights" in line and line.endswith("remove it")


def test_options_of_the_architecture_whose_names_are_alike_are_none():
    options = {"embed_dim": 8, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "pretrained_window_sizes": [0] * 4}
    with torch.no_grad():
        check_backbone(
            BackboneParams(name="swinv2_tiny_window8_256", small_stem=False, options=options),
            SimpleNamespace(image_size=64),
        )


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"features_only": True}, "has no attribute 'num_features'"),
        ({"act_layer": "nonsense"}, "'nonsense'"),
        ({"in_chans": 1}, "expected input"),
        ({"global_pool": ""}, "its features are [1, 512, 1, 1]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_options_that_give_no_features_are_the_users(check, options, what):
    line = check(backbones__conv={"name": "resnet18", "small_stem": False, "options": options})
    assert line.startswith("backbones: resnet18 ") and str(options) in line and what in line
