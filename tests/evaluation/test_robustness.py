import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from selfsup.config import parse
from selfsup.draw import Draw
from selfsup.errors import UserError
from selfsup.evaluation import corruptions as c
from selfsup.evaluation.protocols import robustness
from selfsup.features.store import Splits
from tests.evaluation import frozen
from tests.helpers import values

BLOCK = {
    **values()["evaluation"]["robustness"],
    **{"c": [0.1, 1.0], "corruptions": ["gaussian_noise", "contrast"], "severities": [1, 5], "images": None},
}
PARAMS = robustness.Params(**BLOCK)


def smooth(count=6, size=16, seed=0):
    """Images without sharp edges, inside 0.2..0.8."""
    noise = np.random.default_rng(seed).normal(size=(count, 3, size, size))
    x = ndimage.gaussian_filter(noise, (0, 0, 2, 2))
    x = (x - x.min()) / (x.max() - x.min())
    return torch.from_numpy(0.2 + 0.6 * x).float()


def judged(encoder=None, labels=frozen.LABELS, **changes):
    encoder, images = encoder or frozen.Means(), frozen.images()
    params = robustness.Params(**(BLOCK | changes))
    return robustness.run(frozen.encoded(encoder, images), encoder, images, labels, params, 0)


def test_the_protocol_knows_the_fifteen_of_the_paper():
    assert len(c.CORRUPTIONS) == 15
    assert values()["evaluation"]["robustness"]["corruptions"] == list(c.CORRUPTIONS)


@pytest.mark.parametrize("name", c.CORRUPTIONS)
def test_a_corruption_stays_an_image_and_depends_on_seed_and_sample_alone(name):
    x, ids = smooth(), torch.arange(6)
    assert torch.equal(c.corrupted(x, name, 0, 0, ids), x)
    found = c.corrupted(x, name, 4, 0, ids)
    assert found.shape == x.shape and found.dtype == x.dtype
    assert found.min() >= 0 and found.max() <= 1 and (found - x).abs().mean() > 0.002
    assert torch.allclose(c.corrupted(x[2:4], name, 4, 0, ids[2:4]), found[2:4], atol=1e-6), "the batch has a say"
    drawn = c.corrupted(x[:1].expand(6, -1, -1, -1), name, 4, 0, ids)
    if name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        assert not torch.allclose(drawn[0], drawn[1]) and not torch.equal(found, c.corrupted(x, name, 4, 1, ids))
    else:
        assert torch.allclose(drawn[0], drawn[1])


@pytest.mark.parametrize(
    "name", sorted(set(c.CORRUPTIONS) - {"glass_blur", "defocus_blur", "elastic_transform", "snow", "frost"})
)
def test_higher_severities_change_more(name):
    x, ids = smooth(8), torch.arange(8)
    changes = [float((c.corrupted(x, name, s, 0, ids) - x).abs().mean()) for s in (1, 3, 5)]
    assert changes == sorted(changes)


@pytest.mark.parametrize("severity", c.SEVERITIES)
def test_noises_have_the_documented_sizes(severity):
    x, ids = torch.full((4, 3, 64, 64), 0.5), torch.arange(4)
    sigma = (0.04, 0.06, 0.08, 0.09, 0.10)[severity - 1]
    noise = c.corrupted(x, "gaussian_noise", severity, 0, ids) - x
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02) and abs(float(noise.mean())) < 0.02 * sigma + 1e-3
    assert stats.kstest(noise.flatten().numpy() / sigma, "norm").statistic < 0.01
    rate = (500, 250, 100, 75, 50)[severity - 1]
    counts = (c.corrupted(x, "shot_noise", severity, 0, ids) * rate).round().flatten().numpy()
    mean = rate * 128 / 255  # one half, in 8 bits
    assert counts.mean() == pytest.approx(mean, rel=0.01) and counts.var() == pytest.approx(mean, rel=0.05)
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    hit = c.corrupted(x, "impulse_noise", severity, 0, ids)
    for value in (0.0, 1.0):
        assert float((hit == value).float().mean()) == pytest.approx(share / 2, rel=0.15)
    assert float((hit == 0.5).float().mean()) == pytest.approx(1 - share, abs=0.005)


def test_counts_of_shot_noise_are_poissons():
    x = torch.full((8, 3, 32, 32), 1 / 255)
    counts = (c.corrupted(x, "shot_noise", 1, 0, torch.arange(8)) * 500).round().long().flatten()
    expected = stats.poisson.pmf(np.arange(8), 500 / 255) * len(counts)
    assert (
        stats.chisquare(
            counts.bincount(minlength=8)[:8].numpy(), expected * counts.lt(8).sum().item() / expected.sum()
        ).pvalue
        > 0.001
    )


