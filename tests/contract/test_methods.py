"""Checks that every registered method passes on arrival."""

import io
import math

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.nets.image import export_backbone
from selfsup.report.sheet import MOST_VIEWS, SAMPLES, views_sheet
from selfsup.task import Progress
from selfsup.training.build import method_params
from tests.contract.runs import build, precisions
from tests.helpers import METHODS, processes, values


@pytest.mark.parametrize("method", METHODS)
def test_every_trained_parameter_gets_a_gradient(hundred, method):
    task, split, _ = build(method, hundred, double=False)
    batch = split.gather(torch.arange(16))
    task.train()(task.views(batch, Draw(0, 0, batch["id"])), Progress(0, 10, 5)).loss.backward()
    without = [name for name, p in task.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert without == []


@pytest.mark.parametrize("method", METHODS)
def test_bfloat16_learns_about_the_same(hundred, tmp_path, method):
    single, half = processes(1, precisions, method, hundred, tmp_path)
    assert math.isfinite(half) and half == pytest.approx(single, rel=0.1, abs=0.02)
    assert half != single  # autocast was on


@pytest.mark.parametrize("method", METHODS)
def test_views_do_not_depend_on_the_batch(hundred, method):
    """A sample's views, masks and numbers are the same alone as in a batch, and the views others in the next epoch."""
    task, split, _ = build(method, hundred, double=False)

    def seventh(ids, epoch=0):
        batch = split.gather(torch.tensor(ids))
        views = task.views(batch, Draw(0, epoch, batch["id"]))
        return [x[ids.index(7)] for x in (views if isinstance(views, tuple) else (views,))]

    alone = seventh([7])
    torch.testing.assert_close(seventh([3, 7, 11]), alone, rtol=0, atol=1e-6)
    for x, other in zip(alone, seventh([7], epoch=1), strict=True):
        assert x.ndim < 3 or not torch.allclose(x, other, atol=1e-3)


@pytest.mark.parametrize("method", METHODS)
def test_forward_changes_no_state_but_batch_norms(hundred, method):
    task, split, _ = build(method, hundred, double=False)
    before = {name: x.clone() for name, x in task.state_dict().items()}
    batch = split.gather(torch.arange(8))
    task.train()(task.views(batch, Draw(0, 0, batch["id"])), Progress(0, 10, 5))
    changed = {name for name, x in task.state_dict().items() if not torch.equal(x, before[name])}
    assert all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in changed)


@pytest.mark.parametrize("method", METHODS)
def test_the_encoder_gives_pooled_features(hundred, method):
    task, _, params = build(method, hundred, double=False)
    size = params.data.of("image").image_size
    out = task.encoder().eval()(torch.rand(3, 3, size, size))
    assert out["pooled"].ndim == 2 and len(out["pooled"]) == 3
    assert "map" in out or "tokens" in out


@pytest.mark.parametrize(("method", "knobs"), [*((method, {}) for method in METHODS), ("deepcluster", {"sobel": True})])
def test_what_was_trained_is_kept_loaded_and_exported(hundred, tmp_path, method, knobs):
    """As the stages do it; a tensor under two names cannot be kept."""
    overrides = {f"methods__{method}__{knob}": value for knob, value in knobs.items()}
    (task, _, params), (other, _, _) = (build(method, hundred, double=False, seed=seed, **overrides) for seed in (0, 1))
    save_file({name: x.contiguous() for name, x in task.state_dict().items()}, tmp_path / "task.safetensors")
    other.load_state_dict(load_file(tmp_path / "task.safetensors"))
    images = torch.rand(3, 3, 16, 16)
    expected, same = (part.eval().encoder()(images)["pooled"] for part in (task, other))
    assert torch.equal(expected, same)

    architecture = params.backbones[method_params(params, method).backbone]
    config = export_backbone(other.encoder(), architecture, params.data.of("image"), tmp_path / "backbone")
    if config["loads_with"] == "timm":
        mean, std = (torch.tensor(config["pretrained_cfg"][name]).view(3, 1, 1) for name in ("mean", "std"))
        found = timm.create_model(f"local-dir:{tmp_path}/backbone", pretrained=True).eval()((images - mean) / std)
    else:
        found = torch.export.load(tmp_path / "backbone/backbone.pt2").module()(images)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_the_report_shows_its_views(hundred, method):
    task, split, _ = build(method, hundred, double=False)
    sheet = Image.open(io.BytesIO(views_sheet(task, split, 0)))
    tile = sheet.width // SAMPLES
    assert sheet.width == tile * SAMPLES and sheet.height % tile == 0 and 2 <= sheet.height // tile <= 1 + MOST_VIEWS
    below = np.asarray(sheet)[tile:]
    assert below.std() > 10, "views, not an empty sheet"


