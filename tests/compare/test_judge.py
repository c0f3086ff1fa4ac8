from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from selfsup.compare.comparison import Comparison
from selfsup.compare.judge import judge
from selfsup.evaluation.compare import paired
from selfsup.evaluation.folder import Found
from selfsup.evaluation.result import Estimate, Metric, Result, Uncertainty, right
from tests.compare import synthetic

SKILLS = {"byol": 1.75, "simclr": 1.7, "simsiam": -0.6}


def block_of(comparison):
    (block,) = judge(comparison).blocks
    return block


def column_of(comparison, key="knn.top1"):
    return next(one for one in block_of(comparison).columns if one.key == key)


def texts(comparison, topic):
    return [one.text for one in block_of(comparison).sentences if one.topic == topic]


def changed(comparison, change):
    """The comparison with `change(run, found)` in place of what each protocol found."""
    runs = [replace(run, found={k: change(run, v) for k, v in run.found.items()}) for run in comparison.runs]
    return replace(comparison, runs=runs)


def only(comparison, protocol, metrics):
    """The comparison with one protocol, in which the runs have `metrics(run)` and there are no baselines."""

    def bare(run):
        found = replace(run.found["knn"], results={"method": Result(metrics(run))})
        return replace(run, found={protocol: found})

    return replace(comparison, runs=[bare(run) for run in comparison.runs])


@pytest.fixture(scope="module")
def three():
    return synthetic.comparison(SKILLS, whole=True)


@pytest.fixture(scope="module")
def block(three):
    return block_of(three)


def test_every_row_has_mean_and_deviation_over_seeds(three, block):
    assert [row.key for row in block.rows] == [*SKILLS, "supervised, conv", "random, conv", "pixels", "majority"]
    assert all(row.seeds == (0, 1, 2) for row in block.rows)
    assert [row.title for row in block.rows][-3:] == ["random weights, conv", "raw pixels", "majority class"]
    for column in block.columns:
        for row in block.rows:
            kind = row.key if not row.baseline else "byol"
            own = [run.found[column.protocol] for run in three.runs if run.row == kind]
            values = [found.results[row.kind].metrics.get(column.metric) for found in own]
            if values[0] is None:
                assert row.key in column.missing
                continue
            score = column.scores[row.key]
            assert score.mean == pytest.approx(np.mean([one.value for one in values]))
            assert score.deviation == pytest.approx(np.std([one.value for one in values], ddof=1))


def test_baselines_stand_once_per_backbone_and_apart_where_they_differ():
    comparison = synthetic.comparison({"byol": 1.75, "simclr": 1.7, "mae": 0.7}, whole=True)
    rows = [row.key for row in block_of(comparison).rows if row.baseline]
    assert rows == ["supervised, conv", "supervised, vit", "random, conv", "random, vit", "pixels", "majority"]

    def other(run, found):
        if run.row != "simclr":
            return found
        results = {row: found.results["supervised" if row == "random" else row] for row in found.results}
        return replace(found, results=results)

    rows = [row.key for row in block_of(changed(comparison, other)).rows if row.kind == "random"]
    assert rows == ["random, conv (of byol)", "random, conv (of simclr)", "random, vit"]


def test_a_method_named_like_a_baseline_keeps_a_row_of_its_own():
    comparison = synthetic.comparison({"pixels": 1.0, "byol": 1.7}, (0, 1), whole=True)
    keys = [row.key for row in block_of(comparison).rows]
    assert len(set(keys)) == len(keys) and "pixels" in keys and "pixels (baseline)" in keys


