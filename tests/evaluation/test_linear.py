import numpy as np
import pytest
from scipy.optimize import minimize

from selfsup.evaluation import logistic
from selfsup.evaluation.protocols import linear
from selfsup.evaluation.result import flat
from selfsup.features.store import Splits


def gaussians(seed, sizes=(120, 60, 80), classes=3, width=5, noise=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(classes, width)) * 2
    labels = [np.arange(n) % classes for n in sizes]
    features = [(centres[y] + noise * rng.normal(size=(len(y), width))).astype(np.float32) for y in labels]
    return Splits(*features), Splits(*labels)


def test_recovers_separable_classes_whatever_the_scale_of_features():
    features, labels = gaussians(0, classes=7, width=12, noise=0.1)
    scale = np.logspace(-6, 6, 12, dtype=np.float32)
    features = Splits(*(x * scale + 10 * scale for x in features))
    result = linear.run(features, labels, linear.Params(c=[0.1, 1.0]), 0)
    assert flat(result)["top1"] == 1.0
    assert flat(result)["top5"] == 1.0
    assert flat(result)["top1_balanced"] == 1.0
    assert result.notes == []


def test_the_fit_minimises_the_published_objective():
    features, labels = gaussians(1, sizes=(40, 10, 10))
    x = logistic.Standardise(features.train)(features.train).astype(np.float64)
    y = labels.train

    def objective(theta):  # 1/2 |W|^2 + C sum of -log softmax(W x + b)[y]
        w, b = theta[:15].reshape(3, 5), theta[15:]
        scores = x @ w.T + b
        loss = np.log(np.exp(scores - scores.max(1, keepdims=True)).sum(1)) + scores.max(1)
        return 0.5 * (w**2).sum() + 0.3 * (loss - scores[np.arange(len(y)), y]).sum()

    best = minimize(objective, np.zeros(18)).fun
    fitted = list(logistic.fits(x.astype(np.float32), y, [0.3, 0.01, 5.0]))
    assert [one.c for one in fitted] == [0.01, 0.3, 5.0]
    found = objective(np.concatenate([fitted[1].weight.ravel(), fitted[1].bias]))
    assert found == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("classes", [2, 4])
def test_fewer_images_than_features_give_the_fit_of_the_whole_space(classes):
    from sklearn.linear_model import LogisticRegression

    features, labels = gaussians(9, sizes=(20, 10, 30), classes=classes, width=50, noise=2.0)
    x = logistic.Standardise(features.train)(features.train)
    x[:, 30:] = x[:, :20]  # rank below the number of images as well
    (found,) = logistic.fits(x, labels.train, [0.5])
    plain = LogisticRegression(C=0.5, tol=1e-8, max_iter=5000).fit(x.astype(np.float64), labels.train)
    weight = found.weight if classes > 2 else (found.weight[1:] - found.weight[:1]) / 2
    np.testing.assert_allclose(weight, plain.coef_, atol=2e-3)
    assert np.array_equal(found.predict(features.test)[:, 0], plain.predict(features.test))


def test_the_choice_of_c_never_sees_test_labels_or_images():
    features, labels = gaussians(2, noise=3.0)
    params = linear.Params(c=[1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0])
    first = linear.run(features, labels, params, 0)
    rng = np.random.default_rng(0)
    for _ in range(4):
        test = rng.permutation(labels.test)
        other = linear.run(features._replace(test=features.test[::-1] * 3), labels._replace(test=test), params, 0)
        assert other.choices == first.choices


def test_c_is_the_best_on_validation_and_the_weaker_of_equals():
    features, labels = gaussians(3, noise=3.0)
    result = linear.run(features, labels, linear.Params(c=[1e-4, 1e-2, 1.0, 100.0]), 0)
    readings = result.choices["c"].validation
    assert readings[result.choices["c"].value] == max(readings.values())
    separable, labels = gaussians(3, noise=0.01)
    assert linear.run(separable, labels, linear.Params(c=[10.0, 0.1, 1.0]), 0).choices["c"].value == 0.1


def test_the_final_fit_uses_validation_images_too():
    # The third class has no training image at all: only the refit can learn it.
    features, labels = gaussians(4, noise=0.1)
    kept = labels.train != 2
    features, labels = (s._replace(train=s.train[kept]) for s in (features, labels))
    result = linear.run(features, labels, linear.Params(c=[1.0]), 0)
    assert (result.predicted[labels.test == 2] == 2).all()


def test_top5_holds_only_with_more_than_five_classes_and_counts_the_first_five():
    features, labels = gaussians(5, sizes=(400, 100, 200), classes=8, noise=6.0)
    result = linear.run(features, labels, linear.Params(c=[0.01]), 0)
    assert flat(result)["top1"] < flat(result)["top5"] < 1
    assert (result.metrics["top5"].outcomes >= result.metrics["top1"].outcomes).all()
    assert "top5" not in linear.run(*gaussians(5), linear.Params(c=[0.01]), 0).metrics


def test_two_classes_have_one_score_and_predict_both():
    features, labels = gaussians(6, classes=2, noise=0.1)
    result = linear.run(features, labels, linear.Params(c=[1.0]), 0)
    assert flat(result)["top1"] == 1.0
    assert set(result.predicted) == {0, 1}


def test_balanced_accuracy_weighs_classes_alike():
    features, labels = gaussians(7, classes=2, noise=0.1)
    # Test: 9 images of class 0, and one of class 1 that lies where class 0 does.
    zero = features.test[labels.test == 0]
    features = features._replace(test=zero[:10])
    labels = labels._replace(test=np.array([0] * 9 + [1]))
    metrics = flat(linear.run(features, labels, linear.Params(c=[1.0]), 0))
    assert metrics["top1"] == pytest.approx(0.9)
    assert metrics["top1_balanced"] == pytest.approx(0.5)


@pytest.mark.parametrize("images", [30, 200])
def test_constant_features_predict_one_class_for_all(images):
    features, labels = gaussians(10, sizes=(images, 30, 30), width=50)
    features = Splits(*(np.full_like(x, 0.3) for x in features))
    result = linear.run(features, labels, linear.Params(c=[1.0]), 0)
    assert len(set(result.predicted)) == 1


def test_samples_without_a_label_take_no_part():
    features, labels = gaussians(8, noise=2.0)
    params = linear.Params(c=[0.01, 1.0])
    expected = linear.run(features, labels, params, 0)
    rng = np.random.default_rng(0)
    padded, with_none = [], []
    for x, y in zip(features, labels, strict=True):
        junk = rng.normal(scale=1e4, size=(5, x.shape[1])).astype(np.float32)
        padded.append(np.concatenate([x[:3], junk, x[3:]]))
        with_none.append(np.concatenate([y[:3], np.full(5, -1), y[3:]]))
    found = linear.run(Splits(*padded), Splits(*with_none), params, 0)
    assert flat(found) == flat(expected)


def test_standardise_uses_train_alone_and_flattens_constants(monkeypatch):
    rng = np.random.default_rng(0)
    train = rng.normal(5, 3, (1000, 4)).astype(np.float32)
    train[:, 2] = 0.1  # not exact in binary, so its mean rounds
    monkeypatch.setattr(logistic, "_BLOCK", 37)
    standardise = logistic.Standardise(train)
    found = standardise(train)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(found.std(0), [1, 1, 0, 1], atol=1e-4)
    assert not np.shares_memory(standardise(train), train)
    np.testing.assert_allclose(
        standardise(train[:1]), (train[:1] - train.mean(0)) / [*train.std(0)[:2], 1, train.std(0)[3]], atol=1e-3
    )
