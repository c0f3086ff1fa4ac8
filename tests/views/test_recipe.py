"""Views as a whole: a function of seed, epoch and sample alone, drawn from the distributions that `views` names."""

from concurrent.futures import ThreadPoolExecutor
from typing import Literal

import pytest
import torch
import torchvision.transforms.v2.functional as tv
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from selfsup.draw import Draw
from selfsup.params import ViewsParams
from selfsup.views.image import recipe
from tests.helpers import params

EVERYTHING = {
    "views__flip": 0.5,
    "views__grey": 0.2,
    "views__blur": [0.5, 0.3],
    "views__solarize": [0.1, 0.4],
}
NOTHING = {
    "views__flip": 0.0,
    "views__grey": 0.0,
    "views__blur": [0.0, 0.0],
    "views__solarize": [0.0, 0.0],
    "views__jitter__p": 0.0,
}
IDS = torch.arange(40) * 97


def views(**overrides: object) -> ViewsParams:
    return params(**(EVERYTHING | overrides)).views


def pictures(store: int = 40, dtype: torch.dtype = torch.uint8) -> dict[str, Tensor]:
    """Images of unequal sizes; what lies outside the valid box is white, what lies inside is darker."""
    generator = torch.Generator().manual_seed(0)
    box = torch.randint(1, store + 1, (len(IDS), 2), generator=generator)
    box[0], box[1] = store, 1
    images = torch.full((len(IDS), 3, store, store), 255)
    for image, (height, width) in zip(images, box.tolist(), strict=True):
        image[:, :height, :width] = torch.randint(0, 200, (3, height, width), generator=generator)
    images = images.to(torch.uint8) if dtype == torch.uint8 else images.to(dtype) / 255
    return {"id": IDS, "image": images, "box": box, "label": torch.zeros_like(IDS)}