def test_with_one_seed_the_test_is_that_of_one_run():
    comparison = synthetic.comparison(SKILLS, (4,), whole=True)
    for key in ("knn.top1", "few_label.per_class_1"):
        column = column_of(comparison, key)
        outcomes = {
            run.row: run.found[column.protocol].results["method"].metrics[column.metric].outcomes
            for run in comparison.runs
        }
        pair = column.pair("byol", "simclr")
        own = paired(outcomes["byol"], outcomes["simclr"])
        assert (pair.mean, pair.p) == (pytest.approx(own.mean), pytest.approx(own.p))
        assert pair.high - pair.mean == pytest.approx(own.spread)
        cover = "alone" if column.protocol == "knn" else "and the draws of this one seed"
        assert column.covers.startswith(f"Intervals cover the test images {cover}: there is one seed, 4.")
        assert column.scores["byol"].deviation is None
    assert any("One seed does not show" in text for text in texts(comparison, "seeds"))
    assert texts(comparison, "decide") == [] or all(
        "one seed cannot tell" in text for text in texts(comparison, "decide")
    )


def test_differences_are_of_the_seeds_that_both_rows_have():
    whole = synthetic.comparison({"byol": 1.75, "simclr": 1.7, "mae": 0.7}, (0, 1, 2, 3), whole=True)
    gone = {("simclr", 3), ("mae", 1), ("mae", 2), ("mae", 3)}
    part = replace(whole, runs=[run for run in whole.runs if (run.row, run.seed) not in gone])
    column, small = column_of(part), column_of(replace(whole, runs=[run for run in whole.runs if run.seed < 3]))
    pair = column.pair("byol", "simclr")
    assert pair.seeds == (0, 1, 2)
    assert (pair.mean, pair.p) == (small.pair("byol", "simclr").mean, small.pair("byol", "simclr").p)
    alone = column.pair("byol", "mae")
    assert alone.seeds == (0,) and alone.p == 1 and alone.high == np.inf and alone.better is None
    assert "Rows have different seeds" in column.covers
    assert texts(part, "seeds") == [
        "simclr and mae have fewer seeds than others. A pair is compared over the seeds that both rows have."
    ]


def test_rows_without_a_seed_in_common_are_not_compared():
    whole = synthetic.comparison({"byol": 1.75, "simclr": 0.7}, (0, 1, 2, 3), whole=True)
    part = replace(whole, runs=[run for run in whole.runs if (run.row == "byol") == (run.seed < 2)])
    assert column_of(part).pair("byol", "simclr") is None
    assert texts(part, "seeds")[-1] == (
        "byol and simclr have no seed in common, so nothing is known of their difference."
    )


def test_pairs_share_seeds_so_that_what_seeds_have_in_common_cancels():
    rng = np.random.default_rng(0)
    common = {seed: 0.2 * rng.normal() for seed in range(3)}

    def easy(run):
        hits = rng.random(400) < 0.5 + common[run.seed] + (0.12 if run.row == "byol" else 0)
        return {"top1": right(hits, np.arange(400) % 2, "top-1")}

    comparison = only(synthetic.comparison({"byol": 1.0, "simclr": 1.0}, whole=True), "knn", easy)
    pair = column_of(comparison).pair("byol", "simclr")
    a, b = (
        [run.found["knn"].results["method"].metrics["top1"].value for run in comparison.runs if run.row == row]
        for row in ("byol", "simclr")
    )
    assert stats.ttest_ind(a, b).pvalue > 0.3  # unpaired, the seeds hide the difference
    assert pair.mean == pytest.approx(np.mean(a) - np.mean(b)) and pair.p < 0.05


@pytest.mark.parametrize("higher_is_better", [True, False])
def test_direction_decides_who_is_better_in_letters_ranks_and_words(higher_is_better):
    rng = np.random.default_rng(0)

    def distance(run):
        values = {"byol": 0.2, "simclr": 0.5, "simsiam": 0.8}[run.row] + 0.01 * rng.normal(size=50)
        return {"distance": Metric(float(values.mean()), "distance", "none", higher_is_better, outcomes=values)}

    comparison = only(synthetic.comparison(SKILLS, whole=True), "nearest", distance)
    column = column_of(comparison, "nearest.distance")
    best, worst = ("simsiam", "byol") if higher_is_better else ("byol", "simsiam")
    assert column.pair("byol", "simsiam").better == best
    assert column.scores[best].ranks == (1, 1) and column.scores[worst].ranks == (3, 3)
    assert [column.scores[row].letters for row in (best, "simclr", worst)] == ["a", "b", "c"]
    (text,) = texts(comparison, "best")
    assert text.startswith(
        f"Nearest, distance{'' if higher_is_better else ' (lower is better)'}: {best} is best with 0."
    ) or (f": {best} is best with 0." in text)


