import numpy as np
import pytest

from selfsup.evaluation.result import scored
from selfsup.report.scores import Scores, columns, confusions, headline, setting_title


def linear(**right):
    """A linear probe in which each row is right on the images given as a share of the first 400."""
    outcomes = {row: {"top1": np.arange(400) < share * 400} for row, share in right.items()}
    metrics = {row: {"top1": share, "top1_se": 0.01} for row, share in right.items()}
    return Scores("linear", metrics, outcomes)


def few(**rows):
    """A few-label probe: per row, setting -> accuracies of the draws, each right on that share of 1,000 images."""
    outcomes = {
        row: {key: np.arange(1000) < np.round(1000 * np.array(draws))[:, None] for key, draws in settings.items()}
        for row, settings in rows.items()
    }
    metrics = {row: scored(own, np.arange(1000) % 2) for row, own in outcomes.items()}
    return Scores("few_label", metrics, outcomes, label=np.arange(1000) % 2)


def test_best_is_bold_only_when_ahead_by_more_than_the_spread():
    rows, (column,) = columns([linear(method=0.9, pixels=0.6, random=0.1)])
    assert rows == ["method", "random", "pixels"]
    assert [cell.best for cell in column.cells] == [True, False, False]
    _, (column,) = columns([linear(method=0.9, pixels=0.8975, random=0.1)])
    assert [cell.best for cell in column.cells] == [False, False, False]


def test_a_row_alone_is_never_bold():
    _, (column,) = columns([linear(method=0.9)])
    assert [cell.best for cell in column.cells] == [False]


def test_cells_are_percent_with_the_spread_of_their_protocol():
    _, found = columns([linear(method=0.9), few(method={"per_class_5": [0.5, 0.6, 0.7]})])
    assert [(c.group, c.title) for c in found] == [
        ("linear, all labels", "top-1"),
        ("linear, few labels", "5 per class"),
    ]
    assert [(c.cells[0].text, c.cells[0].spread) for c in found] == [("90.0", "1.0"), ("60.0", "10.0")]


def test_draws_that_all_agree_have_no_spread():
    _, (column,) = columns([few(method={"percent_1": [0.8, 0.8, 0.8]})])
    assert (column.cells[0].text, column.cells[0].spread) == ("80.0", "")
    one = linear(method=0.9)
    for spread, shown in ((0.0004, "< 0.1"), (0.0006, "0.1"), (None, "")):
        one.metrics["method"]["top1_se"] = spread
        assert columns([one])[1][0].cells[0].spread == shown


def test_balanced_columns_rank_by_class_balanced_accuracy():
    label = np.repeat([0, 1], [90, 10])
    outcomes = {"method": {"top1": np.arange(100) % 5 > 0}, "majority": {"top1": label == 0}}
    scores = Scores("knn", {row: scored(own, label) for row, own in outcomes.items()}, outcomes, label=label)
    _, (plain,) = columns([scores])
    assert [(cell.text, cell.best) for cell in plain.cells] == [("80.0", False), ("90.0", True)]
    _, (balanced,) = columns([scores], balanced=True)
    assert [(cell.text, cell.best) for cell in balanced.cells] == [("80.0", True), ("50.0", False)]


def test_headline_judges_an_uneven_set_by_both_accuracies():
    label = np.repeat([0, 1], [90, 10])
    outcomes = {"method": {"top1": np.arange(100) % 5 > 0}, "majority": {"top1": label == 0}}
    scores = Scores("linear", {row: scored(own, label) for row, own in outcomes.items()}, outcomes, label=label)
    counts = {"train": {"smallest": 10, "largest": 90}, "test": {"smallest": 10, "largest": 90, "classes": 2}}
    scores.details = {"balance": {"uneven": True, "commonest": "cat", **counts}}
    first, second, third = headline([scores], "byol")
    assert first.startswith("Linear probe with all labels: majority class wins with 90.0 %")
    assert second.startswith(
        "byol does not beat the majority class: answering “cat” for every image is right for 90.0 %"
    )
    assert "byol reaches a class-balanced accuracy of 80.0 %; any constant answer has 50.0 %: +30.0 ±" in third
    assert third.endswith("more than the spread.")


def test_few_labels_of_an_uneven_set_are_judged_by_balanced_accuracy():
    label = np.repeat([0, 1], [90, 10])
    outcomes = {
        "method": {"per_class_1": np.tile(np.arange(100) % 5 > 0, (3, 1))},
        "majority": {"per_class_1": label == 0},
    }
    metrics = {row: scored(own, label) for row, own in outcomes.items()}
    scores = Scores("few_label", metrics, outcomes, label=label)
    assert headline([scores], "byol")[0].startswith("With few labels it does not pay")
    scores.details = {"balance": {"uneven": True}}
    assert headline([scores], "byol")[0].startswith(
        "With few labels it pays by class-balanced accuracy: byol is ahead of"
    )