def test_closed_forms_of_colours():
    x, ids = smooth(), torch.arange(6)
    mean = x.mean((2, 3), keepdim=True)
    assert torch.allclose(c.corrupted(x, "contrast", 5, 0, ids), mean + 0.15 * (x - mean), atol=1e-6)
    bright = c.corrupted(x, "brightness", 2, 0, ids)
    assert torch.allclose(bright.amax(1), (x.amax(1) + 0.1).clamp(max=1), atol=1e-6), "the value of HSV rises by 0.1"
    assert torch.allclose(bright / bright.amax(1, keepdim=True), x / x.amax(1, keepdim=True), atol=1e-5), "hue stays"
    assert torch.allclose(c.corrupted(torch.zeros(1, 3, 4, 4), "brightness", 1, 0, ids[:1]), torch.tensor(0.05))


@pytest.mark.parametrize("name", ["defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "pixelate"])
def test_blurs_leave_one_colour_as_it_is(name):
    x = torch.full((2, 3, 16, 16), 0.4)
    assert torch.allclose(c.corrupted(x, name, 5, 0, torch.arange(2)), x, atol=1e-5)


def test_the_gaussian_is_scipys():
    x = smooth(1)
    by_scipy = ndimage.gaussian_filter(x.numpy().astype(np.float64), (0, 0, 1.5, 1.5), mode="mirror")
    assert np.allclose(c._gaussian_blur(x, 1.5).numpy(), by_scipy, atol=1e-4)


def test_motion_along_a_row_is_a_mean_over_its_pixels():
    x = torch.rand(1, 3, 32, 32)
    found = c._moving(x, torch.zeros(1), 3, 1e6)
    by_scipy = ndimage.uniform_filter1d(x.numpy(), 7, axis=3, mode="mirror")
    assert np.allclose(found.numpy(), by_scipy, atol=1e-5)


def test_flakes_of_snow_grow_with_the_image():
    """On black images snow is light alone. Flakes of one pixel would blur into an even haze on large images."""
    ids = torch.arange(16)
    small, large = (c.corrupted(torch.zeros(16, 3, size, size), "snow", 3, 0, ids) for size in (32, 128))
    assert float(large.std()) == pytest.approx(float(small.std()), rel=0.25)
    assert float(large.mean()) == pytest.approx(float(small.mean()), rel=0.25)


def test_fog_keeps_the_brightest_point_and_clouds_fill_their_range():
    cloud = c.plasma(Draw(0, 1, torch.arange(3)), 20, 2.0)
    assert cloud.shape == (3, 1, 20, 20)
    assert torch.allclose(cloud.amin((1, 2, 3)), torch.zeros(3)) and torch.allclose(
        cloud.amax((1, 2, 3)), torch.ones(3)
    )
    x = smooth(3)
    assert (c.corrupted(x, "fog", 3, 0, torch.arange(3)).amax((1, 2, 3)) <= x.amax((1, 2, 3)) + 1e-6).all()


def test_jpeg_is_pillows():
    import io

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "jpeg", quality=50)
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    found = c.corrupted(x, "jpeg_compression", 4, 0, torch.arange(1))
    assert np.array_equal((255 * found[0]).round().byte().permute(1, 2, 0).numpy(), np.asarray(Image.open(file)))


@pytest.mark.parametrize(("kind", "none"), [("rotation", 0), ("scale", 1), ("shift", 0)])
def test_no_change_of_geometry_is_the_image_itself(kind, none):
    x = smooth()
    assert c.moved(x, kind, none, 0, torch.arange(6)) is x


def test_a_quarter_turn_a_zoom_and_a_shift_are_what_they_say():
    x, ids = smooth(8), torch.arange(8)
    turned = c.moved(x, "rotation", 90, 0, ids)
    senses = [
        next(k for k in (1, 3) if torch.allclose(own, each.rot90(k, (1, 2)), atol=1e-5))
        for own, each in zip(turned, x, strict=True)
    ]
    assert set(senses) == {1, 3}, "either sense is drawn"
    doubled = c.moved(x, "scale", 2, 0, ids)
    assert torch.allclose(doubled.mean((2, 3)), x[:, :, 4:12, 4:12].mean((2, 3)), atol=0.02)
    bar = torch.zeros(64, 3, 32, 32)
    bar[:, :, 15:17, 15:17] = 1
    moved = c.moved(bar, "shift", 0.25, 0, torch.arange(64))
    place = torch.arange(32.0) - 15.5
    mass = moved[:, 0] / moved[:, 0].sum((1, 2), keepdim=True)
    x, y = (mass.sum(1) * place).sum(1), (mass.sum(2) * place).sum(1)
    assert torch.allclose((x**2 + y**2).sqrt(), torch.full((64,), 8.0), atol=0.05), "a quarter of the side"
    assert x.min() < -4 and x.max() > 4 and y.min() < -4 and y.max() > 4, "in any direction"


def test_figures_are_those_of_a_probe_of_clean_features_on_encoded_corruptions():
    result, images, labels = judged(), frozen.images(), frozen.LABELS
    train, validation, _ = (x.views.mean(3).flatten(1).numpy() for x in images)
    scaler = StandardScaler().fit(train)
    scores = [
        LogisticRegression(C=one, max_iter=1000)
        .fit(scaler.transform(train), labels.train)
        .score(scaler.transform(validation), labels.validation)
        for one in PARAMS.c
    ]
    best = PARAMS.c[int(np.argmax(scores))]
    joined = scaler.transform(np.concatenate([train, validation]))
    probe = LogisticRegression(C=best, max_iter=1000).fit(joined, np.concatenate([labels.train, labels.validation]))
    ids = torch.arange(len(images.test))

    def score(views):
        return probe.score(scaler.transform(views.mean(3).flatten(1).numpy()), labels.test)

    table = {row[0]: row[1:] for row in result.tables["corruptions"].rows}
    for name in PARAMS.corruptions:
        by_hand = [score(c.corrupted(images.test.views, name, s, 0, ids)) for s in PARAMS.severities]
        assert table[name][:-1] == pytest.approx(by_hand, abs=0.02) and table[name][-1] == pytest.approx(
            np.mean(table[name][:-1])
        )
    assert result.metrics["corrupted"].value == pytest.approx(np.mean([row[-1] for row in table.values()]))
    assert result.metrics["clean"].value == pytest.approx(score(images.test.views), abs=0.02)
    turned = [score(c.moved(images.test.views, "rotation", a, 0, ids)) for a in PARAMS.rotations]
    assert result.metrics["rotation"].value == pytest.approx(np.mean(turned), abs=0.02)
    assert result.plots["severity"].points[0] == (0.0, result.metrics["clean"].value)


def test_mean_corruption_error_is_the_papers_ratio():
    mistaken = Splits(*(np.where(np.arange(len(own)) % 5 == 0, 0, own) for own in frozen.LABELS))
    supervised, method = judged(labels=mistaken), judged(frozen.Constant())
    rows = robustness.relate({"method": method, "supervised": supervised})
    errors = [{row[0]: 1 - row[-1] for row in one.tables["corruptions"].rows} for one in (method, supervised)]
    ratios = [errors[0][name] / errors[1][name] for name in PARAMS.corruptions if errors[1][name]]
    assert rows["method"].metrics["mce"].value == pytest.approx(np.mean(ratios))
    assert rows["supervised"].metrics["mce"].value == 1 and not rows["method"].metrics["mce"].higher_is_better
    perfect = judged(corruptions=["contrast"], severities=[1])
    assert perfect.metrics["corrupted"].value == 1
    without = robustness.relate(
        {"method": method, "supervised": perfect} | {"method": judged(corruptions=["contrast"])}
    )
    assert "mce" not in without["method"].metrics and "makes no error: contrast" in without["method"].notes[-1]
    alone = robustness.relate({"method": method})["method"]
    assert "mce" not in alone.metrics and alone.notes == [
        "no mean corruption error: it is relative to the supervised baseline, which is missing"
    ]


def test_constant_features_and_permuted_labels_score_chance():
    assert judged(frozen.Constant()).metrics["corrupted"].value == pytest.approx(1 / frozen.CLASSES)
    rng = np.random.default_rng(0)
    shuffled = Splits(*(rng.permutation(part) for part in frozen.LABELS))
    assert abs(judged(labels=shuffled).metrics["corrupted"].value - 1 / frozen.CLASSES) < 0.15


def test_few_test_images_are_drawn_once_for_all_rows_and_that_is_noted():
    result, other = judged(images=20), judged(frozen.Constant(), images=20)
    for one in (result, other):
        assert {len(metric.outcomes) for metric in one.metrics.values()} == {20}
        assert all(metric.answers is None and metric.balanced is None for metric in one.metrics.values())
        assert one.drawn == sorted(set(one.drawn)) and len(one.drawn) == 20
    assert result.drawn == other.drawn and judged(images=60).drawn is None
    assert result.notes == ["20 of 60 test images are corrupted"]
    assert judged(images=60).notes == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"corruptions": ["fogg"]}, "robustness.corruptions: unknown 'fogg'; did you mean fog?"),
        ({"corruptions": []}, "robustness.corruptions: list should have at least 1 item"),
        ({"severities": [0]}, r"robustness.severities.0: input should be greater than or equal to 1, got 0"),
        ({"shifts": [1.0]}, "robustness.shifts.0: input should be less than 1, got 1.0"),
    ],
)
def test_a_wrong_value_is_one_line(change, line):
    with pytest.raises(UserError, match=line) as raised:
        parse(robustness.Params, BLOCK | change, prefix="evaluation.robustness")
    assert "\n" not in str(raised.value)
