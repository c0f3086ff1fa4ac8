import numpy as np
import pytest

from selfsup.evaluation.balance import balance
from selfsup.evaluation.compare import Difference
from selfsup.evaluation.folder import Found
from selfsup.evaluation.result import Curve, Metric, Result, Uncertainty, right
from selfsup.features.store import Splits
from selfsup.report.headline import headline
from selfsup.report.scores import Scores, confusions, lead, tables, with_unit


def scores(title, results, label=None, uneven=False):
    """A protocol as read from disk."""
    facts = {}
    if uneven:
        facts = balance(Splits(label, label, label), ["cat", "dog"])
        assert facts["uneven"]
    found = Found(title, {}, {}, {}, facts, [], [], results, label)
    return Scores(title.replace(" ", "_"), title, found)


def probe(title="linear probe", label=None, uneven=False, **rows):
    """A protocol with one accuracy: for each row whether each image was right, or the share of 400."""
    hits = {row: np.arange(400) < x * 400 if isinstance(x, float) else x for row, x in rows.items()}
    label = np.arange(len(next(iter(hits.values())))) % 2 if label is None else label
    return scores(title, {row: Result({"top1": right(x, label, "top-1")}) for row, x in hits.items()}, label, uneven)


def few(label=None, uneven=False, **rows):
    """A probe with few labels: per row, setting -> accuracies of the draws, each that share of 1,000 images."""
    label = np.arange(1000) % 2 if label is None else label
    results = {}
    for row, settings in rows.items():
        metrics = {}
        for n, (title, x) in enumerate(settings.items(), start=1):
            x = np.asarray(x)
            hits = np.arange(1000) < np.round(1000 * x)[:, None] if x.dtype == float else x
            metrics[f"n{n}"] = right(hits, label, title, curve=Curve("probe", 10 * n, 100))
        results[row] = Result(metrics)
    return scores("few labels", results, label, uneven)


def column(*protocols):
    """The rows, and the only column of the only table."""
    rows, ((_, (one,)),) = tables(protocols)
    return rows, one


def lower(outcomes=True, **rows):
    """Distances, of which lower is better: for each row their mean over 50 images."""
    noise = np.random.default_rng(0).normal(size=50) * 0.01
    metrics = {
        row: Metric(
            mean,
            "distance",
            "none",
            higher_is_better=False,
            uncertainty=Uncertainty(0.0123, "images"),
            outcomes=mean + noise - noise.mean() if outcomes else None,
        )
        for row, mean in rows.items()
    }
    return scores("nearest image", {row: Result({"distance": metric}) for row, metric in metrics.items()})


def test_best_is_bold_only_when_ahead_by_more_than_the_spread():
    rows, one = column(probe(method=0.9, random=0.1, pixels=0.6))
    assert rows == ["method", "random", "pixels"]
    assert [cell.best for cell in one.cells] == [True, False, False]
    _, one = column(probe(method=0.9, pixels=0.8975, random=0.1))
    assert [cell.best for cell in one.cells] == [False, False, False]


def test_a_row_alone_is_never_bold():
    _, one = column(probe(method=0.9))
    assert [cell.best for cell in one.cells] == [False]


def test_where_lower_is_better_the_lowest_is_bold_and_the_column_says_so():
    rows, ((corner, (one,)),) = tables([lower(method=0.31, random=0.5, pixels=0.4)])
    assert rows == ["method", "random", "pixels"] and corner == "no unit"
    assert one.lower_is_better and (one.group, one.title) == ("nearest image", "distance")
    assert [(cell.text, cell.spread, cell.best) for cell in one.cells] == [
        ("0.31", "0.012", True),
        ("0.5", "0.012", False),
        ("0.4", "0.012", False),
    ]


def test_without_paired_outcomes_nothing_is_bold():
    _, one = column(lower(outcomes=False, method=0.31, random=0.5))
    assert [cell.best for cell in one.cells] == [False, False]


def test_each_unit_has_a_table_of_its_own():
    time = Metric(75.25, "time", "seconds", higher_is_better=False)
    gap = Metric(0.012, "gap", "points")
    one = scores("several", {"method": Result({"time": time, "gap": gap})})
    _, found = tables([probe(method=0.9), lower(method=0.3), one])
    assert [(corner, [each.title for each in columns]) for corner, columns in found] == [
        ("%", ["top-1"]),
        ("no unit", ["distance"]),
        ("seconds", ["time"]),
        ("points", ["gap"]),
    ]
    assert [columns[0].cells[0].text for _, columns in found] == ["90.0", "0.3", "75.2", "1.2"]


def test_wide_tables_are_broken_between_protocols():
    def several(title, count):
        return scores(title, {"method": Result({f"m{i}": Metric(0.5, str(i)) for i in range(count)})})

    _, found = tables([several("a", 5), several("b", 3), several("c", 1), several("d", 10), several("e", 2)])
    assert [corner for corner, _ in found] == ["%"] * 4
    groups = [list(dict.fromkeys(column.group for column in columns)) for _, columns in found]
    assert groups == [["a", "b"], ["c"], ["d"], ["e"]]
    assert [len(columns) for _, columns in found] == [8, 1, 10, 2]