def test_letters_ranks_and_winners_follow_from_the_corrected_tests(block):
    for column in block.columns:
        for pair in column.pairs:
            a, b = column.scores[pair.first], column.scores[pair.second]
            assert bool(set(a.letters) & set(b.letters)) == (pair.better is None) == (pair.adjusted > 0.05)
            assert pair.p <= pair.adjusted and (pair.p < 0.05) == (not pair.low <= 0 <= pair.high)
        methods = [row.key for row in block.rows if not row.baseline]
        for row in methods:
            others = [column.pair(row, other) for other in methods if other != row]
            lost = sum(one.better not in (None, row) for one in others)
            won = sum(one.better == row for one in others)
            assert column.scores[row].ranks == (1 + lost, len(methods) - won)
        assert all(
            column.scores[row.key].ranks is None for row in block.rows if row.baseline and row.key in column.scores
        )


def test_the_deviation_over_images_is_that_of_paired_differences(three):
    runs = {(run.row, run.seed): run.found["knn"].results["method"].metrics["top1"].outcomes for run in three.runs}
    d = np.array([runs["byol", seed] * 1.0 - runs["simclr", seed] for seed in range(3)])
    found = column_of(three).pair("byol", "simclr").components
    across = np.cov(d)[np.triu_indices(3, 1)].mean() / 359
    assert found.between == pytest.approx(d.mean(axis=1).var(ddof=1) / 3)
    assert found.images == pytest.approx(across) and across > 0


def test_images_of_several_seeds_are_matched_by_name_and_not_by_place(three):
    """All seeds have the same images, each in an order of its own."""
    orders = {seed: np.random.default_rng(seed).permutation(359) for seed in range(3)}

    def mixed(run, found, named):
        order = orders[run.seed]
        results = {
            row: Result(
                {
                    key: replace(one, outcomes=one.outcomes[..., order])
                    for key, one in result.metrics.items()
                    if one.outcomes is not None
                }
            )
            for row, result in found.results.items()
        }
        image = np.arange(359, dtype=np.uint64)[order] * 1000 if named else None
        return replace(found, results=results, label=found.label[order], image=image)

    def images(comparison):
        return column_of(comparison).pair("byol", "simsiam").components.images

    straight = images(three)
    assert straight > 0
    assert images(changed(three, lambda run, found: mixed(run, found, True))) == pytest.approx(straight)
    unknown = changed(three, lambda run, found: mixed(run, found, False))
    own = replace(unknown, runs=[replace(run, images=str(run.seed)) for run in unknown.runs])
    assert images(own) == 0  # each seed has images of its own, as far as is known


def test_images_that_a_protocol_drew_are_matched_by_name(three):
    """Each seed's figures are of 300 of the same 359 images, and those of the next seed are others."""

    def few(run, found):
        drawn = np.sort(np.random.default_rng(run.seed).permutation(359)[:300])
        results = {
            row: replace(
                result,
                metrics={
                    key: right(one.outcomes[..., drawn], found.label[drawn], one.title)
                    for key, one in result.metrics.items()
                    if one.outcomes is not None
                },
                drawn=drawn.tolist(),
            )
            for row, result in found.results.items()
        }
        return replace(found, results=results, image=np.arange(359, dtype=np.uint64) * 1000)

    column = column_of(changed(three, few))
    straight, found = (one.pair("byol", "simclr").components.images for one in (column_of(three), column))
    assert found == pytest.approx(straight, rel=0.2)
    assert "each seed draws its own, of which two seeds share 8" in column.covers


