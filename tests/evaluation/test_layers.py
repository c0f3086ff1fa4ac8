from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from selfsup.evaluation import inside
from selfsup.evaluation.networks import ImageSplits
from selfsup.evaluation.protocols import layers
from selfsup.features.store import Splits
from selfsup.nets.image import build_backbone
from selfsup.params import BackboneParams
from tests.evaluation import frozen

PARAMS = layers.Params(c=[0.1, 1.0], k=3, temperature=0.07)
VIT = {"patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def backbone(name="resnet9", small=False, size=16, **options):
    torch.manual_seed(0)
    params = BackboneParams(name=name, small_stem=small, options=options or {"width": 2})
    return build_backbone(params, SimpleNamespace(image_size=size), frozen.GREY).eval()


@torch.no_grad()
def test_resnet9_has_a_layer_per_resolution_computed_by_hand():
    net, views = backbone(), torch.rand(3, 3, 16, 16)
    found = layers.layers_of(net, views)
    x, by_hand = net.normalize(views), {}
    for number, part in enumerate(net.net.layers):
        x = part(x)
        by_hand[f"layers.{number}"] = x.mean((2, 3))
    assert list(found) == ["layers.0", "layers.2", "layers.3", "layers.5", "output"]  # 16, 8, 4 and 2 px
    for name in list(found)[:-1]:
        assert torch.equal(found[name], by_hand[name]), name
    assert torch.equal(found["output"], net(views)["pooled"])
    assert not [hook for module in net.modules() for hook in module._forward_hooks.values()]


@torch.no_grad()
@pytest.mark.parametrize(("pool", "token"), [("token", True), ("avg", False)])
def test_a_transformers_blocks_are_pooled_as_the_network_pools(pool, token):
    net = backbone("vit_tiny_patch16_224", **VIT, class_token=token, global_pool=pool, fc_norm=False)
    views = torch.rand(2, 3, 16, 16)
    x = net.net._pos_embed(net.net.patch_embed(net.normalize(views)))
    found = layers.layers_of(net, views)
    assert list(found) == ["blocks.0", "blocks.1", "output"]
    for number, block in enumerate(net.net.blocks):
        x = block(x)
        assert torch.allclose(found[f"blocks.{number}"], x[:, 0] if token else x.mean(1), atol=1e-6)


@torch.no_grad()
def test_stages_of_a_resnet_are_timms_and_of_one_size_the_deepest_counts():
    net = backbone("resnet10t", size=32, drop_rate=0.0)
    names = [info["module"] for info in net.net.feature_info]
    sizes = {}
    for name, x in inside.read(net, torch.rand(1, 3, 32, 32), lambda x: x.clone()).items():
        sizes[name] = x.shape[-1]
    assert list(sizes) == [name for name in names if name in sizes] and len(set(sizes.values())) == len(sizes)
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_figures_of_a_layer_are_those_of_a_probe_of_its_features():
    images, labels = frozen.images(), frozen.LABELS
    net = backbone()
    result = layers.run(net, images, labels, PARAMS, 0)
    with torch.no_grad():
        features = [layers.layers_of(net, each.take(np.arange(len(each))))["layers.2"].numpy() for each in images]
    scaler = StandardScaler().fit(features[0])
    train, validation, test = (scaler.transform(x) for x in features)
    fits = [LogisticRegression(C=c, max_iter=1000).fit(train, labels.train) for c in PARAMS.c]
    scores = [fit.score(validation, labels.validation) for fit in fits]
    joined = np.concatenate([train, validation]), np.concatenate([labels.train, labels.validation])
    best = LogisticRegression(C=PARAMS.c[int(np.argmax(scores))], max_iter=1000).fit(*joined)
    _, name, width, read, tested, *_ = result.tables["depth"].rows[1]
    assert (name, width) == ("layers.2", 4)
    assert read == pytest.approx(max(scores), abs=0.02) and tested == pytest.approx(
        best.score(test, labels.test), abs=0.02
    )


def test_the_best_layer_is_chosen_on_validation_and_equal_readings_give_the_deeper():
    result = layers.run(backbone(), frozen.images(), frozen.LABELS, PARAMS, 0)
    for name, column in (("linear", 3), ("knn", 5)):
        choice, rows = result.choices[f"layer_{name}"], result.tables["depth"].rows
        readings = [row[column] for row in rows]
        assert list(choice.validation.values()) == readings
        assert choice.value == max(i for i, one in enumerate(readings, 1) if one == max(readings))
        assert result.metrics[f"best_{name}"].value == rows[int(choice.value) - 1][column + 1]
        assert result.metrics[f"output_{name}"].value == rows[-1][column + 1]
        assert [y for _, y in result.plots[name].points] == [row[column + 1] for row in rows]


def test_features_of_layers_lie_in_the_working_folder_and_are_gone_afterwards(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "memory"))
    assert layers.run(backbone(), frozen.images(), frozen.LABELS, PARAMS, 0).metrics
    assert [*tmp_path.rglob("*")] == [tmp_path / ".cache"]


def test_each_image_is_encoded_once():
    images, seen = frozen.images(), []
    net = backbone()
    net.register_forward_hook(lambda _module, given, _out: seen.append(len(given[0])))
    layers.run(net, images, frozen.LABELS, PARAMS, 0)
    assert sum(seen) == sum(len(each) for each in images)


def test_perfect_and_constant_outputs_score_all_and_chance():
    labels = Splits(*(np.arange(n) % 2 for n in (40, 20, 20)))
    images = ImageSplits(
        *(frozen.Plain(torch.from_numpy(own).float().view(-1, 1, 1, 1).expand(-1, 3, 4, 4)) for own in labels)
    )
    perfect = layers.run(frozen.Means(), images, labels, PARAMS, 0)
    assert perfect.metrics["best_linear"].value == perfect.metrics["output_knn"].value == 1
    assert perfect.notes == ["has no stages that can be read: its output is its only layer"]
    constant = layers.run(frozen.Constant(), images, labels, PARAMS, 0)
    assert constant.metrics["best_linear"].value == constant.metrics["best_knn"].value == 0.5


def test_an_encoder_with_something_before_its_network_is_looked_into():
    class Grey(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            return self.net(x.mean(1, keepdim=True).expand(-1, 3, -1, -1))

    net, views = backbone(), torch.rand(2, 3, 16, 16)
    grey = views.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    with torch.no_grad():
        assert torch.equal(layers.layers_of(Grey(net), views)["layers.0"], layers.layers_of(net, grey)["layers.0"])


@torch.no_grad()
def test_a_stage_whose_output_is_overwritten_by_the_next_is_read_before():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.ReLU(inplace=True))

        def forward_features(self, x):
            return self.layers(x)

        def forward(self, x):
            return {"pooled": self.forward_features(x).mean((2, 3))}

    net, views = InPlace(), torch.rand(2, 3, 10, 10)
    by_hand = net.layers[0](views)
    found = layers.layers_of(net, views)
    assert list(found) == ["layers.0", "layers.2", "output"], "of one size the deepest counts"
    assert torch.equal(found["layers.0"], by_hand.mean((2, 3))) and by_hand.min() < 0
    taken = inside.read(net, views, lambda x: x.amin((1, 2, 3)))
    assert taken["layers.0"].max() < 0 and taken["layers.2"].min() >= 0
