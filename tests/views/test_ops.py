"""Batched operations against torchvision's, one sample at a time at the same numbers."""

import math

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from selfsup.views.image import ops

B = 24
FLOATS = [(torch.float32, 2e-6), (torch.float64, 1e-13)]  # dtype, largest error allowed on values in 0..1


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def pictures(dtype: torch.dtype, height: int = 32, width: int = 28) -> Tensor:
    """Noise, with flat, grey, black, white, saturated and coarsely quantised images among it."""
    images = rand(B, 3, height, width, dtype=dtype)
    images[0], images[1], images[2] = 0.3, 0.0, 1.0
    images[3] = (images[3] > 0.5).to(dtype)
    images[4] = images[4, :1]
    images[5] = (images[5] * 4).round() / 4
    return images


def random_boxes(height: int, width: int) -> Tensor:
    """Crops of any shape and place, the whole image and single pixels among them."""
    u = rand(B, 4, dtype=torch.float64, seed=1)
    tall, wide = (1 + (u[:, 0] * height).floor()).long(), (1 + (u[:, 1] * width).floor()).long()
    tall[0], wide[0], tall[1], wide[1], tall[2], wide[3] = height, width, 1, 1, 1, 1
    top, left = (u[:, 2] * (height - tall + 1)).long(), (u[:, 3] * (width - wide + 1)).long()
    return torch.stack([top, left, tall, wide], 1)


def one_by_one(images: Tensor, boxes: Tensor, size: int, flip: Tensor) -> Tensor:
    crops = [
        tv.resized_crop(image, *box, size=[size, size], antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    return torch.stack([crop.flip(2) if f else crop for crop, f in zip(crops, flip, strict=True)])


WAYS = [ops.crop_by_matrices, ops.crop_one_by_one]


@pytest.fixture(params=[*WAYS, "matrices alone"])
def crop(request, monkeypatch):
    """Every way to crop, whatever the size of the images: what device and size choose is for speed alone."""
    if request.param != "matrices alone":
        return request.param

    def resize_rows(images: Tensor, top: Tensor, tall: Tensor, size: int) -> Tensor:  # as on other devices
        still = torch.zeros(len(images), dtype=torch.bool)
        return ops.resize_weights(top, tall, images.shape[2], size, images.dtype, still)[:, None] @ images

    monkeypatch.setattr(ops, "resize_rows", resize_rows)
    return ops.crop_by_matrices


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.float64, 1e-13)])
@pytest.mark.parametrize(
    ("height", "width", "size"), [(96, 96, 32), (32, 32, 32), (8, 8, 32), (50, 96, 33), (97, 40, 64), (224, 180, 96)]
)
def test_crops_equal_torchvision(crop, height, width, size, dtype, error):
    images, boxes, flip = rand(B, 3, height, width, dtype=dtype), random_boxes(height, width), rand(B) < 0.5
    views = crop(images, boxes, size, flip)
    assert views.dtype == dtype
    whole = ops.resized_crop(images, boxes, size, flip)  # which picks a way
    assert (whole - views).abs().max() <= error and whole.min() >= 0 and whole.max() <= 1
    assert (views - one_by_one(images, boxes, size, flip)).abs().max() <= error
    assert (views - one_by_one(images, boxes, size, ~flip)).abs().max() > 0.1


def test_crops_of_bytes(crop):
    images = (rand(B, 3, 64, 48) * 256).to(torch.uint8)
    boxes, flip = random_boxes(64, 48), rand(B) < 0.5
    views = crop(images, boxes, 24, flip)
    assert views.dtype == torch.float32
    assert (views - one_by_one(images.double() / 255, boxes, 24, flip)).abs().max() <= 1e-5
    assert (crop(images.double() / 255, boxes, 24, flip) - views).abs().max() <= 1e-5
    whole = torch.tensor([[0, 0, 48, 48]]).repeat(B, 1)
    assert (
        crop(images, whole, 48, torch.zeros_like(flip)) * 255 - images[:, :, :48, :48]
    ).abs().max() < 1e-4  # nothing to resize


def test_antialias_matters_when_shrinking():
    """The control of the tests above: plain bilinear interpolation is another picture."""
    images = rand(B, 3, 96, 96)
    whole = torch.tensor([[0, 0, 96, 96]]).expand(B, 4)
    plain = torch.nn.functional.interpolate(images, (32, 32), mode="bilinear")
    assert (ops.resized_crop(images, whole, 32) - plain).abs().max() > 0.2


@pytest.mark.parametrize("size", [8, 24, 64])
def test_nothing_bleeds_into_a_crop(crop, size):
    boxes = random_boxes(40, 40)
    images = torch.full((B, 3, 40, 40), 1e6, dtype=torch.float64)
    for image, (top, left, tall, wide) in zip(images, boxes.tolist(), strict=True):
        image[:, top : top + tall, left : left + wide] = 0.25
    flip = torch.zeros(B, dtype=torch.bool)
    assert (crop(images, boxes, size, flip) - 0.25).abs().max() < 1e-9
    images[5, :, boxes[5, 0], boxes[5, 1]] = 1e6  # a pixel of the crop itself does show
    assert crop(images, boxes, size, flip)[5].max() > 1


