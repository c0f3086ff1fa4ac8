import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from selfsup.evaluation.protocols import few_label
from selfsup.evaluation.result import flat
from selfsup.features.store import Splits

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(4), [40, 25, 10, 6]))


def params(**changes):
    values = {"per_class": [1, 5], "fraction": [0.1, 0.5], "draws": 3, "c": [0.01, 1.0]}
    return few_label.Params(**(values | changes))


def task(seed=0, width=6, noise=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(4, width)) * 2
    labels = Splits(LABELS, np.arange(40) % 4, np.arange(60) % 4)
    return Splits(*((centres[y] + noise * rng.normal(size=(len(y), width))).astype(np.float32) for y in labels)), labels


def test_settings_are_stratified_with_at_least_one_label_per_class():
    kept, notes = few_label.settings(LABELS, params())
    assert {s.key: s.counts.tolist() for s in kept} == {
        "per_class_1": [1, 1, 1, 1],
        "per_class_5": [5, 5, 5, 5],
        "percent_10": [4, 2, 1, 1],
        "percent_50": [20, 12, 5, 3],
    }
    assert notes == []


def test_a_setting_that_needs_more_labels_than_there_are_is_left_out_with_a_line():
    kept, notes = few_label.settings(LABELS, params(per_class=[6, 7], fraction=[]))
    assert [s.key for s in kept] == ["per_class_6"]
    assert notes == ["7 labels per class left out: the smallest class has 6 training images"]


def test_a_class_without_training_images_asks_for_none():
    labels = np.array([0, 0, 2, 2])
    kept, _ = few_label.settings(labels, params(per_class=[2], fraction=[0.01]))
    assert [s.counts.tolist() for s in kept] == [[2, 0, 2], [1, 0, 1]]
    assert few_label.label_draw(labels, kept[0].counts, 0, 0).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("counts", [[1, 1, 1, 1], [4, 2, 1, 1], [40, 25, 10, 6], [3, 0, 2, 6]])
@pytest.mark.parametrize("draw", [0, 1, 7])
def test_a_draw_has_the_counts_asked_for_and_no_image_twice(counts, draw):
    chosen = few_label.label_draw(LABELS, np.array(counts), 5, draw)
    assert np.bincount(LABELS[chosen], minlength=4).tolist() == counts
    assert len(set(chosen.tolist())) == len(chosen)


def test_draws_depend_on_seed_and_draw_alone():
    counts = np.array([5, 5, 5, 5])
    first = few_label.label_draw(LABELS, counts, 0, 0)
    assert np.array_equal(first, few_label.label_draw(LABELS, counts, 0, 0))
    assert not np.array_equal(first, few_label.label_draw(LABELS, counts, 0, 1))
    assert not np.array_equal(first, few_label.label_draw(LABELS, counts, 1, 0))


def test_a_smaller_setting_is_part_of_a_larger_one():
    small = few_label.label_draw(LABELS, np.array([1, 1, 1, 1]), 3, 2)
    large = few_label.label_draw(LABELS, np.array([9, 4, 2, 1]), 3, 2)
    assert set(small) < set(large)


def test_every_image_of_a_class_is_drawn_alike_often():
    times = np.zeros(len(LABELS))
    for draw in range(400):
        times[few_label.label_draw(LABELS, np.array([10, 5, 5, 3]), 0, draw)] += 1
    expected = 400 * np.array([10 / 40, 5 / 25, 5 / 10, 3 / 6])[LABELS]
    assert (np.abs(times - expected) < 5 * np.sqrt(expected)).all()


def test_run_equals_a_plain_transcription():
    features, labels = task(noise=2.0)
    result = few_label.run(features, labels, params(), seed=4)
    mean, std = features.train.mean(0), features.train.std(0)
    kept, _ = few_label.settings(labels.train, params())
    chosen_c = {row[0]: row[2] for row in result.tables["settings"].rows}
    for setting in kept:
        draws = [few_label.label_draw(labels.train, setting.counts, 4, draw) for draw in range(3)]
        validation, test = {}, {}
        for c in (0.01, 1.0):
            models = [
                LogisticRegression(C=c, max_iter=1000).fit((features.train[chosen] - mean) / std, labels.train[chosen])
                for chosen in draws
            ]
            validation[c] = np.mean([m.score((features.validation - mean) / std, labels.validation) for m in models])
            test[c] = [m.score((features.test - mean) / std, labels.test) for m in models]
        best = 1.0 if validation[1.0] > validation[0.01] else 0.01
        assert chosen_c[setting.key] == best
        outcomes = result.metrics[setting.key].outcomes
        np.testing.assert_allclose(outcomes.mean(axis=1), test[best], atol=1 / 60 + 1e-9)
        assert flat(result)[setting.key] == pytest.approx(np.mean(outcomes))
        draws = outcomes.mean(axis=1)
        assert flat(result)[f"{setting.key}_std"] == pytest.approx(np.std(draws, ddof=1))


def test_all_feature_sets_see_the_same_draws(monkeypatch):
    seen = []
    real = few_label.label_draw
    monkeypatch.setattr(few_label, "label_draw", lambda *a: seen.append(real(*a)) or seen[-1])
    for seed, width in ((0, 6), (1, 11)):
        features, labels = task(seed, width)
        few_label.run(features, labels, params(), seed=7)
    half = len(seen) // 2
    assert half == 4 * 3
    assert all(np.array_equal(a, b) for a, b in zip(seen[:half], seen[half:], strict=True))


def test_the_choice_of_c_never_sees_test_labels():
    features, labels = task(noise=3.0)
    wide = params(c=[1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
    first = few_label.run(features, labels, wide, 0)
    shuffled = labels._replace(test=np.random.default_rng(1).permutation(labels.test))
    second = few_label.run(features, shuffled, wide, 0)
    assert second.tables == first.tables
    assert flat(second) != flat(first)


def test_samples_without_a_label_are_never_drawn():
    features, labels = task()
    hidden = labels._replace(train=np.where(np.arange(len(LABELS)) < 30, -1, LABELS))
    junk = features.train.copy()
    junk[:30] = 1e6
    assert flat(few_label.run(features._replace(train=junk), hidden, params(per_class=[1]), 0)) == flat(
        few_label.run(features, hidden, params(per_class=[1]), 0)
    )


def test_more_labels_help():
    features, labels = task(noise=1.5)
    metrics = flat(few_label.run(features, labels, params(draws=5), 0))
    assert metrics["per_class_1"] < metrics["percent_50"]


def test_what_a_setting_of_few_labels_really_takes_is_said():
    labels = np.repeat([0, 1], [12, 4])
    kept, notes = few_label.settings(labels, few_label.Params(per_class=[1, 4], fraction=[0.01, 1.0], draws=3, c=[1.0]))
    assert [(one.key, int(one.counts.sum()), one.all) for one in kept] == [
        ("per_class_1", 2, False),
        ("per_class_4", 8, False),
        ("percent_1", 2, False),
        ("percent_100", 16, True),
    ]
    assert notes == [
        "1 % = 2 of 16 labels: each class gives at least one",
        "1 % takes the same labels as 1 per class",
        "100 % = all 16 labels: nothing is drawn, and ± is over test images",
    ]


def test_a_setting_of_all_labels_has_a_spread_over_images():
    features, labels = task()
    result = few_label.run(features, labels, params(per_class=[], fraction=[1.0]), 0)
    (metric,) = result.metrics.values()
    assert metric.outcomes.shape == (60,)
    assert metric.uncertainty.over == "images" and metric.uncertainty.size > 0
    assert not metric.curve.few