def test_a_difference_on_one_image_has_no_spread_to_show():
    first, second = headline(
        [
            Scores(
                "knn",
                {row: {} for row in ("method", "pixels")},
                {"method": {"top1": np.array([True])}, "pixels": {"top1": np.array([False])}},
            )
        ],
        "byol",
    )
    assert "inf" not in first + second
    assert "differ by 100.0 points, of a single test image, which has no spread" in first


def test_a_row_that_a_protocol_lacks_has_an_empty_cell():
    rows, found = columns([linear(method=0.9, pixels=0.5), few(method={"percent_1": [0.5, 0.6]})])
    assert rows == ["method", "pixels"]
    assert found[1].cells[1] is None


@pytest.mark.parametrize(("key", "title"), [("per_class_10", "10 per class"), ("percent_0.5", "0.5 %")])
def test_settings_read_as_words(key, title):
    assert setting_title(key) == title


def test_headline_names_the_winner_beyond_the_spread():
    first, second = headline([linear(method=0.9, pixels=0.6, random=0.1)], "byol")
    assert first.startswith(
        "Linear probe with all labels: byol wins with 90.0 %, 30.0 ± 4.5 points ahead of raw pixels"
    )
    assert second == "With all labels byol beats raw pixels: +30.0 ± 4.5 points, more than the spread."


def test_headline_names_no_winner_within_the_spread():
    first, second = headline([linear(method=0.9, pixels=0.8975)], "byol")
    assert "no winner. byol (90.0 %) and raw pixels (89.8 %) differ by" in first
    assert "does not beat raw pixels" in second
    assert "within the spread" in second


def test_headline_says_plainly_when_pixels_win():
    first, second = headline([linear(method=0.5, pixels=0.9, supervised=0.2)], "byol")
    assert "raw pixels wins" in first
    assert (
        second == "With all labels byol does not beat raw pixels: it is 40.0 ± 4.8 points behind, more than the spread."
    )


def test_headline_falls_back_to_knn_and_to_a_method_alone():
    one = linear(method=0.9)
    one.protocol = "knn"
    assert headline([one], "mae") == ["kNN with all labels: mae reaches 90.0 %, with no baseline beside it."]
    assert headline([Scores("linear", why_not="needs labels")], "mae") == []


def test_few_labels_pay_only_ahead_of_both_label_free_baselines():
    ahead, noise = np.array([0.8, 0.82, 0.81]), np.array([0.0, 0.01, -0.01])
    rows = {
        "method": {"per_class_1": ahead, "per_class_5": ahead, "percent_10": ahead},
        "pixels": {"per_class_1": ahead - 0.2 + noise, "per_class_5": ahead + 0.1, "percent_10": ahead - 0.2},
        "random": {"per_class_1": ahead - 0.3 + noise, "per_class_5": ahead - 0.3, "percent_10": ahead + noise * 9},
    }
    (sentence,) = headline([few(**rows)], "mae")
    assert sentence.startswith(
        "With few labels it pays: mae is ahead of all of raw pixels and random weights at 1 per class (+20.0"
    )
    assert "not at 5 per class (-10.0 ± 1.8 points), 10 % (" in sentence
    (sentence,) = headline([few(method=rows["pixels"], pixels=rows["method"])], "mae")
    assert "pays: mae is ahead of raw pixels at 5 per class" in sentence
    (sentence,) = headline([few(method={"per_class_1": ahead}, pixels={"per_class_1": ahead})], "mae")
    assert sentence == "With few labels it does not pay: mae is nowhere ahead of raw pixels by more than the spread."


def test_supervised_is_no_rival_with_few_labels():
    draws = np.array([0.8, 0.8, 0.8])
    (sentence,) = headline(
        [
            few(
                method={"per_class_1": draws},
                pixels={"per_class_1": draws / 2},
                supervised={"per_class_1": draws + 0.1},
            )
        ],
        "mae",
    )
    assert "it pays" in sentence


def test_confusions_count_wrong_pairs_most_frequent_first():
    scores = Scores("linear", predicted={"method": np.array([1, 1, 0, 2, 2, 2])}, label=np.array([0, 0, 0, 2, 1, 0]))
    assert confusions(scores, ["a", "b", "c"]) == [("a", "b", 2), ("a", "c", 1), ("b", "c", 1)]
    assert confusions(scores, ["a", "b", "c"], most=1) == [("a", "b", 2)]
    assert confusions(Scores("linear", why_not="not run"), []) == []
