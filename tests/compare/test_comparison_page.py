"""The page of a comparison shows every figure with its origin, every gap with its reason, and nothing twice as one."""

import csv
import itertools
import re
from dataclasses import replace
from xml.sax.saxutils import quoteattr

import numpy as np
import pytest

from selfsup.compare import by_dvc, cells, differences, page, parts, pictures
from selfsup.compare.comparison import Absent, Comparison, Design
from selfsup.compare.judge import judge
from selfsup.data.loader import open_split
from selfsup.evaluation.result import Metric, Plot
from selfsup.report import charts
from tests.compare import reading, synthetic
from tests.evaluation import workspace
from tests.helpers import params


def no_images(images, chosen):  # noqa: ARG001
    return "no <images> here"


def shown(comparison, show=no_images):
    return reading.read(page.html(comparison, synthetic.judged(comparison), show))


@pytest.fixture(scope="module")
def five():
    return synthetic.comparison()


@pytest.fixture(scope="module")
def text(five):
    return page.html(five, synthetic.judged(five), no_images)


@pytest.fixture
def tree(text):
    return reading.read(text)


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures have a title and nothing in them, which saves most of the time."""
    monkeypatch.setattr(
        charts, "svg", lambda draw, width, height, title: f'<svg role="img" aria-label={quoteattr(title)}/>'
    )


def headed(tree, words):
    """The table that follows a heading or summary with these words."""
    nodes = list(tree)
    start = next(i for i, node in enumerate(nodes) if node.tag in ("h2", "h3", "h4", "summary") and words in node.text)
    return next(node for node in nodes[start:] if node.tag == "table")


def test_the_answers_come_first_and_the_best_group_first_of_them(tree):
    (lead,) = [node for node in tree.all("section") if node.attributes.get("id") == "answers"]
    said = [node.text for node in lead.all("dd")]
    assert said[0] == synthetic.SENTENCES[1].text
    for sentence in synthetic.SENTENCES:
        assert sentence.text in said
    assert "All runs have the same data, budget, code and protocols." in said
    assert "arXiv:2407.12210" in said[-2] and "tuned" in said[-1]
    nodes = list(tree)
    assert nodes.index(lead) < min(nodes.index(one) for one in tree.all("table"))


def test_a_long_answer_is_folded():
    one = page.Answer("q", [str(i) for i in range(page.LONG)])
    assert len(one.first) == page.LONG and not one.rest
    many = page.Answer("q", [str(i) for i in range(page.LONG + 3)])
    assert len(many.first) < page.LONG and [*many.first, *many.rest] == [*many.sentences]


def test_the_table_has_the_mean_and_the_deviation_of_the_runs(five, tree):
    table = reading.rows(headed(tree, "How good are the features?"))
    values = [100 * run.found["knn"].results["method"].metrics["top1"].value for run in five.runs if run.row == "byol"]
    first = next(cells for name, cells in table.items() if name.startswith("byol"))[0]
    assert first.startswith(f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}")
    assert "a · rank 1" not in first and "rank 1–2" in first
    for name in ("supervised, conv", "random weights, vit", "raw pixels", "majority class"):
        assert "rank" not in " ".join(table[name])
    assert [name.split()[0] for name in table][:5] == list(synthetic.SKILL)
    assert "±" not in table["raw pixels"][0], "raw pixels are equal for all seeds"


def test_those_that_may_be_best_are_marked(five, tree):
    (column,) = [one for one in synthetic.judged(five).blocks[0].columns if one.key == "knn.top1"]
    expected = {row for row, score in column.scores.items() if score.ranks and score.ranks[0] == 1}
    body = headed(tree, "How good are the features?").all("tbody")[0]
    marked = {line.all("a")[0].text for line in body.all("tr") if line.all("td")[0].attributes.get("class") == "best"}
    assert marked == expected == {"byol", "simclr"}


def test_fewer_seeds_and_other_networks_are_said(tree):
    table = reading.rows(headed(tree, "How good are the features?"))
    (mae,) = [(name, own) for name, own in table.items() if name.startswith("mae")]
    assert "vit" in mae[0] and all("2 seeds" in cell for cell in mae[1])
    vicreg = next(own for name, own in table.items() if name.startswith("vicreg"))
    assert ["2 seeds" in cell for cell in vicreg] == [False, False, True, True, True]


def without(run, protocol, why):
    found = {name: one for name, one in run.found.items() if name != protocol}
    return replace(run, found=found, skipped={**run.skipped, protocol: why})


@pytest.mark.usefixtures("undrawn")
def test_a_figure_that_could_not_be_had_is_a_dash_with_its_reason(five):
    runs = [without(run, "linear", "a <reason>") if run.row == "simsiam" else run for run in five.runs]
    tree = shown(replace(five, runs=runs))
    table = headed(tree, "How good are the features?")
    (line,) = [line for line in table.all("tr") if line.all("th")[0].text.startswith("simsiam")]
    (dash,) = line.all("abbr")
    assert dash.text == "–"
    why = dash.attributes["title"]
    assert why == "linear probe was not run for simsiam"
    (link,) = line.all("td")[1].all("a")
    (note,) = [node for node in tree if node.attributes.get("id") == link.attributes["href"][1:]]
    assert note.text == why and note.tag == "li"
    assert "simsiam, seeds 0, 1, 2: no linear: a <reason>" in [node.text for node in tree.all("li")]


def test_what_is_left_out_is_listed(five, tree):
    items = [node.text for node in tree.all("li")]
    assert f"mae, seed 2: {five.absent[0].reason}" in items
    assert "vicreg, seed 0: no few_label: the smallest class has too few images" in items
    assert f"simsiam, seeds 0, 1, 2: {synthetic.ALARM}" in items
    assert "14 of 15 runs" in tree.text


def test_every_run_has_its_experiment_its_tracked_run_and_its_command(five, tree):
    table = headed(tree, "Every run, and how to repeat it")
    lines = {line.all("th")[0].text: line for line in table.all("tr")[1:]}
    assert len(lines) == len(five.runs)
    for run in five.runs:
        line = lines[f"{run.row}, seed {run.seed}"]
        said = [node.text for node in line.all("code")]
        assert said == [run.experiment, run.revision[:10], run.tracked, run.command]
        assert line.all("code")[1].attributes["title"] == run.revision


def test_links_lead_somewhere(tree):
    names = [node.attributes["id"] for node in tree if "id" in node.attributes]
    assert len(names) == len(set(names))
    targets = [node.attributes["href"] for node in tree.all("a")]
    assert len(targets) > 5
    assert [target for target in targets if target[1:] not in names] == []


def test_a_row_leads_to_its_runs(tree):
    table = headed(tree, "How good are the features?")
    runs = headed(tree, "Every run")
    for line in table.all("tbody")[0].all("tr"):
        (link,) = line.all("th")[0].all("a")
        (body,) = [body for body in runs.all("tbody") if body.attributes["id"] == link.attributes["href"][1:]]
        assert body.all("th")[0].text.startswith(link.text + ", seed")


def check_accessible(tree):
    levels = [int(node.tag[1]) for node in tree.all("h1", "h2", "h3", "h4", "h5")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in itertools.pairwise(levels))
    for node in tree.all("th"):
        assert node.attributes.get("scope") in ("row", "col", "colgroup"), node.text
    for node in tree.all("svg"):
        assert node.attributes["role"] == "img" and node.attributes["aria-label"].strip()
    for node in tree.all("img"):
        assert node.attributes["alt"].strip()
    boxes = tree.all(class_="scroll")
    tables = tree.all("table")
    assert len(tables) == sum(len(box.all("table")) for box in boxes), "a wide table scrolls inside its own box"
    for box in boxes:
        assert box.attributes["tabindex"] == "0" and box.attributes["role"] == "region" and box.attributes["aria-label"]
    labels = [box.attributes["aria-label"] for box in boxes]
    assert len(set(labels)) == len(labels)
    assert tree.all("html")[0].attributes["lang"] == "en" and tree.all("title")[0].text


def check_self_contained(tree, text):
    for node in tree:
        for name, value in node.attributes.items():
            if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), value
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)


def test_the_page_is_accessible_and_asks_for_nothing_from_outside(tree, text):
    check_accessible(tree)
    check_self_contained(tree, text)
    assert len(tree.all("svg")) >= 9


def test_equal_comparisons_give_equal_bytes(tmp_path, five):
    for name, one in {"a": five, "b": synthetic.comparison()}.items():
        assert page.write(one, synthetic.judged(one), tmp_path / name, tmp_path) == tmp_path / name / "index.html"
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["index.csv", "index.html", "index.md", "times.csv"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


@pytest.mark.usefixtures("undrawn")
def test_tables_do_not_depend_on_times_and_on_what_is_new_in_every_run(tmp_path, five):
    slower = [
        replace(run, times={**run.times, "seconds": 9.9}, tracked=f"other{run.tracked}", revision="0" * 40)
        for run in five.runs
    ]
    for name, one in {"a": five, "b": replace(five, runs=slower)}.items():
        page.write(one, synthetic.judged(one), tmp_path / name, tmp_path)
    for file in ("index.html", "index.md", "index.csv", "times.csv"):
        same = (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
        assert same == (file in ("index.md", "index.csv")), file


@pytest.mark.usefixtures("undrawn")
def test_the_csv_is_tidy(tmp_path, five):
    page.write(five, synthetic.judged(five), tmp_path, tmp_path)
    with (tmp_path / "index.csv").open() as file:
        lines = list(csv.DictReader(file))
    run = five.runs[0]
    metric = run.found["linear"].results["supervised"].metrics["top5"]
    (line,) = [
        one
        for one in lines
        if (one["experiment"], one["representation"], one["metric"]) == (run.experiment, "supervised", "top5")
    ]
    assert float(line["value"]) == 100 * metric.value
    assert (line["row"], line["seed"], line["protocol"], line["unit"]) == (run.row, "0", "linear", "%")
    keys = [(one["experiment"], one["representation"], one["protocol"], one["metric"]) for one in lines]
    assert len(set(keys)) == len(keys)
    with (tmp_path / "times.csv").open() as file:
        timed = {(one["experiment"], one["metric"]): one["value"] for one in csv.DictReader(file)}
    assert timed[run.experiment, "seconds"] == "200.0"


def test_the_markdown_table_has_the_figures_of_the_page(five, tree):
    written = page.as_markdown(five, synthetic.judged(five))
    lines = [
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in written.splitlines() if line.startswith("|")
    ]
    assert len({len(line) for line in lines if not line[0].startswith("---")}) == 1
    table = reading.rows(headed(tree, "How good are the features?"))
    for line in lines[2:]:
        own = next(cells for name, cells in table.items() if name.startswith(line[0]))
        for here, there in zip(line[1:], own, strict=True):
            assert re.sub(r"[*]|<sup>.*", "", here).split(" (")[0].strip() == re.split(r" [a-z]+ ·| \d seed", there)[0]
    assert "**" in next(line for line in lines if line[0] == "simclr")[1]
    assert five.absent[0].reason in written


HOSTILE = "<script>alert(1)</script>|`a\n\"b'"


def test_names_are_text_and_nothing_else(tmp_path, five):
    row = {"byol": HOSTILE}
    runs = [
        replace(run, row=row.get(run.row, run.row), experiment=HOSTILE, classes=[HOSTILE] * 10, command=HOSTILE)
        for run in five.runs
    ]
    absent = [Absent(HOSTILE, 1, HOSTILE)]
    hostile = replace(
        five, title=HOSTILE, rows=[row.get(name, name) for name in five.rows], runs=runs, absent=absent, notes=[HOSTILE]
    )
    page.write(hostile, synthetic.judged(hostile), tmp_path, tmp_path)
    tree = reading.read((tmp_path / "index.html").read_text())
    assert len(tree.all("script")) == 1
    assert "alert(1)" not in tree.all("script")[0].parts[0]
    assert "<script>alert(1)</script>" in tree.all("h1")[0].text
    written = (tmp_path / "index.md").read_text()
    assert "<script>" not in written
    table = [line for line in written.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1


def test_a_comparison_without_runs_names_the_command(tmp_path):
    empty = Comparison("a", "A", ["byol"], [0], [], command="make compare METHODS=byol SEEDS=0")
    page.write(empty, synthetic.judged(empty), tmp_path, tmp_path)
    tree = reading.read((tmp_path / "index.html").read_text())
    assert "Nothing to show yet: run make compare METHODS=byol SEEDS=0 first." in tree.text
    assert not tree.all("table") and not tree.all("svg")
    check_accessible(tree)
    assert "Nothing to show yet" in (tmp_path / "index.md").read_text()
    with (tmp_path / "index.csv").open() as file:
        assert len(list(csv.reader(file))) == 1


@pytest.mark.usefixtures("undrawn")
def test_one_run_alone():
    tree = shown(synthetic.comparison({"byol": 1.7}, [3], whole=True))
    check_accessible(tree)
    table = reading.rows(headed(tree, "How good are the features?"))
    assert "±" not in " ".join(cell for own in table.values() for cell in own)
    assert not [node for node in tree.all("h2") if "disagree" in node.text]
    assert "1 method · seed 3 · 1 run" in tree.text


@pytest.mark.usefixtures("undrawn")
def test_runs_without_figures_show_why_and_what_they_cost(five):
    why = "needs labels: the data set has none"
    runs = [replace(run, found={}, skipped=dict.fromkeys(run.found, why), classes=[]) for run in five.runs]
    tree = shown(replace(five, runs=runs))
    check_accessible(tree)
    assert f"byol, seeds 0, 1, 2: no linear: {why}" in [node.text for node in tree.all("li")]
    assert reading.rows(headed(tree, "What did it cost?"))["byol"][0] == "203 s"
    bare = shown(replace(five, runs=[replace(run, times={}, pretrain={}, curve=[]) for run in runs]))
    assert not [node for node in bare.all("h2") if "cost" in node.text]


@pytest.mark.filterwarnings("error")
def test_long_names_leave_room_for_the_pictures():
    names = [
        "simclr (methods.simclr.temperature=0.1, views.crop_scale=0.2)",
        "simclr (methods.simclr.temperature=0.5, views.crop_scale=0.2)",
    ]
    one = synthetic.comparison(dict.fromkeys(names, 1.5), [0, 1], images=60, whole=True)
    tree = shown(one)
    words = {node.text for node in tree.all("text")}
    assert not [word for word in words if len(word) > 60]
    assert [name for name in names if pictures.short(name) in words] == names
    titles = [node.text for svg in tree.all("svg") for node in svg.all("title")]
    assert [name for name in names if any(name in title for title in titles)] == names


@pytest.mark.usefixtures("undrawn")
def test_runs_of_other_conditions_are_in_a_block_of_their_own(five):
    other = replace(synthetic.CONDITIONS, budget="100 epochs, batches of 64 images, fp32")
    runs = [replace(run, conditions=other) if run.row in ("byol", "mae") else run for run in five.runs]
    tree = shown(replace(five, runs=runs))
    check_accessible(tree)
    names = []
    for section in tree.all("section", class_="block"):
        table = reading.rows(headed(section, "How good are the features?"))
        names.append({name.split()[0] for name in table} & set(synthetic.SKILL))
        labels = " ".join(node.attributes["aria-label"] for node in section.all("svg"))
        assert names[-1] == {name for name in synthetic.SKILL if name in labels}
    assert sorted(map(sorted, names)) == [["byol", "mae"], ["simclr", "simsiam", "vicreg"]]
    differs = reading.rows(headed(tree, "Why are there 2 blocks?"))
    assert set(differs) == {"budget"} and {*differs["budget"]} == {other.budget, synthetic.CONDITIONS.budget}


@pytest.mark.usefixtures("undrawn")
def test_blocks_that_differ_in_images_alone_say_so(five):
    runs = [replace(run, images="0123456789") if run.row == "byol" else run for run in five.runs]
    one = replace(five, runs=runs)
    tree = reading.read(page.html(one, judge(one), no_images))
    differs = reading.rows(headed(tree, "Why are there 2 blocks?"))["checksum of the images"]
    assert len(differs) == 2 and "seed 0: 01234567; seed 1: 01234567; seed 2: 01234567" in differs


@pytest.mark.parametrize(
    ("tuned", "words"),
    [
        ({}, "No recipe was tuned on this data."),
        (dict.fromkeys(synthetic.SKILL, 12), "Every recipe was tuned with 12 trials."),
        ({"byol": 12}, "not tuned equally: byol with 12, simclr not"),
    ],
)
def test_the_page_says_how_recipes_were_tuned(five, tuned, words):
    assert words in page.tuning(replace(five, tuned=tuned))


def test_tuning_that_may_have_seen_test_images_of_other_seeds_is_told(five):
    def with_images(first):
        return [
            replace(run, found={k: replace(v, image=first(run) + np.arange(359)) for k, v in run.found.items()})
            for run in five.runs
        ]

    tuned = dict.fromkeys(synthetic.SKILL, 12)
    alike, drawn = with_images(lambda _: 0), with_images(lambda run: 100 * run.seed)
    assert "may have read" not in page.tuning(replace(five, tuned=tuned, runs=alike))
    assert "may have read test images of another" in page.tuning(replace(five, tuned=tuned, runs=drawn))
    assert "may have read" not in page.tuning(replace(five, runs=drawn))


@pytest.mark.usefixtures("undrawn")
def test_a_run_with_fewer_protocols_than_others_of_its_block_is_on_the_whole_page(five):
    fewer = replace(synthetic.CONDITIONS, protocols={"knn": "k1"})
    own = [
        replace(run, conditions=fewer, found={"knn": run.found["knn"]}) if run.row == "simclr" else run
        for run in five.runs
    ]
    one = replace(five, runs=own)
    tree = reading.read(page.html(one, judge(one), no_images))
    assert any(name.startswith("simclr") for name in reading.rows(headed(tree, "What did it cost?")))


@pytest.mark.usefixtures("undrawn")
def test_uneven_classes_have_a_table_of_balanced_figures(five):
    runs = [
        replace(run, found={k: replace(v, balance={**v.balance, "uneven": True}) for k, v in run.found.items()})
        for run in five.runs
    ]
    tree = shown(replace(five, runs=runs))
    table = reading.rows(headed(tree, "when each class counts alike"))
    values = [
        100 * run.found["knn"].results["method"].metrics["top1"].balanced.value for run in runs if run.row == "byol"
    ]
    assert next(own for name, own in table.items() if name.startswith("byol"))[0].startswith(f"{np.mean(values):.1f} ±")


def with_metrics(comparison, protocol, title, metrics):
    """The comparison with one more protocol, whose figures are `metrics(run)` by key."""
    runs = []
    for run in comparison.runs:
        base = run.found["knn"]
        own = {row: replace(one, metrics=metrics(run), predicted=None) for row, one in base.results.items()}
        runs.append(replace(run, found={**run.found, protocol: replace(base, title=title, results=own)}))
    return replace(comparison, runs=runs)


@pytest.mark.usefixtures("undrawn")
def test_lower_is_better_and_units_are_said_and_sorted_by(five):
    def metrics(run):
        return {"nearest": Metric(0.3 + 0.01 * run.seed, "distance", "none", higher_is_better=False)}

    tree = shown(with_metrics(five, "nearest", "nearest image", metrics))
    table = headed(tree, "How good are the features?")
    (head,) = [node for node in table.all("th") if node.text.startswith("distance")]
    assert "no unit, lower is better" in head.text and head.attributes["data-sort"] == "up"
    byol = next(own for name, own in reading.rows(table).items() if name.startswith("byol"))
    assert byol[-1].startswith("0.31 ± 0.01")


@pytest.mark.usefixtures("undrawn")
def test_measured_times_of_protocols_stand_with_the_costs(tmp_path, five):
    def metrics(run):
        return {"latency": Metric(0.25 + 0.5 * run.seed, "time per batch", "seconds", higher_is_better=False)}

    timed = with_metrics(five, "speed", "speed", metrics)
    page.write(timed, synthetic.judged(timed), tmp_path, tmp_path)
    tree = reading.read((tmp_path / "index.html").read_text())
    assert "time per batch" not in headed(tree, "How good are the features?").text
    costs = headed(tree, "What did it cost?")
    assert "speed: time per batch" in costs.text
    assert reading.rows(costs)["byol"][-1] == "0.8"
    assert "latency" not in (tmp_path / "index.csv").read_text() + (tmp_path / "index.md").read_text()
    assert "latency" in (tmp_path / "times.csv").read_text()


@pytest.mark.usefixtures("undrawn")
def test_costs_that_are_not_judged_stand_with_the_costs(five):
    def metrics(run):
        return {"mflops": Metric(1.25 + run.seed, "million FLOPs", "none", judged=False)}

    costly = with_metrics(five, "size", "size", metrics)
    tree = reading.read(page.html(costly, judge(costly), no_images))
    table = headed(tree, "What did it cost?")
    assert "size: million FLOPs" in table.text
    assert reading.rows(table)["byol"][-1] == "2.25" and reading.rows(table)["mae"][-1] == "1.75"


def test_costs_are_means_over_seeds(five, tree):
    table = reading.rows(headed(tree, "What did it cost?"))
    assert table["byol"] == [
        "203 s",
        f"{np.mean([r.times['images_per_second'] for r in five.runs[:3]]):,.0f}",
        "411,664",
    ]


@pytest.mark.usefixtures("undrawn")
def test_curves_of_nan_and_of_nothing_are_left_out(five):
    runs = [
        replace(run, curve=[dict.fromkeys(row, float("nan")) for row in run.curve] if run.row == "byol" else [])
        for run in five.runs
    ]
    tree = shown(replace(five, runs=runs))
    assert "How did training go?" not in [node.text for node in tree.all("h2")]
    some = shown(replace(five, runs=[*runs[:3], *five.runs[3:]]))
    start = [
        node.attributes["aria-label"] for node in some.all("svg") if node.attributes["aria-label"].startswith("Loss of")
    ]
    assert len(start) == 4 and not [label for label in start if "byol" in label]


@pytest.mark.usefixtures("undrawn")
def test_of_many_classes_those_that_differ_most_are_shown():
    many = synthetic.comparison({"byol": 1.7, "simclr": 1.6}, [0], images=3000, classes=1000, whole=True)
    found = differences.by_class(many.runs, "knn")
    assert (len(found.names), found.left_out) == (differences.CLASSES, 1000 - differences.CLASSES)
    gaps = [abs(a - b) for (a, _), (b, _) in zip(*found.rows.values(), strict=True)]
    every = []
    for c in range(1000):
        of_class = [run.found["knn"] for run in many.runs]
        shares = [100 * np.mean(one.results["method"].predicted[one.label == c] == c) for one in of_class]
        every.append(abs(shares[0] - shares[1]))
    assert min(gaps) >= sorted(every)[-differences.CLASSES] - 1e-9
    tree = shown(many)
    check_accessible(tree)
    assert f"{1000 - differences.CLASSES} others are left out" in tree.text


def test_classes_are_accuracies_within_each_class(five, tree):
    table = reading.rows(headed(tree, "In which classes do they differ?"))
    for row, own in table.items():
        runs = [run.found["knn"] for run in five.runs if run.row == row]
        for c, cell in enumerate(own):
            shares = [100 * np.mean(one.results["method"].predicted[one.label == c] == c) for one in runs]
            assert cell == f"{np.mean(shares):.0f}"


def test_plots_of_protocols_are_overlaid_where_their_places_are_the_same(five, monkeypatch):
    def plotted(run):
        ticks = ["stem", "block"] if run.backbone == "conv" else ["patch", "middle", "end"]
        plot = Plot(
            "From which layer", "layer", "test accuracy", [(i, 0.5 + 0.1 * i) for i in range(len(ticks))], ticks=ticks
        )
        knn = run.found["knn"]
        results = {**knn.results, "method": replace(knn.results["method"], plots={"layers": plot})}
        return replace(run, found={**run.found, "knn": replace(knn, results=results)})

    drawn = []
    monkeypatch.setattr(
        pictures, "overlay", lambda read, look, x, y, ticks: drawn.append((read, x, y, ticks)) or "<svg/>"
    )
    look = parts.styles_of(five, synthetic.judged(five))
    found = parts.plots([plotted(run) for run in five.runs], look)
    assert [one.title for one in found] == ["kNN: From which layer"] * 2
    (conv, x, y, ticks), (vit, *_, places) = drawn
    assert (set(conv), set(vit)) == ({"byol", "simclr", "vicreg", "simsiam"}, {"mae"})
    assert (x, y, ticks, places) == ("layer", "test accuracy, %", ("stem", "block"), ("patch", "middle", "end"))
    assert [len(own) for own in conv.values()] == [3] * 4 and conv["byol"][0][1].tolist() == pytest.approx([50, 60])


def test_disagreements_are_counted_over_all_seeds(five):
    found = differences.disagreements(five.runs, "knn", no_images)
    right = {
        row: np.all(
            [
                run.found["knn"].results["method"].predicted == run.found["knn"].label
                for run in five.runs
                if run.row == row
            ],
            0,
        )
        for row in five.rows
    }
    wrong = {
        row: np.all(
            [
                run.found["knn"].results["method"].predicted != run.found["knn"].label
                for run in five.runs
                if run.row == row
            ],
            0,
        )
        for row in five.rows
    }
    for i, a in enumerate(found.rows):
        for j, b in enumerate(found.rows):
            assert found.counts[i][j] == sum(right[a] & wrong[b])
    best = max(int(sum(right[a][i] for a in right) * sum(wrong[a][i] for a in wrong)) for i in range(359))
    assert len(found.cards[0].right) * len(found.cards[0].wrong) == best
    assert found.why_no_pictures == "no <images> here" and found.cards[0].picture is None


def test_images_that_are_not_there_have_a_reason(tree):
    assert "No thumbnails: no <images> here." in [node.text for node in tree.all("p")]
    assert not tree.all("img")


def test_seeds_with_other_test_images_are_not_mixed(five):
    runs = [replace(run, images=f"set {run.seed}") for run in five.runs]
    found = differences.disagreements(runs, "knn", no_images)
    assert found.seeds == [0] and len(found.rows) == 5
    own = {
        run.row: run.found["knn"].results["method"].predicted == run.found["knn"].label for run in runs if run.seed == 0
    }
    assert found.counts[0][1] == sum(own[found.rows[0]] & ~own[found.rows[1]])


class Cached:
    """DVC's cache with one folder in it."""

    def __init__(self, root):
        self.folder = root / "data/shards"

    def has(self, checksum):
        return checksum == "there"

    def place(self, checksum, target):
        assert checksum == "there"
        target.symlink_to(self.folder.resolve())
        return target