def test_what_intervals_cover_is_said(three):
    def named(share):
        return changed(
            three,
            lambda run, found: replace(found, image=np.arange(359, dtype=np.uint64) + round(359 * share) * run.seed),
        )

    assert "3 seeds and their test images; all seeds have the same 359." in column_of(named(0)).covers
    assert "each seed has its own 359." in column_of(named(1)).covers
    assert "each seed draws its own, of which two seeds share 33 %." in column_of(named(0.5)).covers


def test_a_figure_that_is_no_mean_over_images_is_judged_over_seeds_alone():
    values = {"byol": [0.5, 0.7, 0.6], "simclr": [0.1, 0.2, 0.3], "simsiam": [0.4, 0.4, 0.4]}
    comparison = only(
        synthetic.comparison(SKILLS, whole=True),
        "free",
        lambda run: {"rankme": Metric(values[run.row][run.seed], "RankMe", "none")},
    )
    column = column_of(comparison, "free.rankme")
    test = stats.ttest_rel(values["byol"], values["simclr"])
    assert column.pair("byol", "simclr").p == pytest.approx(test.pvalue)
    assert column.covers == "Intervals cover 3 seeds alone: this figure is not a mean over test images."
    one = only(
        synthetic.comparison(SKILLS, (0,), whole=True),
        "free",
        lambda run: {"rankme": Metric(values[run.row][0], "RankMe", "none")},
    )
    column = column_of(one, "free.rankme")
    assert {score.letters for score in column.scores.values()} == {""}
    assert all(score.ranks is None for score in column.scores.values())
    assert "differences have no interval" in column.covers and "differences have no interval" in texts(one, "best")[0]


def test_units_that_are_no_images_are_the_same_for_all_seeds():
    """Outcomes by class: ten values, though there are 359 images."""
    rng = np.random.default_rng(0)
    ease = rng.normal(size=10)

    def by_class(run):
        values = ease * (1 if run.row == "byol" else 0) + 0.02 * rng.normal(size=10)
        return {"map": Metric(float(values.mean()), "mAP", uncertainty=Uncertainty(0.1, "images"), outcomes=values)}

    comparison = only(synthetic.comparison({"byol": 1.0, "simclr": 1.0}, whole=True), "svm", by_class)
    comparison = changed(comparison, lambda run, found: replace(found, image=np.arange(359) + 1000 * run.seed))
    found = column_of(comparison, "svm.map").pair("byol", "simclr").components
    assert found.units == 10 and found.images == pytest.approx(ease.var(ddof=1) / 10, rel=0.2)


def test_class_balanced_figures_have_a_column_and_a_test_of_their_own(three):
    label = np.where(np.arange(359) < 300, 0, 1)

    def uneven(_, found):
        results = {
            row: Result(
                {
                    key: right(one.outcomes, label, one.title, one.answers or 1, one.curve)
                    for key, one in result.metrics.items()
                }
            )
            for row, result in found.results.items()
        }
        return replace(found, results=results, label=label, balance=found.balance | {"uneven": True})

    comparison = changed(three, uneven)
    plain, balanced = column_of(comparison), column_of(comparison, "knn.top1_balanced")
    runs = {run.seed: run.found["knn"].results for run in comparison.runs if run.row == "byol"}
    expected = [own["method"].metrics["top1"].balanced.value for own in runs.values()]
    assert balanced.scores["byol"].mean == pytest.approx(np.mean(expected))
    assert balanced.balanced and balanced.title == "top-1, class-balanced" and balanced.headline
    assert balanced.pair("byol", "simsiam").components.images != plain.pair("byol", "simsiam").components.images
    assert not any(column.balanced for column in block_of(three).columns)


# Blocks


def test_runs_of_different_conditions_are_never_ranked_together(three):
    for name in ("data", "budget", "code"):
        conditions = replace(synthetic.CONDITIONS, **{name: "other"})
        runs = [replace(run, conditions=conditions) if run.row == "simclr" else run for run in three.runs]
        judged = judge(replace(three, runs=runs))
        assert [[row.key for row in one.rows if not row.baseline] for one in judged.blocks] == [
            ["byol", "simsiam"],
            ["simclr"],
        ]
        assert "2 different conditions" in judged.sentences[0].text