@pytest.mark.parametrize(("dtype", "error"), FLOATS)
@pytest.mark.parametrize("kernel", [3, 9, 23])
def test_blur_equals_torchvision(kernel, dtype, error):
    images, sigma = pictures(dtype), 0.1 + 1.9 * rand(B, seed=6)
    expected = [
        tv.gaussian_blur(image, [kernel, kernel], [s, s]) for image, s in zip(images, sigma.tolist(), strict=True)
    ]
    blurred = ops.gaussian_blur(images, sigma, kernel)
    assert blurred.dtype == dtype
    assert (blurred - torch.stack(expected)).abs().max() <= error
    assert (blurred - torch.stack(expected).roll(1, 0)).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_solarize_equals_torchvision(dtype):
    images = pictures(dtype)
    images[6, :, 0, 0] = 0.5  # on the threshold
    assert torch.equal(ops.solarize(images), tv.solarize(images, 0.5))
    assert torch.equal(ops.solarize(images, 0.2), tv.solarize(images, 0.2))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_quarter_turns_are_exact(dtype):
    images = (rand(9, 3, 7, 7) * 255).to(dtype)
    turns = torch.tensor([0, 1, 2, 3, 4, 5, -1, 3, 0])
    expected = [torch.rot90(image, turn, (1, 2)) for image, turn in zip(images, turns.tolist(), strict=True)]
    assert torch.equal(ops.rotate(images, turns), torch.stack(expected))
    with pytest.raises(ValueError, match="square"):
        ops.rotate(images[:, :, :5], turns)


def test_eighth_turns_show_the_same_square():
    size = 64
    y, x = torch.meshgrid(torch.arange(size) + 0.5 - size / 2, torch.arange(size) + 0.5 - size / 2, indexing="ij")
    image = torch.stack([x, y, x * 0 + 9]).double() / size + 0.5  # a ramp along x, one along y, a constant
    image[:, (y**2 + x**2).sqrt() > size / 2 + 1] = torch.nan  # outside the disc: never to be seen at any angle
    images = image.expand(8, 3, size, size)
    turned = ops.rotate_eighths(images, torch.arange(8))
    assert turned.isfinite().all()
    for i in range(8):
        angle = i * math.pi / 4
        # anticlockwise as seen, y pointing down
        seen_x = (x * math.cos(angle) - y * math.sin(angle)) / 2**0.5
        seen_y = (x * math.sin(angle) + y * math.cos(angle)) / 2**0.5
        assert (turned[i, 0] - (seen_x / size + 0.5)).abs().max() < 1e-5
        assert (turned[i, 1] - (seen_y / size + 0.5)).abs().max() < 1e-5
    smooth = image.nan_to_num()[None]
    quarter = ops.rotate_eighths(torch.rot90(smooth, 1, (2, 3)), torch.tensor([0]))
    assert (ops.rotate_eighths(smooth, torch.tensor([2])) - quarter).abs().max() < 1e-5  # agrees with `rotate`


@pytest.mark.parametrize(("patches", "ratio", "kept"), [(64, 0.75, 16), (196, 0.75, 49), (49, 0.6, 19), (50, 0.5, 25)])
def test_patch_mask_keeps_the_lowest_scores(patches, ratio, kept):
    scores = rand(B, patches)
    keep, restore = ops.patch_mask(scores, ratio)
    assert keep.shape == (B, kept) and restore.shape == (B, patches)
    images = torch.arange(B * patches).view(B, patches)
    hidden = restore.argsort(dim=1)[:, kept:]
    sorted_patches = torch.cat([images.gather(1, keep), images.gather(1, hidden)], 1)
    assert torch.equal(sorted_patches.gather(1, restore), images)
    assert not torch.equal(sorted_patches, images)
    mask = restore >= kept
    assert (mask.sum(1) == patches - kept).all()
    assert not mask.gather(1, keep).any()
    for i in range(B):
        assert scores[i][~mask[i]].max() < scores[i][mask[i]].min()


def test_block_scores_by_hand():
    blocks = torch.tensor([[[0, 0, 2, 2], [1, 1, 2, 3], [0, 0, 3, 1]]])
    assert ops.block_scores(blocks, 3, 4).view(3, 4).tolist() == [[0, 0, -3, -3], [0, 0, -1, -1], [-2, -1, -1, -1]]


@pytest.mark.parametrize("side", [4, 8, 14])
def test_grid_scores_are_regular(side):
    order = ops.grid_scores(side, side).argsort()
    assert len(set(ops.grid_scores(side, side).tolist())) == side**2
    quarter, half = (torch.zeros(side * side, dtype=torch.bool) for _ in range(2))
    quarter[order[: side**2 // 4]] = True
    half[order[: side**2 // 2]] = True
    row, column = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    assert torch.equal(quarter.view(side, side), (row % 2 == 0) & (column % 2 == 0))
    assert torch.equal(half.view(side, side), (row + column) % 2 == 0)