@pytest.mark.usefixtures("undrawn")
def test_images_of_disagreements_are_those_of_the_runs(tmp_path, shards, five, monkeypatch):
    workspace.make(tmp_path, shards)
    monkeypatch.setattr(by_dvc, "Cache", Cached)
    show = differences.shown_from(tmp_path)
    runs = [replace(run, images="there") for run in five.runs]
    found = differences.disagreements(runs, "knn", show)
    assert found.why_no_pictures == "" and all(card.picture.startswith("data:image/png") for card in found.cards)
    number = int(differences.disagreements(runs, "knn", no_images).cards[0].caption.rpartition(" ")[2])
    split = open_split(shards, "test", params(data__cache="none").data)
    assert found.cards[0].caption.endswith(split.names[number])
    tree = shown(replace(five, runs=runs), show)
    assert len(tree.all("img")) == len(found.cards) == differences.IMAGES
    check_accessible(tree)
    assert "run dvc fetch" in differences.disagreements(five.runs, "knn", show).why_no_pictures


def test_a_folder_without_a_project_is_a_reason(tmp_path):
    assert "params.yaml" in differences.shown_from(tmp_path)("there", np.array([0]))


def test_the_front_is_what_nothing_beats():
    rng = np.random.default_rng(0)
    for higher in (True, False):
        points = [pictures.Point(str(i), *rng.integers(0, 9, 2).astype(float).tolist(), 0.0) for i in range(40)]
        sign = 1 if higher else -1

        def beaten(p, points=points, sign=sign):
            return any(
                q.cost <= p.cost and sign * q.score >= sign * p.score and (q.cost, q.score) != (p.cost, p.score)
                for q in points
            )

        expected = {(p.cost, p.score) for p in points if not beaten(p)}
        assert {(p.cost, p.score) for p in pictures.front(points, higher)} == expected