def test_protocols_of_other_settings_and_other_images_of_a_seed_make_blocks(three):
    other = replace(synthetic.CONDITIONS, protocols={"knn": "k2", "linear": "l1"})
    runs = [replace(run, conditions=other) if run.row == "simclr" else run for run in three.runs]
    assert len(judge(replace(three, runs=runs)).blocks) == 2
    fewer = replace(synthetic.CONDITIONS, protocols={"knn": "k1"})  # a protocol that only others have
    runs = [replace(run, conditions=fewer) if run.row == "simclr" else run for run in three.runs]
    (block,) = judge(replace(three, runs=[*reversed(runs)])).blocks
    assert block.conditions.protocols == synthetic.CONDITIONS.protocols and len(block.runs) == 9
    runs = [replace(run, images="new") if (run.row, run.seed) == ("simclr", 1) else run for run in three.runs]
    assert [len(one.rows) for one in judge(replace(three, runs=runs)).blocks] == [7, 5]


def test_the_first_of_two_runs_of_a_row_and_seed_counts(three):
    again = replace(three.runs[0], found=three.runs[-1].found, experiment="again")
    assert block_of(replace(three, runs=[*three.runs, again])).columns == block_of(three).columns


def test_without_runs_the_judgement_says_so(three):
    judged = judge(replace(three, runs=[]))
    assert judged.blocks == [] and "nothing to judge" in judged.sentences[0].text


def test_a_protocol_that_a_row_lacks_has_its_reason():
    comparison = synthetic.comparison()  # the third method lacks few_label at one seed
    runs = [
        replace(run, found={"knn": run.found["knn"]}, skipped={"linear": "needs labels", "few_label": "needs labels"})
        if run.row == "vicreg"
        else run
        for run in comparison.runs
    ]
    column = column_of(replace(comparison, runs=runs), "linear.top1")
    assert column.missing == {"vicreg": "needs labels"}


# Sentences


def test_sentences_name_the_best_group_and_what_it_beats(block):
    words = {
        topic: [one.text for one in block.sentences if one.topic == topic] for topic in ("best", "baselines", "decide")
    }
    linear = next(text for text in words["best"] if text.startswith("Linear probe, top-1"))
    assert "no single best" in linear and "cannot be told apart from it" in linear and "simsiam" not in linear
    assert "arXiv:2407.12210" in words["best"][0]
    pixels = next(text for text in words["baselines"] if "raw pixels" in text and text.startswith("Linear"))
    assert "simsiam is behind it" in pixels
    labelled = next(text for text in words["baselines"] if "supervised" in text)
    assert "simsiam is behind it" in labelled
    assert not any("majority" in text for text in words["baselines"] if "Linear" in text)
    assert all("seeds" in text for text in words["decide"]) and len(words["decide"]) == 2


def test_a_row_of_published_weights_is_a_baseline_like_others(three):
    comparison = changed(
        three, lambda _, found: replace(found, results=found.results | {"published": found.results["supervised"]})
    )
    assert any(": published (" in text and "no method beats it" in text for text in texts(comparison, "baselines"))


def test_where_few_labels_pay_and_what_it_cost(three):
    (few,) = texts(three, "few labels")
    assert few.startswith(
        "With few labels, methods ahead of all baselines that saw no labels: at 1 per class 2 of 3 (best mean: byol, "
    )
    (cost,) = texts(three, "cost")
    assert cost.startswith("Pretraining took 26 min for 9 runs, from 153 s (simclr) to 203 s (byol) per run.")


