"""Colours of a batch against torchvision's, one sample at a time at the same numbers, and against slow loops."""

import colorsys
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor

from selfsup.views.image import colour
from tests.views.test_ops import FLOATS, B, pictures, rand

FACTORS = {
    "brightness": 2 * rand(B, dtype=torch.float64, seed=2),
    "contrast": 2 * rand(B, dtype=torch.float64, seed=3),
    "saturation": 2 * rand(B, dtype=torch.float64, seed=4),
    "hue": rand(B, dtype=torch.float64, seed=5) - 0.5,
}
FACTORS["hue"][7], FACTORS["hue"][8], FACTORS["saturation"][7], FACTORS["brightness"][7] = 0.5, -0.5, 0.0, 0.0


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_colour_operations_equal_torchvision(name, dtype):
    images, factors = pictures(dtype), FACTORS[name]
    before = images.clone()
    operation = getattr(colour, name)
    changed = operation(images, factors)
    expected = [
        getattr(tv, f"adjust_{name}")(image, factor) for image, factor in zip(images, factors.tolist(), strict=True)
    ]
    # torchvision turns the hue in float32 whatever the images, see the test against colorsys
    error = 1e-13 if dtype == torch.float64 and name != "hue" else 5e-6
    assert changed.dtype == dtype
    assert (changed - torch.stack(expected)).abs().max() <= error
    assert torch.equal(images, before)
    assert torch.equal(operation(images, factors, out=images), changed)  # in place, too
    assert torch.equal(images, changed)