@pytest.mark.parametrize(
    ("unit", "value", "text", "ahead"),
    [
        ("percent", 0.9, "90.0 %", "+90.0 ± 10.0 points"),
        ("points", 0.9, "90.0 points", "+90.0 ± 10.0 points"),
        ("seconds", 2.345, "2.3 s", "+2.3 ± 0.1 s"),
        ("none", 0.43721, "0.437", "+0.437 ± 0.1"),
        ("none", -1234567.0, "-1,234,567", "-1,234,567 ± 0.1"),
    ],
)
def test_values_and_differences_have_their_unit(unit, value, text, ahead):
    assert with_unit(value, unit) == text
    assert lead(Difference(value, 0.1), unit) == ahead


def test_cells_are_percent_with_the_spread_of_their_protocol():
    _, ((_, found),) = tables([probe(method=0.9), few(method={"5 per class": [0.5, 0.6, 0.7]})])
    assert [(c.group, c.title, c.labels) for c in found] == [
        ("linear probe", "top-1", ""),
        ("few labels", "5 per class", "10 of 100 labels"),
    ]
    assert [(c.cells[0].text, c.cells[0].spread) for c in found] == [("90.0", "1.5"), ("60.0", "10.0")]


def test_draws_that_all_agree_have_no_spread():
    _, one = column(few(method={"1 %": [0.8, 0.8, 0.8]}))
    assert (one.cells[0].text, one.cells[0].spread) == ("80.0", "")
    for size, shown in ((0.0004, "< 0.1"), (0.0006, "0.1"), (None, ""), (float("inf"), "")):
        metric = Metric(0.9, "top-1", uncertainty=Uncertainty(size, "images"))
        assert column(scores("probe", {"method": Result({"top1": metric})}))[1].cells[0].spread == shown


def test_balanced_columns_rank_by_class_balanced_accuracy():
    label = np.repeat([0, 1], [90, 10])
    one = probe("kNN", label, uneven=True, method=np.arange(100) % 5 > 0, majority=label == 0)
    _, ((_, (plain,)), (corner, (balanced,))) = tables([one])
    assert corner == "balanced, %"
    assert [(cell.text, cell.best) for cell in plain.cells] == [("80.0", False), ("90.0", True)]
    assert [(cell.text, cell.best) for cell in balanced.cells] == [("80.0", True), ("50.0", False)]


def test_a_row_that_a_protocol_lacks_has_an_empty_cell():
    rows, ((_, found),) = tables([probe(method=0.9, pixels=0.5), few(method={"1 %": [0.5, 0.6]})])
    assert rows == ["method", "pixels"]
    assert found[1].cells[1] is None


def test_headline_judges_an_uneven_set_by_both_accuracies():
    label = np.repeat([0, 1], [90, 10])
    one = probe(label=label, uneven=True, method=np.arange(100) % 5 > 0, majority=label == 0)
    first, second, third = headline([one], "byol")
    assert first.startswith("Linear probe, top-1: majority class wins with 90.0 %")
    assert second.startswith(
        "byol does not beat the majority class: answering “cat” for every sample is right for 90.0 %"
    )
    assert "byol reaches a class-balanced accuracy of 80.0 %; any constant answer has 50.0 %: +30.0 ±" in third
    assert third.endswith("more than the spread.")


def test_few_labels_of_an_uneven_set_are_judged_by_balanced_accuracy():
    label = np.repeat([0, 1], [90, 10])
    rows = {"method": {"1 per class": np.tile(np.arange(100) % 5 > 0, (3, 1))}, "majority": {"1 per class": label == 0}}
    assert headline([few(label, **rows)], "byol")[0].startswith("With few labels it does not pay")
    assert headline([few(label, uneven=True, **rows)], "byol")[0].startswith(
        "With few labels it pays by class-balanced accuracy: byol is ahead of"
    )


def test_a_difference_on_one_image_has_no_spread_to_show():
    first, second = headline([probe(method=np.array([True]), pixels=np.array([False]))], "byol")
    assert "inf" not in first + second
    assert "differ by 100.0 points, of a single test sample, which has no spread" in first


def test_headline_names_the_winner_beyond_the_spread():
    first, second = headline([probe(method=0.9, pixels=0.6, random=0.1)], "byol")
    assert first.startswith("Linear probe, top-1: byol wins with 90.0 %, 30.0 ± 4.5 points ahead of raw pixels")
    assert second == "byol beats raw pixels: +30.0 ± 4.5 points, more than the spread."


def test_headline_names_no_winner_within_the_spread():
    first, second = headline([probe(method=0.9, pixels=0.8975)], "byol")
    assert "no winner. byol (90.0 %) and raw pixels (89.8 %) differ by" in first
    assert "does not beat raw pixels" in second
    assert "within the spread" in second