TOKENS = {"class_token": True, "global_pool": "token"}


@pytest.mark.parametrize("method", METHODS)
def test_tokens_and_positions_are_not_decayed(hundred, method):
    """Nor are biases and norms; all other weights are, and no parameter is left out or named twice."""
    vit = values()["backbones"]["vit"]["options"] | {"embed_dim": 32, "depth": 1, "num_heads": 2} | TOKENS
    vit["reg_tokens"] = 0 if method == "mae" else 2  # which it refuses
    overrides = {f"methods__{method}__backbone": "vit", "backbones__vit__options": vit}
    task, _, _ = build(method, hundred, double=False, **overrides)
    names = {id(p): name for name, p in task.named_parameters() if p.requires_grad}
    end = Progress(10, 10, 5)
    spared = {id(p) for group in task.groups() if group.decay and group.decay(end) == 0 for p in group.params}
    decayed = {id(p) for group in task.groups() for p in group.params} - spared
    assert sum(len(group.params) for group in task.groups()) == len(names) and spared | decayed == names.keys()
    parts = {names[number].rsplit(".", 1)[-1]: names[number] for number in decayed}
    assert not parts.keys() & {"cls_token", "reg_token", "pos_embed", "mask_token", "bias"}, parts
    tokens = {"cls_token", "mask_token"} if method == "mae" else {"cls_token", "reg_token"}
    assert tokens <= {names[number].rsplit(".", 1)[-1] for number in spared}


def test_positions_that_are_learnt_are_not_decayed():
    """A table of relative positions has two dimensions, as a weight does; the network says which it is."""
    from selfsup.task import decayed_groups

    net = timm.create_model("swin_tiny_patch4_window7_224", img_size=16, window_size=2, num_classes=0,
                            embed_dim=8, depths=(1, 1), num_heads=(2, 2))  # fmt: skip
    tables = {id(p) for name, p in net.named_parameters() if name.endswith("relative_position_bias_table")}
    weights, others = decayed_groups(torch.nn.ModuleDict({"net": net}))
    assert len(tables) == 2 and tables <= {id(p) for p in others.params}
    assert not tables & {id(p) for p in weights.params}


@pytest.mark.parametrize("method", ["mae", "moco_v3", "dino", "ibot", "supervised"])
def test_images_that_patches_do_not_cover_are_refused(hundred, method):
    """By all users of a vision transformer; timm alone leaves the border out, or fails in the first step."""
    own = {} if method == "mae" else {f"methods__{method}__backbone": "vit"}
    with pytest.raises(
        UserError, match=r"^data.image.image_size: 18 is not a multiple of .* patches of 4 pixels; change"
    ):
        build(method, hundred, double=False, data__image__image_size=18, **own)


@pytest.mark.parametrize("options", [{"class_token": True, "reg_tokens": 4}, {"pos_embed": "none"}, {"fc_norm": True}])
def test_mae_refuses_transformers_it_cannot_mask(hundred, options):
    usual = values()["backbones"]["vit"]["options"]
    with pytest.raises(UserError, match=r"backbones.vit.options"):
        build("mae", hundred, double=False, backbones__vit__options=usual | options)