@pytest.mark.usefixtures("undrawn")
def test_differences_are_signed_as_row_less_best(five):
    block = synthetic.judged(five).blocks[0]
    look = parts.styles_of(five, synthetic.judged(five))
    (column,) = [one for one in block.columns if one.key == "knn.top1"]
    figure = parts.forest(block, column, look)
    label = reading.read(figure.svg).all("svg")[0].attributes["aria-label"]
    means = {row: 100 * one.mean for row, one in column.scores.items()}
    shared = {
        run.seed: run.found["knn"].results["method"].metrics["top1"].value for run in five.runs if run.row == "simclr"
    }
    mae = [
        run.found["knn"].results["method"].metrics["top1"].value - shared[run.seed]
        for run in five.runs
        if run.row == "mae"
    ]
    assert f"Differences from {max(five.rows, key=lambda row: means[row])}" in label
    mean = 100 * np.mean(mae)
    assert f"mae {mean:+.1f} ({mean - 3:+.1f} to {mean + 3:+.1f})".replace("-", "−") in label
    assert "majority" not in label


def test_colours_go_to_the_best_rows_and_a_row_has_one_class():
    names = [f"m{i}" for i in range(30)]
    look = pictures.styles(names, names[::-1])
    assert {row for row, style in look.items() if style.colour != pictures.GREY} == set(names[-10:])
    assert len({style.group for style in look.values()}) == 30
    assert len({look[row].colour for row in names[-10:]}) == 10


