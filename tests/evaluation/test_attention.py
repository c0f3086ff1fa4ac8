import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from selfsup.evaluation import inside
from selfsup.evaluation.protocols import attention
from selfsup.evaluation.result import Unfit
from tests.evaluation import frozen
from tests.evaluation.test_layers import VIT, backbone

PARAMS = attention.Params(images=4)


def transformer(token):
    pool = "token" if token else "avg"
    return backbone("vit_tiny_patch16_224", **VIT, class_token=token, global_pool=pool, fc_norm=False)


@torch.no_grad()
@pytest.mark.parametrize("token", [True, False])
def test_attention_is_the_softmax_of_queries_and_keys_of_the_last_block(token):
    net, views = transformer(token), torch.rand(3, 3, 16, 16)
    vit, weights = net.net, []
    x = vit.blocks[0](vit._pos_embed(vit.patch_embed(net.normalize(views))))
    block = vit.blocks[1]
    q, k, _ = block.attn.qkv(block.norm1(x)).reshape(3, -1, 3, 2, 16).permute(2, 0, 3, 1, 4)  # 2 heads of 16
    by_hand = (q @ k.transpose(2, 3) / 4).softmax(3)  # [3 2 L L]
    before = net(views)["pooled"]
    with inside._attention_of(block.attn, weights.append):
        during = net(views)["pooled"]
    assert torch.allclose(weights[0], by_hand, atol=1e-6)
    assert torch.allclose(weights[0].sum(3), torch.ones(3, 2, 16 + token), atol=1e-6), "rows sum to 1"
    assert torch.allclose(before, during, atol=1e-6) and torch.equal(net(views)["pooled"], before)
    found = inside.attention(net, views)
    grid = by_hand[:, :, 0, 1:] if token else by_hand.mean(2)
    assert torch.allclose(found, grid.unflatten(2, (4, 4)), atol=1e-6)


def test_a_convolutional_network_has_no_attention_and_its_squares_are_summed():
    net, views = backbone(width=2), torch.rand(2, 3, 16, 16)
    assert inside.attention(net, views) is None
    x = torch.tensor([[[[1.0, 2.0]], [[3.0, -4.0]]]])  # [1 2 1 2]
    assert torch.equal(attention.convolutional(x), torch.tensor([[[10.0, 20.0]]]))


def test_components_are_those_of_scikit_learn_and_foreground_is_the_middle():
    rng = np.random.default_rng(0)
    features = 0.05 * rng.normal(size=(3, 5, 6, 6))
    features[:, :, 2:4, 2:4] += np.array([1, -2, 0.5, 3, 1])[:, None, None]
    features[:, 1, 2, 2:4] += 0.5
    foreground, colours = attention.components(torch.from_numpy(features).float())
    middle = np.zeros((6, 6), bool)
    middle[2:4, 2:4] = True
    assert np.array_equal(foreground.numpy(), np.broadcast_to(middle, (3, 6, 6)))
    assert (colours.permute(0, 2, 3, 1)[~foreground] == 0).all(), "black outside"
    patches = features.transpose(0, 2, 3, 1).reshape(-1, 5)[foreground.flatten().numpy()]
    expected = PCA(3).fit_transform(patches)
    found = colours.permute(0, 2, 3, 1)[foreground].numpy()
    for one, other in zip(found.T, expected.T, strict=True):
        scaled = (other - other.min()) / np.ptp(other)
        assert np.allclose(one, scaled, atol=1e-4) or np.allclose(one, 1 - scaled, atol=1e-4)


def test_a_mask_is_carried_to_the_most_similar_patches():
    features = torch.randn(3, 8, 4, 4, generator=torch.Generator().manual_seed(0))
    features[1] = features[0].rot90(1, (1, 2)) * 7  # cosine takes no notice of length
    mask = torch.zeros(4, 4, dtype=torch.bool)
    mask[0, :3] = True
    found = attention.carried(features, mask)
    assert torch.equal(found[0], mask) and torch.equal(found[1], mask.rot90(1, (0, 1)))
    flat = nn.functional.normalize(features.flatten(2), dim=1)
    nearest = [[int((flat[0].T @ flat[2][:, j]).argmax()) for j in range(16)]]
    assert torch.equal(found[2].flatten(), mask.flatten()[torch.tensor(nearest[0])])


@pytest.mark.parametrize(
    ("net", "kinds"),
    [
        (lambda: transformer(True), ["images", "attention", "heads", "components", "carried"]),
        (lambda: backbone(width=2), ["images", "squares", "components", "carried"]),
    ],
)
def test_pictures_have_a_column_per_image_and_are_the_same_again(net, kinds):
    encoder, images = net(), frozen.images()
    result = attention.run(encoder, images, PARAMS, 3)
    assert list(result.pictures) == kinds and result.metrics == {}
    lines = {"heads": 2, "squares": 4}
    for name, picture in result.pictures.items():
        assert picture.pixels.dtype == np.uint8 and picture.title and picture.text
        assert picture.pixels.shape == (66 * lines.get(name, 1) - 2, 66 * 4 - 2, 3), name
    again = attention.run(encoder, images, PARAMS, 3)
    assert all(np.array_equal(one.pixels, again.pictures[name].pixels) for name, one in result.pictures.items())
    other = attention.run(encoder, images, PARAMS, 4)
    assert not np.array_equal(other.pictures["images"].pixels, result.pictures["images"].pixels), "the seed has a say"


def test_equal_features_give_pictures_too():
    encoder = backbone(width=1)
    for weight in encoder.parameters():
        nn.init.zeros_(weight)
    assert set(attention.run(encoder, frozen.images(), PARAMS, 0).pictures) == {
        "images",
        "squares",
        "components",
        "carried",
    }


def test_more_images_than_there_are_and_no_network():
    result = attention.run(backbone(width=1), frozen.images(), attention.Params(images=64), 0)
    assert result.pictures["images"].pixels.shape[1] == 66 * 60 - 2
    with pytest.raises(Unfit, match="has no network to look into"):
        attention.run(frozen.Means(), frozen.images(), PARAMS, 0)


def test_a_network_without_stages_has_no_places():
    class Flat(nn.Module):
        def forward_features(self, x):
            return x.flatten(1)

        def forward(self, x):
            return {"pooled": self.forward_features(x)}

    with pytest.raises(Unfit, match="has no features of places that can be read"):
        attention.run(Flat(), frozen.images(), PARAMS, 0)