def test_headline_says_plainly_when_pixels_win():
    first, second = headline([probe(method=0.5, pixels=0.9, supervised=0.2)], "byol")
    assert "raw pixels wins" in first
    assert second == "byol does not beat raw pixels: it is 40.0 ± 4.8 points behind, more than the spread."


def test_headline_of_a_metric_of_which_lower_is_better():
    first, second = headline([lower(method=0.31, pixels=0.4)], "mae")
    assert first.startswith("Nearest image, distance (lower is better): mae wins with 0.31, 0.09 ±")
    assert second.startswith("mae beats raw pixels: -0.09 ±")
    first, second = headline([lower(method=0.4, pixels=0.31)], "mae")
    assert "raw pixels wins with 0.31, 0.09 ±" in first
    assert second.startswith("mae does not beat raw pixels: it is 0.09 ±") and "behind" in second


def test_headline_of_a_metric_without_pairs_names_no_winner():
    (sentence,) = headline([lower(outcomes=False, method=0.31, pixels=0.4)], "mae")
    assert sentence.startswith("Nearest image, distance (lower is better): mae 0.31, raw pixels 0.4. The metric has no")


def test_the_first_protocol_with_all_labels_speaks():
    found = [few(method={"1 %": [0.5, 0.6]}), probe("kNN", method=0.9), probe(method=0.8)]
    assert headline(found, "mae")[0] == "kNN, top-1: mae reaches 90.0 %, with no baseline beside it."
    assert headline([Scores("linear", "linear probe", why_not="needs labels")], "mae") == []
    nothing = scores("few labels", {"method": Result({})})  # every setting was left out
    assert headline([nothing, probe(method=0.8)], "mae") == headline([probe(method=0.8)], "mae")


def test_few_labels_pay_only_ahead_of_both_label_free_baselines():
    ahead, noise = np.array([0.8, 0.82, 0.81]), np.array([0.0, 0.01, -0.01])
    rows = {
        "method": {"1 per class": ahead, "5 per class": ahead, "10 %": ahead},
        "pixels": {"1 per class": ahead - 0.2 + noise, "5 per class": ahead + 0.1, "10 %": ahead - 0.2},
        "random": {"1 per class": ahead - 0.3 + noise, "5 per class": ahead - 0.3, "10 %": ahead + noise * 9},
    }
    (sentence,) = headline([few(**rows)], "mae")
    assert sentence.startswith(
        "With few labels it pays: mae is ahead of all of raw pixels and random weights at 1 per class (+20.0"
    )
    assert "not at 5 per class (-10.0 ± 1.8 points), 10 % (" in sentence
    (sentence,) = headline([few(method=rows["pixels"], pixels=rows["method"])], "mae")
    assert "pays: mae is ahead of raw pixels at 5 per class" in sentence
    (sentence,) = headline([few(method={"1 per class": ahead}, pixels={"1 per class": ahead})], "mae")
    assert sentence == "With few labels it does not pay: mae is nowhere ahead of raw pixels by more than the spread."


@pytest.mark.parametrize(("own", "pays"), [(0.2, True), (0.6, False)])
def test_few_labels_pay_by_a_metric_of_which_lower_is_better(own, pays):
    noise = np.random.default_rng(0).normal(size=50) * 0.01
    curve = Curve("distance", 10, 100)

    def distance(mean):
        return Result({"n1": Metric(mean, "1 per class", "none", False, outcomes=mean + noise, curve=curve)})

    rows = {"method": distance(own), "pixels": distance(0.3), "random": distance(0.5)}
    (sentence,) = headline([scores("few labels", rows)], "mae")
    assert ("it pays" in sentence) == pays
    if pays:  # the figure is the lead over the rival that comes closest
        assert "1 per class (-0.1 ± " in sentence


@pytest.mark.parametrize(("own", "beats"), [(0.2, True), (0.6, False)])
def test_the_majority_class_is_beaten_by_a_metric_of_which_lower_is_better(own, beats):
    sentences = headline([lower(method=own, majority=0.4)], "mae")
    assert any("does not beat the majority class" in one for one in sentences) != beats


def test_supervised_is_no_rival_with_few_labels():
    draws = np.array([0.8, 0.8, 0.8])
    (sentence,) = headline(
        [
            few(
                method={"1 per class": draws},
                pixels={"1 per class": draws / 2},
                supervised={"1 per class": draws + 0.1},
            )
        ],
        "mae",
    )
    assert "it pays" in sentence


def test_confusions_count_wrong_pairs_most_frequent_first():
    result = Result({"top1": Metric(0.0, "top-1")}, predicted=np.array([1, 1, 0, 2, 2, 2]))
    one = scores("linear probe", {"method": result}, np.array([0, 0, 0, 2, 1, 0]))
    assert confusions(one, ["a", "b", "c"]) == [("a", "b", 2), ("a", "c", 1), ("b", "c", 1)]
    assert confusions(one, ["a", "b", "c"], most=1) == [("a", "b", 2)]
    assert confusions(Scores("linear", "linear probe", why_not="not run"), []) == []