@pytest.mark.parametrize(("name", "neutral"), [("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0)])
def test_neutral_numbers_change_nothing(name, neutral):
    images = pictures(torch.float64)
    same = getattr(colour, name)(images, torch.full((B,), float(neutral)))
    assert (same - images).abs().max() < 1e-14


def test_hue_equals_colorsys():
    images, turns = pictures(torch.float64, 6, 5), FACTORS["hue"]
    turned = colour.hue(images, turns)
    for i in range(B):
        for pixel, result in zip(images[i].flatten(1).T.tolist(), turned[i].flatten(1).T.tolist(), strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            expected = colorsys.hsv_to_rgb((hue + turns[i].item()) % 1, saturation, value)
            assert result == pytest.approx(expected, abs=1e-13)


@pytest.mark.parametrize(("dtype", "error"), FLOATS)
def test_grey_equals_torchvision(dtype, error):
    images = pictures(dtype)
    assert (colour.to_grey(images) - tv.rgb_to_grayscale(images, 3)).abs().max() <= error


def in_turn(image: Tensor, factors: list[float], order: list[int]) -> Tensor:
    operations: list[Callable] = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for code in order:
        if code < 4:
            image = operations[code](image, factors[code])
    return image


def test_every_sample_is_jittered_in_its_own_order():
    images = pictures(torch.float64)
    factors = torch.stack(list(FACTORS.values()), 1)
    order = rand(B, 4, seed=7).argsort(dim=1)
    order[9], order[10, 1:3] = 4, 4  # one not at all, one in part
    before = images.clone()
    jittered = colour.colour_jitter(images, factors, order)
    assert torch.equal(images, before)
    expected = [in_turn(*numbers) for numbers in zip(images, factors.tolist(), order.tolist(), strict=True)]
    assert (jittered - torch.stack(expected)).abs().max() < 5e-6
    assert torch.equal(jittered[9], images[9])
    other = [in_turn(*numbers) for numbers in zip(images, factors.tolist(), order.flip(1).tolist(), strict=True)]
    assert (jittered - torch.stack(other)).flatten(1).abs().amax(1).median() > 0.01  # the order matters


LUMA = np.array([0.2989, 0.587, 0.114])
PRIMARIES = np.exp(2j * np.pi * np.arange(3) / 3)  # red, green and blue in the plane of chroma


def jittered_slowly(image: Tensor, factors: list[float], order: list[int], grey: bool) -> np.ndarray:
    """Operation after operation, pixel after pixel, uncut until the end."""
    pixels = image.flatten(1).T.numpy().astype(np.float64)  # [HW 3]
    for code in order:
        if code == 0:
            pixels = pixels * factors[0]
        elif code == 1:
            pixels = factors[1] * pixels + (1 - factors[1]) * (pixels @ LUMA).mean()
        elif code == 2:
            pixels = factors[2] * pixels + (1 - factors[2]) * (pixels @ LUMA)[:, None]
        elif code == 3:
            luma, chroma = pixels @ LUMA, pixels @ PRIMARIES * np.exp(2j * np.pi * factors[3])
            # the colour of this luma and chroma: three equations
            equations = np.stack([LUMA, PRIMARIES.real, PRIMARIES.imag])
            pixels = np.linalg.solve(equations, np.stack([luma, chroma.real, chroma.imag])).T
    if grey:
        pixels = np.repeat((pixels @ LUMA)[:, None], 3, 1)
    return pixels.T.reshape(image.shape).clip(0, 1)


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 5e-6), (torch.float64, 1e-13)])
def test_matrix_jitter_equals_a_slow_loop(dtype, error):
    images, factors, grey = pictures(dtype), torch.stack(list(FACTORS.values()), 1), rand(B) < 0.3
    before, order = images.clone(), rand(B, 4, seed=7).argsort(dim=1)  # which does not matter
    made = colour.matrix_jitter(images, factors, grey)
    assert made.dtype == dtype and torch.equal(images, before)
    numbers = zip(images, factors.tolist(), order.tolist(), grey.tolist(), strict=True)
    expected = torch.from_numpy(np.stack([jittered_slowly(*own) for own in numbers]))
    assert (made - expected).abs().max() <= error


def test_matrix_jitter_of_neutral_numbers_changes_nothing():
    images, never = pictures(torch.float32), torch.zeros(B, dtype=torch.bool)
    neutral = torch.tensor([1.0, 1.0, 1.0, 0.0]).expand(B, 4)
    assert (colour.matrix_jitter(images, neutral, never) - images).abs().max() < 1e-6


def test_matrix_jitter_is_the_exact_one_where_nothing_is_cut_and_no_hue_turns():
    images, order, grey = 0.3 + 0.4 * pictures(torch.float64), rand(B, 4, seed=7).argsort(dim=1), rand(B) < 0.5
    factors = 0.9 + 0.2 * rand(B, 4, dtype=torch.float64, seed=8)
    factors[:, 3] = 0
    exact = colour.colour_jitter(images, factors, order)
    assert exact.min() > 0 and exact.max() < 1
    exact = torch.where(grey[:, None, None, None], colour.to_grey(exact), exact)
    assert (colour.matrix_jitter(images, factors, grey) - exact).abs().max() < 1e-12


def test_matrix_hue_keeps_luma_and_chroma_and_turns_as_hsv_does():
    images, never = 0.4 + 0.2 * rand(B, 3, 9, 9, dtype=torch.float64), torch.zeros(B, dtype=torch.bool)
    factors = torch.stack(list(FACTORS.values()), 1)
    factors[:, :3] = 1

    def chroma(x: Tensor) -> Tensor:
        return torch.einsum("bchw,c->bhw", x.to(torch.complex128), torch.from_numpy(PRIMARIES))

    def luma(x: Tensor) -> Tensor:
        return torch.einsum("bchw,c->bhw", x, torch.from_numpy(LUMA))

    turned = colour.matrix_jitter(images, factors, never)
    assert turned.min() > 0 and turned.max() < 1
    assert (luma(turned) - luma(images)).abs().max() < 1e-12
    assert (chroma(turned).abs() - chroma(images).abs()).abs().max() < 1e-12
    assert (chroma(turned) - chroma(images)).abs().max() > 0.1
    factors[:, 3] = 1 / 3  # where HSV's hexagon and the circle agree
    third, hsv = colour.matrix_jitter(images, factors, never), colour.hue(images, factors[:, 3])
    assert (chroma(third) - chroma(hsv)).abs().max() < 1e-12


def test_grey_after_matrix_jitter_has_equal_channels():
    images, always = pictures(torch.float32), torch.ones(B, dtype=torch.bool)
    made = colour.matrix_jitter(images, torch.stack(list(FACTORS.values()), 1), always)
    assert (made - made[:, :1]).abs().max() < 1e-6