def contrast(a, b):
    def light(colour):
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((light(a), light(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_stand_out_from_the_page_light_and_dark():
    for colour in (*pictures.COLOURS, pictures.GREY):
        assert min(contrast(colour, "#ffffff"), contrast(colour, "#1d2126")) >= 3, colour


def study(pairs=False):
    settings = [("one", "8", "8"), ("one", "16", "16"), ("two", "8", "8"), ("two", "16", "16")]
    if pairs:
        settings = [("", "crop", "crop"), ("", "flip", "flip"), ("", "crop", "flip")]
    names = {f"{'/'.join(words)}": words for words in settings}
    label = synthetic.labels(50, 5)
    runs = [
        replace(
            synthetic.run(name, seed, label, 0.3 * i),
            row=name,
            method="simclr",
            times={"seconds": 10.0 * i + seed},
        )
        for i, name in enumerate(names)
        for seed in (0, 1)
    ]
    design = Design(
        "A paper", "What is expected.", "batch size", {"kNN": "knn.top1", "time": "run.seconds"}, names, pairs
    )
    return Comparison("s", "A study", list(names), [0, 1], runs, design=design)


def test_a_study_shows_what_is_expected_and_its_plot():
    one = study()
    tree = shown(one)
    check_accessible(tree)
    lead = next(node for node in tree.all("section") if node.attributes.get("id") == "answers")
    assert lead.all("p")[0].text == "What is expected." and "A paper" in lead.text
    figure = next(node for node in tree.all("figure"))
    words = [node.text for node in figure.all("text")]
    for expected in ("kNN", "time", "one", "two", "8", "16", "batch size"):
        assert expected in words
    rows = reading.rows(headed(tree, "How good are the features?"))
    assert {"one/8/8", "two/16/16"} <= set(rows)


def test_a_study_draws_means_and_random_weights():
    from matplotlib.figure import Figure

    one = study()
    axis = Figure().subplots()
    pictures._lines(axis, one.design, one.runs, "run.seconds")
    lines = {line.get_label(): line.get_ydata().tolist() for line in axis.lines if line.get_label() in ("one", "two")}
    assert lines == {"one": [0.5, 10.5], "two": [20.5, 30.5]}
    assert not [line for line in axis.lines if line.is_dashed()]
    axis = Figure().subplots()
    pictures._lines(axis, one.design, one.runs, "knn.top1")
    (broken,) = [line for line in axis.lines if line.is_dashed()]
    of_random = [100 * run.found["knn"].results["random"].metrics["top1"].value for run in one.runs]
    assert broken.get_ydata()[0] == pytest.approx(np.mean(of_random[:2]))


def test_a_study_of_pairs_is_a_heat_map():
    one = study(pairs=True)
    words = [node.text for node in reading.read(pictures.study(one.design, one.runs)).all("text")]
    assert [words.count(f"{value:.1f}") for value in (0.5, 10.5, 20.5)] == [1, 1, 2], "a pair stands on both sides"


def test_thirty_methods_on_six_protocols_are_a_light_page(tmp_path):
    skills = {f"method_{i:02}": 1.8 - 0.04 * i for i in range(30)}
    many = synthetic.comparison(skills, whole=True)
    runs = []
    for run in many.runs:
        more = {
            f"{name}_{i}": replace(one, title=f"{one.title} {i}") for name, one in run.found.items() for i in (1, 2)
        }
        runs.append(replace(run, found=more))
    many = replace(many, runs=runs)
    path = page.write(many, synthetic.judged(many), tmp_path, tmp_path)
    assert path.stat().st_size < 5e6
    tree = reading.read(path.read_text())
    table = headed(tree, "How good are the features?")
    assert len(table.all("tbody")[0].all("tr")) == 30
    assert len({node.text for node in table.all("th", scope="colgroup")}) == 6
    check_accessible(tree)


def test_a_sorted_column_needs_numbers(tree):
    """The script sorts by `data-value`: every figure of a method has it, in the order of the text."""
    body = headed(tree, "How good are the features?").all("tbody")[0]
    for line in body.all("tr"):
        for cell in line.all("td"):
            assert 100 * float(cell.attributes["data-value"]) == pytest.approx(float(cell.text.split()[0]), abs=0.05)


def test_the_split_of_main_and_other_figures(five):
    tables = cells.tables(synthetic.judged(five).blocks[0])
    assert [[column.key for column in table.columns] for table in tables] == [
        ["knn.top1", "linear.top1", "few_label.per_class_1", "few_label.per_class_5", "few_label.percent_10"],
        ["linear.top5"],
    ]