def rows(batch: dict[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    return {name: values[index] for name, values in batch.items()}


def make(kind: str, batch: dict[str, Tensor], size: int = 24, seed: int = 0, epoch: int = 0) -> Tensor:
    draw = Draw(seed, epoch, batch["id"])
    if kind in ("exact", "matrix"):  # two views
        return torch.stack(recipe.two_views(batch, draw, views(views__colour=kind), size), 1)
    return recipe.crop_view(batch, draw, views(), size) if kind == "crop" else recipe.centre_view(batch, size)


@pytest.fixture(params=[1, 3], ids="{} threads".format)
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    assert torch.get_num_threads() == request.param  # views leave the setting alone
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == request.param
    torch.set_num_threads(before)


@pytest.mark.parametrize("kind", ["exact", "matrix", "crop", "centre"])
@pytest.mark.parametrize("store", [40, 80])  # both ways to crop on a CPU
def test_a_view_does_not_depend_on_its_batch(kind, store, threads, monkeypatch):
    batch = pictures(store)
    torch.set_num_threads(2)
    whole = make(kind, batch)
    torch.set_num_threads(threads)
    order = torch.arange(len(IDS)).flip(0).roll(7)
    assert (make(kind, rows(batch, order)) - whole[order]).abs().max() <= 1e-6
    halves = [make(kind, rows(batch, half)) for half in torch.arange(len(IDS)).split(len(IDS) // 2)]
    assert (torch.cat(halves) - whole).abs().max() <= 1e-6
    for i in torch.arange(0, len(IDS), 9):
        assert (make(kind, rows(batch, i[None]))[0] - whole[i]).abs().max() <= 1e-6
    monkeypatch.setattr(recipe, "PART", 7 * 24**2)
    assert (make(kind, batch) - whole).abs().max() <= 1e-6


def test_seed_and_epoch_change_the_views():
    batch = pictures()
    whole = make("exact", batch)
    assert torch.equal(make("exact", batch), whole)
    for other in (make("exact", batch, seed=1), make("exact", batch, epoch=1), whole.flip(1)):
        assert ((other - whole).abs().amax((1, 2, 3, 4)) > 0.05).float().mean() > 0.9


@pytest.mark.parametrize("kind", ["exact", "matrix", "crop", "centre"])
def test_views_are_floats_in_the_unit_interval(kind):
    for dtype, out in ((torch.uint8, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)):
        made = make(kind, pictures(dtype=dtype))
        assert made.dtype == out and made.shape[-3:] == (3, 24, 24)
        assert made.min() >= 0 and made.max() <= 1
        assert (made - make(kind, pictures())).abs().max() < 1e-4  # the same view whatever the dtype


@pytest.mark.usefixtures("threads")
def test_no_gradient_and_full_precision_under_autocast():
    batch = pictures(dtype=torch.float32)
    plain = make("exact", batch)
    batch["image"].requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made = make("exact", batch)
        product = torch.ones(2, 2) @ torch.ones(2, 2)
    assert product.dtype == torch.bfloat16  # autocast was on
    assert not made.requires_grad and torch.equal(made, plain)


@pytest.mark.parametrize("kind", ["crop", "centre", "exact", "matrix"])
@pytest.mark.parametrize("store", [40, 80])
@pytest.mark.parametrize("size", [16, 96])
def test_padding_never_shows(kind, store, size):
    """What lies outside the valid box has no say, not even through antialiasing at the edges."""
    batch = pictures(store)
    seen = [make(kind, batch, size, epoch=epoch) for epoch in range(5)]
    height, width = batch["box"].T
    pixel = torch.arange(store)
    outside = (pixel[:, None] >= height[:, None, None]) | (pixel >= width[:, None, None])  # [B S S]
    batch["image"] = torch.where(outside[:, None], 7, batch["image"])
    assert all(torch.equal(make(kind, batch, size, epoch=epoch), seen[epoch]) for epoch in range(5))
    batch["image"] = 255 - batch["image"]
    assert not torch.equal(make(kind, batch, size), seen[0])


def test_crops_lie_inside_the_box():
    box = pictures()["box"].repeat(50, 1)
    crop = recipe.crop_boxes(box, Draw(0, 0, torch.arange(len(box))), [0.01, 1.0], [0.2, 5.0])
    assert crop.dtype == torch.int64
    assert (crop[:, :2] >= 0).all() and (crop[:, 2:] >= 1).all()
    assert (crop[:, :2] + crop[:, 2:] <= box).all()


def kolmogorov(a: Tensor, b: Tensor) -> float:
    """Largest distance of two empirical distribution functions."""
    grid = torch.cat([a, b]).double().sort().values
    ours, theirs = (
        torch.searchsorted(x.double().sort().values, grid, right=True) / len(x) for x in (a.flatten(), b.flatten())
    )
    return (ours - theirs).abs().max().item()


@pytest.mark.parametrize(
    ("height", "width", "scale", "ratio"),
    [
        (96, 96, [0.2, 1.0], [0.75, 1.3333]),
        (60, 200, [0.08, 1.0], [0.75, 1.3333]),  # where most of the ten tries fail
        (300, 40, [0.5, 1.0], [0.9, 1.1]),  # where all fail
    ],
)
def test_crops_are_distributed_as_torchvisions(height, width, scale, ratio):
    n = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = torch.tensor([RandomResizedCrop.get_params(image, scale, ratio) for _ in range(n)])
    box = torch.tensor([[height, width]]).expand(n, 2)
    ours = recipe.crop_boxes(box, Draw(0, 0, torch.arange(n)), scale, ratio)

    def statistics(crop: Tensor) -> dict[str, Tensor]:
        top, left, tall, wide = crop.double().unbind(1)
        return {"area": tall * wide, "ratio": wide / tall, "top": top, "left": left, "middle": left + wide / 2}

    for name, values in statistics(ours).items():
        assert kolmogorov(values, statistics(theirs)[name]) < 0.045, name  # p < 1e-3 when n = 4000
    shifted = recipe.crop_boxes(box, Draw(0, 0, torch.arange(n)), [scale[0] / 2, 0.3], ratio)
    if ours.unique(dim=0).shape[0] > 1:  # the control
        assert kolmogorov(statistics(shifted)["area"], statistics(theirs)["area"]) > 0.1
    else:
        assert torch.equal(ours, theirs)  # the fallback: one and the same centred crop


def test_crops_reach_every_corner():
    box = torch.full((4000, 2), 4)
    crop = recipe.crop_boxes(box, Draw(0, 0, torch.arange(4000)), [0.5625, 0.5625], [1.0, 1.0])
    assert (crop[:, 2:] == 3).all()
    assert (torch.bincount(crop[:, 0] * 2 + crop[:, 1]) - 1000).abs().max() < 130


def test_gates_open_as_often_as_they_should():
    n = 20_000
    draw = Draw(0, 0, torch.arange(n))
    box = torch.full((n, 2), 32)
    for view, (blur, solarize) in enumerate(((0.5, 0.1), (0.3, 0.4))):
        numbers = recipe.view_numbers(box, draw, views(), view)
        jittered = numbers.order.lt(4).any(1)
        gates = {
            "flip": (numbers.flip, 0.5),
            "grey": (numbers.grey, 0.2),
            "blur": (numbers.blur, blur),
            "solarize": (numbers.solarize, solarize),
            "jitter": (jittered, 0.8),
        }
        for name, (gate, p) in gates.items():
            assert abs(gate.float().mean() - p) < 0.015, name
        together = torch.corrcoef(torch.stack([gate.float() for gate, _ in gates.values()]))
        assert (together - torch.eye(5)).abs().max() < 0.03
        factors = numbers.factors.double()
        assert (factors.amin(0) - torch.tensor([0.6, 0.6, 0.6, -0.1])).abs().max() < 1e-3
        assert (factors.amax(0) - torch.tensor([1.4, 1.4, 1.4, 0.1])).abs().max() < 1e-3
        assert (factors.mean(0) - torch.tensor([1, 1, 1, 0])).abs().max() < 0.01
        assert torch.equal(numbers.order[jittered].sort(1).values.unique(dim=0), torch.tensor([[0, 1, 2, 3]]))
        assert numbers.sigma.min() >= 0.1 and numbers.sigma.max() < 2.0
        assert abs(numbers.sigma.mean() - 1.05) < 0.02


KIN = {"crop"}, {"jitt", "firs", "seco"}  # parts of one thing: a crop, and an order, which has no places without jitter


def test_no_number_says_anything_of_another():
    """Neither within a view nor between two; only what makes a crop belongs together, and an order."""
    n = 20_000
    columns: dict[str, Tensor] = {}
    for view in (0, 1):
        draw = Draw(0, 0, torch.arange(n)).fork(f"view {view + 1}")
        numbers = recipe.view_numbers(torch.full((n, 2), 400), draw, views(), view)
        own = {f"factor {i}": numbers.factors[:, i] for i in range(4)}
        own |= {name: getattr(numbers, name) for name in ("flip", "grey", "blur", "sigma", "solarize")}
        own |= {"jitter": numbers.order.lt(4).any(1), "first": numbers.order[:, 0], "second": numbers.order[:, 1]}
        own |= {f"crop {i}": numbers.crop[:, i] for i in range(4)}
        columns |= {f"{name} of view {view}": x.double() for name, x in own.items()}
    names = list(columns)
    together = torch.corrcoef(torch.stack(list(columns.values())))
    for i, a in enumerate(names):
        for j, b in enumerate(names[:i]):
            kin = a[-1] == b[-1] and any({a[:4], b[:4]} <= kinds for kinds in KIN)
            assert kin or together[i, j].abs() < 0.03, (a, b)  # 4 standard errors


def test_operations_of_no_strength_are_left_out():
    numbers = recipe.view_numbers(pictures()["box"], Draw(0, 0, IDS), views(views__jitter__hue=0.0), 0)
    assert (numbers.order < 3).any() and not (numbers.order == 3).any()


def test_the_numbers_make_the_view():
    """Every operation, in SimCLR's order, by torchvision from the numbers that were drawn."""
    batch = pictures(dtype=torch.float64)
    draw = Draw(0, 0, IDS)
    made = recipe.two_views(batch, draw, views(views__colour="exact"), 60)
    operations = [tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue]
    for view in (0, 1):
        numbers = recipe.view_numbers(batch["box"], draw.fork(f"view {view + 1}"), views(), view)
        for i, image in enumerate(batch["image"]):
            expected = tv.resized_crop(image, *numbers.crop[i].tolist(), size=[60, 60], antialias=True)
            if numbers.flip[i]:
                expected = expected.flip(2)
            for code in numbers.order[i].tolist():
                if code < 4:
                    expected = operations[code](expected, numbers.factors[i, code].item())
            if numbers.grey[i]:
                expected = tv.rgb_to_grayscale(expected, 3)
            if numbers.blur[i]:
                expected = tv.gaussian_blur(expected, [7, 7], [numbers.sigma[i].item()] * 2)
            close = (made[view][i] - expected).abs() < 2e-5
            if numbers.solarize[i]:
                near = (expected - 0.5).abs() < 2e-5  # where rounding decides the side of the threshold
                close = near | ((made[view][i] - tv.solarize(expected, 0.5)).abs() < 2e-5)
            assert close.all(), (view, i)
        assert all(gate.any() and not gate.all() for gate in (numbers.grey, numbers.blur, numbers.solarize))


def test_without_colour_two_views_are_crops():
    batch, draw = pictures(), Draw(0, 0, IDS)
    first, second = recipe.two_views(batch, draw, views(**NOTHING), 24)
    assert torch.equal(first, recipe.crop_view(batch, draw.fork("view 1"), views(**NOTHING), 24))
    assert torch.equal(second, recipe.crop_view(batch, draw.fork("view 2"), views(**NOTHING), 24))


@pytest.mark.parametrize("kind", ["exact", "matrix"])
def test_one_strong_view_is_the_first_of_two(kind):
    batch, draw, chosen = pictures(), Draw(0, 0, IDS), views(views__colour=kind)
    pair = recipe.two_views(batch, draw, chosen, 24)
    assert torch.equal(recipe.strong_view(batch, draw.fork("view 1"), chosen, 24), pair[0])
    assert not torch.equal(recipe.strong_view(batch, draw.fork("view 2"), chosen, 24), pair[1])  # other probabilities


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_flips_mirror(p):
    batch, draw = pictures(), Draw(0, 0, IDS)
    plain = recipe.crop_view(batch, draw, views(views__flip=0.0), 24)
    flipped = recipe.crop_view(batch, draw, views(views__flip=p), 24)
    assert (flipped - (plain.flip(3) if p else plain)).abs().max() < 1e-6
    assert (flipped - plain.flip(3)).abs().max() > 0.1 or p


def test_centre_view_is_the_centred_square():
    batch = pictures(80)
    made = recipe.centre_view(batch, 24)
    for image, (height, width), view in zip(batch["image"], batch["box"].tolist(), made, strict=True):
        side = min(height, width)
        box = ((height - side) // 2, (width - side) // 2, side, side)
        expected = tv.resized_crop(image.double() / 255, *box, size=[24, 24], antialias=True)
        assert (view - expected).abs().max() < 1e-5


DRAW = Draw(0, 0, torch.arange(400))


@pytest.mark.parametrize("kind", ["random", "block", "grid"])
@pytest.mark.parametrize(("height", "width", "ratio"), [(8, 8, 0.75), (14, 14, 0.5), (7, 5, 0.9), (14, 14, 0.95)])
def test_masks_keep_the_exact_number(kind, height, width, ratio):
    patches = height * width
    keep, restore = recipe.patch_mask(DRAW, kind, ratio, height, width)
    kept = int((1 - ratio) * patches)
    assert keep.dtype == restore.dtype == torch.int64
    assert keep.shape == (400, kept) and restore.shape == (400, patches)
    assert torch.equal(restore.sort(1).values, torch.arange(patches).expand(400, patches))
    shown = restore < kept
    assert (shown.sum(1) == kept).all() and shown.gather(1, keep).all()
    assert torch.equal(restore.gather(1, keep), torch.arange(kept).expand(400, kept))
    alone = recipe.patch_mask(DRAW[17:18], kind, ratio, height, width)
    assert torch.equal(alone[0][0], keep[17]) and torch.equal(alone[1][0], restore[17])
    assert (len(keep.unique(dim=0)) == 1) == (kind == "grid")


def test_random_masks_are_uniform():
    _, restore = recipe.patch_mask(Draw(0, 0, torch.arange(8000)), "random", 0.75, 4, 4)
    hidden = (restore >= 4).double()
    assert (hidden.mean(0) - 0.75).abs().max() < 0.02
    off = torch.corrcoef(hidden.T)[~torch.eye(16, dtype=torch.bool)]
    assert (off + 1 / 15).abs().max() < 0.045  # drawn without replacement, so slightly against each other


def neighbours(kind: Literal["random", "block", "grid"]) -> float:
    """How often the right neighbour of a hidden patch is hidden, too."""
    _, restore = recipe.patch_mask(DRAW, kind, 0.5, 14, 14)
    hidden = (restore >= 98).view(-1, 14, 14)
    return (hidden[:, :, :-1] & hidden[:, :, 1:]).sum().item() / hidden[:, :, :-1].sum().item()


def test_blocks_are_contiguous_and_grids_are_not():
    assert neighbours("block") > 0.8
    assert 0.45 < neighbours("random") < 0.55
    assert neighbours("grid") == 0


def test_what_blocks_leave_is_hidden_anywhere():
    _, restore = recipe.patch_mask(Draw(0, 0, torch.arange(2000)), "block", 0.95, 14, 14)
    hidden = (restore >= 9).view(-1, 14, 14).double().mean(0)
    corners = hidden[[0, 0, 13, 13], [0, 13, 0, 13]]
    assert corners.max() < 1 and corners.max() - corners.min() < 0.06
