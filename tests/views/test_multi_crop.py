"""Local crops: functions of seed, epoch and sample, of their own size and scale, beside the two global views."""

import pytest
import torch

from selfsup.draw import Draw
from selfsup.params import CropsParams
from selfsup.views.image import recipe
from tests.views.test_recipe import IDS, pictures, rows, views

CROPS = CropsParams(count=3, size=9, scale=[0.05, 0.2])


def make(batch, crops=CROPS, epoch=0, **overrides):
    return recipe.multi_crop(batch, Draw(0, epoch, batch["id"]), views(**overrides), 24, crops)


def test_two_global_views_are_those_of_two_views():
    batch = pictures()
    made = make(batch)
    assert [view.shape[-1] for view in made] == [24, 24, 9, 9, 9]
    expected = recipe.two_views(batch, Draw(0, 0, batch["id"]), views(), 24)
    assert all(torch.equal(a, b) for a, b in zip(made, expected, strict=False))
    assert len(make(batch, CROPS.model_copy(update={"count": 0}))) == 2


def test_a_local_view_does_not_depend_on_its_batch_nor_on_how_many_there_are():
    batch = pictures()
    whole = make(batch)
    order = torch.arange(len(IDS)).flip(0).roll(7)
    for view, again in zip(whole, make(rows(batch, order)), strict=True):
        assert (again - view[order]).abs().max() <= 1e-6
    for view, alone in zip(whole, make(rows(batch, torch.tensor([5]))), strict=True):
        assert (alone[0] - view[5]).abs().max() <= 1e-6
    fewer = make(batch, CROPS.model_copy(update={"count": 1}))
    assert torch.equal(fewer[2], whole[2])


def test_local_views_differ_from_each_other_and_between_epochs():
    batch = pictures()
    local, later = make(batch)[2:], make(batch, epoch=1)[2:]
    for a, b in ((local[0], local[1]), (local[1], local[2]), (local[0], later[0])):
        assert ((a - b).abs().amax((1, 2, 3)) > 0.05).float().mean() > 0.8


def test_local_views_cover_their_own_share_of_the_image(monkeypatch):
    seen = {}
    real = recipe.augment

    def spy(images, numbers, size, colour):
        seen.setdefault(size, []).append(numbers)
        return real(images, numbers, size, colour)

    monkeypatch.setattr(recipe, "augment", spy)
    batch = pictures(80)
    batch["box"] = torch.full_like(batch["box"], 80)
    make(batch, views__blur=[1.0, 0.0], views__solarize=[1.0, 1.0], views__crop_scale=[0.5, 1.0])
    share = torch.cat([n.crop[:, 2] * n.crop[:, 3] for n in seen[9]]) / 80**2
    assert len(share) == 3 * len(IDS) and share.min() > 0.04 and share.max() < 0.22
    assert torch.cat([n.crop[:, 2] * n.crop[:, 3] for n in seen[24]]).min() / 80**2 > 0.48
    blurred = torch.cat([n.blur for n in seen[9]]).float().mean()
    assert 0.3 < blurred < 0.7  # the mean of 1 and 0
    assert not torch.cat([n.solarize for n in seen[9]]).any() and torch.cat([n.solarize for n in seen[24]]).all()


@pytest.mark.parametrize("scale", [[0.0, 0.2], [0.3, 0.2], [0.5, 1.2]])
def test_impossible_scales_are_refused(scale):
    with pytest.raises(ValueError, match=r"crops\.scale: needs 0 < low <= high <= 1"):
        CropsParams(count=1, size=8, scale=scale)