def test_how_many_more_seeds_decide_the_leading_pair():
    def figures(gap, noise, ease):
        rng = np.random.default_rng(1)
        image = ease * rng.normal(size=359)
        image -= image.mean()

        def metrics(run):
            lead = run.row == "byol"
            values = 0.5 + (gap + image if lead else 0) + noise * rng.normal() + 0.01 * rng.normal(size=359)
            return {"top1": Metric(float(np.mean(values)), "top-1", outcomes=values)}

        two = synthetic.comparison({"byol": 1.0, "simclr": 1.0}, whole=True)
        return texts(only(two, "knn", metrics), "decide")

    (text,) = figures(0.03, 0.02, 0.0)
    assert "more seeds" in text and "in all, would decide it" in text
    (text,) = figures(0.0, 0.001, 1.0)
    assert "No number of seeds would decide it" in text and "the test images limit it" in text
    assert figures(0.5, 0.001, 0.0) == []  # decided


def test_without_any_test_the_best_mean_is_the_lowest_where_lower_is_better():
    values = {"byol": 0.3, "simclr": 0.2}
    one = synthetic.comparison({"byol": 1.0, "simclr": 1.0}, (0,), whole=True)
    own = only(one, "label_free", lambda run: {"gap": Metric(values[run.row], "gap", "none", higher_is_better=False)})
    (text,) = texts(own, "best")
    assert "(lower is better): simclr reaches 0.2" in text and "the best mean" in text


def test_thirty_methods_are_judged_in_seconds_and_always_alike():
    skills = {f"m{i}": 1.5 + 0.01 * i for i in range(12)}
    comparison = synthetic.comparison(skills, whole=True)
    first, second = (block_of(comparison) for _ in range(2))
    assert first == second
    assert len(first.columns[0].pairs) == 16 * 15 / 2


def test_an_empty_protocol_and_a_metric_of_one_row_do_no_harm(three):
    alone = {"extra": Metric(1.0, "extra", "none")}

    def extra(run, found):
        if run.row != "byol":
            return found
        own = found.results["method"]
        return replace(found, results=found.results | {"method": Result(own.metrics | alone)})

    column = column_of(changed(three, extra), "knn.extra")
    assert list(column.scores) == ["byol"] and column.pairs == [] and "no difference to test" in column.covers
    empty = Comparison("a", "a", ["byol"], [0], [replace(three.runs[0], found={}, skipped={"knn": "needs labels"})])
    assert block_of(empty).columns == []


def test_costs_have_no_column(three):
    def with_costs(run):
        return run.found["knn"].results["method"].metrics | {
            "speed": Metric(9.0, "images per second", "none", judged=False)
        }

    columns = block_of(only(three, "knn", with_costs)).columns
    assert columns and not [column.key for column in columns if column.metric == "speed"]


def test_estimates_of_balance_are_optional():
    metric = Metric(0.5, "top-1", balanced=Estimate(0.4, Uncertainty(None, "images")), answers=1)
    found = Found("kNN", {}, {}, {}, {"uneven": True}, [], [], {"method": Result({"top1": metric})})
    run = replace(synthetic.comparison(SKILLS, (0,), whole=True).runs[0], found={"knn": found})
    block = block_of(Comparison("a", "a", ["byol"], [0], [run]))
    assert [column.scores["byol"].mean for column in block.columns] == [0.5, 0.4]


def test_the_best_of_rows_with_different_seeds_is_one_that_no_other_beats():
    """The first row has the highest mean by an easy seed of its own, and is behind the second where both have seeds."""
    values = {"byol": {0: 0.5, 1: 0.5, 2: 0.5, 3: 2.5}, "simclr": {0: 0.7, 1: 0.71, 2: 0.7}}
    rng = np.random.default_rng(0)

    def metrics(run):
        outcomes = values[run.row][run.seed] + 0.01 * rng.normal(size=200)
        return {"top1": Metric(float(outcomes.mean()), "top-1", outcomes=outcomes)}

    whole = synthetic.comparison({"byol": 1.0, "simclr": 1.0}, (0, 1, 2, 3), whole=True)
    part = replace(whole, runs=[run for run in whole.runs if run.seed in values[run.row]])
    comparison = only(part, "knn", metrics)
    scores = column_of(comparison).scores
    assert scores["byol"].mean > scores["simclr"].mean
    assert texts(comparison, "best")[-1].startswith("kNN, top-1: simclr is best with 70.3 ± 0.6 %, ahead of byol.")
