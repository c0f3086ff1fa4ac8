"""MAE: the loss sees masked patches only, the encoder visible ones only, and nothing is lost in the shuffle."""

import numpy as np
import pytest
import torch

from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.methods.mae import masked_mse, patchify, take
from selfsup.task import Progress
from tests.contract.runs import build
from tests.helpers import values


def block(**changes):
    small = {"width": 32, "depth": 1, "heads": 2}
    return values()["methods"]["mae"] | {"decoder": small} | changes


def slow_patches(images, p):
    b, c, h, w = images.shape
    return np.array(
        [
            [
                [images[n, k, y * p + i, x * p + j] for i in range(p) for j in range(p) for k in range(c)]
                for y in range(h // p)
                for x in range(w // p)
            ]
            for n in range(b)
        ]
    )


def test_patchify_equals_plain_loops():
    images = np.random.default_rng(0).normal(size=(2, 3, 8, 12))
    np.testing.assert_array_equal(patchify(torch.tensor(images), 4).numpy(), slow_patches(images, 4))


@pytest.mark.parametrize("normalize", [True, False])
def test_loss_equals_the_paper(normalize):
    rng = np.random.default_rng(1)
    prediction, target = rng.normal(size=(2, 3, 5, 12))
    masked = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 0, 1], [1, 1, 1, 0, 0]])
    total = 0.0
    for n in range(3):
        for patch in range(5):
            if masked[n, patch]:
                y = target[n, patch]
                if normalize:
                    y = (y - y.mean()) / np.sqrt(y.var(ddof=1) + 1e-6)
                total += np.mean((prediction[n, patch] - y) ** 2)
    got = masked_mse(*(torch.tensor(x) for x in (prediction, target, masked.astype(float))), normalize)
    assert got.item() == pytest.approx(total / masked.sum(), rel=1e-12)


def test_loss_ignores_visible_patches_and_feels_masked_ones():
    g = torch.Generator().manual_seed(0)
    prediction, target = torch.randn(2, 2, 6, 4, generator=g, dtype=torch.float64)
    masked = torch.tensor([[1.0, 0, 0, 1, 0, 1], [0, 1, 1, 0, 1, 0]], dtype=torch.float64)
    loss = masked_mse(prediction, target, masked, True)
    visible, hidden = target.clone(), target.clone()
    visible[masked == 0] = torch.randn(6, 4, generator=g, dtype=torch.float64) * 100
    hidden[masked == 1] += torch.randn(6, 4, generator=g, dtype=torch.float64)
    assert torch.equal(loss, masked_mse(prediction, visible, masked, True))
    assert not torch.isclose(loss, masked_mse(prediction, hidden, masked, True))


@pytest.mark.parametrize("mask", ["random", "block", "grid"])
@pytest.mark.parametrize("ratio", [0.5, 0.75])
def test_encoder_sees_the_visible_patches_only(shards, mask, ratio):
    task, split, _ = build("mae", shards, double=True, methods__mae=block(mask=mask, mask_ratio=ratio))
    batch = split.gather(torch.arange(4))
    images, keep, restore = task.views(batch, Draw(0, 0, batch["id"]))
    kept = int((1 - ratio) * task.length)
    assert keep.shape == (4, kept) and restore.shape == (4, task.length)
    tokens = task.encode(images, keep, restore)
    assert tokens.shape[1] == kept + task.backbone.net.num_prefix_tokens
    # painting over every hidden patch changes nothing for the encoder
    p, (_, width) = task.patch, task.grid
    painted = images.clone()
    for n in range(4):
        for patch in set(range(task.length)) - set(keep[n].tolist()):
            y, x = divmod(patch, width)
            painted[n, :, y * p : y * p + p, x * p : x * p + p] = 0.123
    torch.testing.assert_close(task.encode(painted, keep, restore), tokens, rtol=1e-12, atol=1e-12)
    assert not torch.equal(task.encode(1 - images, keep, restore), tokens)


def test_unshuffle_of_shuffle_is_the_identity(shards):
    task, split, _ = build("mae", shards, double=True)
    batch = split.gather(torch.arange(4))
    _, keep, restore = task.views(batch, Draw(0, 0, batch["id"]))
    order = restore.argsort(1)
    tokens = torch.randn(4, task.length, 5)
    assert torch.equal(order[:, : keep.shape[1]], keep)
    assert torch.equal(take(take(tokens, order), restore), tokens)


def test_every_patch_is_decoded_in_its_place(shards):
    """A decoder that hands its input through must put the token of patch i at position i."""
    task, split, _ = build("mae", shards, double=True)
    batch = split.gather(torch.arange(3))
    _, keep, restore = task.views(batch, Draw(0, 0, batch["id"]))
    width = task.decoder_embed.out_features
    task.decoder_embed, task.decoder = torch.nn.Identity(), torch.nn.Identity()
    task.positions.zero_()
    tokens = torch.arange(task.length, dtype=torch.float64)[None, :, None].expand(3, -1, width)
    out = task.decode(take(tokens, keep), restore)[:, :, 0]
    for n in range(3):
        for patch in range(task.length):
            expected = patch if patch in keep[n].tolist() else task.mask_token[0].item()
            assert out[n, patch].item() == expected


def test_mask_tokens_may_enter_the_encoder(shards):
    task, split, _ = build("mae", shards, double=True, methods__mae=block(mask_tokens="encoder"))
    batch = split.gather(torch.arange(4))
    views = task.views(batch, Draw(0, 0, batch["id"]))
    assert task.encode(*views).shape[1] == task.length + task.backbone.net.num_prefix_tokens
    task(views, Progress(0, 4, 2)).loss.backward()
    assert task.mask_token.grad.abs().sum() > 0


def test_a_convolutional_backbone_is_refused_in_one_line(shards):
    with pytest.raises(UserError, match=r"methods.mae.backbone.*vit"):
        build("mae", shards, double=False, methods__mae=block(backbone="conv"))


def test_a_ratio_that_leaves_nothing_visible_is_refused(shards):
    with pytest.raises(UserError, match=r"methods.mae.mask_ratio"):
        build("mae", shards, double=False, methods__mae=block(mask_ratio=0.99))
