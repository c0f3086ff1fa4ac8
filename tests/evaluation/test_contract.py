"""The contract of a protocol, on protocols that the package does not have."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from selfsup.config import parse
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.evaluation.compare import paired, rank
from selfsup.evaluation.folder import read as read_folder
from selfsup.evaluation.result import Choice, Metric, Result, Uncertainty, flat, own_keys, right
from selfsup.params import Evaluation
from tests.evaluation import workspace
from tests.evaluation.workspace import evaluate
from tests.helpers import params as make_params
from tests.helpers import values

TOY = (Path(__file__).parent / "toys/nearest.py").read_text()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def evaluation(**blocks):
    """The section `evaluation` of these protocols, all of them chosen."""
    return parse(Evaluation, {"protocols": list(blocks), "encoder_protocols": [], **blocks})


def with_toy(k=2):
    own = values()["evaluation"]
    return {"evaluation": own | {"protocols": [*own["protocols"], "nearest"], "nearest": {"k": k}}}


@pytest.mark.parametrize("name", protocols.names())
def test_every_protocol_declares_what_it_is(name):
    one = protocols.find(name)
    assert one.title and one.needs


def test_every_protocol_of_the_parameters_is_valid():
    chosen = make_params().evaluation
    found = protocols.blocks(chosen)
    assert list(found)[: len(chosen.protocols)] == chosen.protocols
    assert set(found) == set(protocols.names())


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("TITLE", "NAME"), "bad.py: TITLE missing; a protocol declares TITLE, NEEDS, Params and run"),
        (("class Params(Strict)", "class Knobs(Strict)"), "bad.py: Params missing; a protocol declares"),
        (("NEEDS", "WANTS"), "bad.py: NEEDS missing; a protocol declares"),
        (("def run(", "def judge("), "bad.py: run missing; a protocol declares"),
        (('"nearest image"', '" "'), "bad.py: TITLE must be a text for readers, got ' '"),
        (
            ('{"features"}', '["features"]'),
            "bad.py: NEEDS must be a set of features, labels, encoder, images, boxes, masks, got",
        ),
        (('{"features"}', '{"feature"}'), "bad.py: NEEDS: unknown 'feature'; did you mean features? Known: features, "),
        (("class Params(Strict)", "class Params(dict)"), "bad.py: Params must be a subclass of selfsup.config.Strict"),
        (('{"features"}', '{"features", "labels"}'), "bad.py: run must take exactly features, labels, params, seed"),
    ],
)
def test_a_file_without_its_declarations_is_one_line(found_in, tmp_path, change, line):
    text = TOY.replace("-> Result", "").replace("params: Params", "params").replace(*change)
    (tmp_path / "bad.py").write_text(text)
    found_in(tmp_path)
    with pytest.raises(UserError, match=re.escape(line)) as raised:
        protocols.find("bad")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("blocks", "line"),
    [
        ({"nearst": {"k": 1}}, "params.yaml: evaluation: unknown 'nearst'; did you mean nearest? Known: "),
        ({"nearest": {"k": 0}}, "params.yaml: evaluation.nearest.k: input should be greater than 0, got 0"),
        ({"nearest": {"n": 1}}, "params.yaml: evaluation.nearest.n: unknown parameter; remove it (and 1 more)"),
        ({"nearest": {}}, "params.yaml: evaluation.nearest.k: missing parameter; add it"),
    ],
)
@pytest.mark.usefixtures("toy")
def test_a_wrong_block_is_one_line(blocks, line):
    with pytest.raises(UserError, match=re.escape(line)):
        protocols.blocks(evaluation(**blocks))


def test_a_block_that_is_no_section_is_one_line():
    with pytest.raises(UserError, match=r"params.yaml: nearest: must be a section of `name: value` lines, got 3"):
        evaluation(nearest=3)


@pytest.mark.parametrize(
    ("lists", "line"),
    [
        (
            (["layers"], []),
            "evaluation.protocols: layers looks inside the network; move it to evaluation.encoder_protocols",
        ),
        (
            (["knn"], ["knn"]),
            "evaluation.encoder_protocols: knn does not look inside the network; move it to evaluation.prot",
        ),
        ((["knn"], ["layer"]), "evaluation.encoder_protocols: unknown 'layer'; did you mean layers? Known: "),
    ],
)
def test_a_protocol_in_the_wrong_list_is_one_line(lists, line):
    chosen = values()["evaluation"] | dict(zip(("protocols", "encoder_protocols"), lists, strict=True))
    with pytest.raises(UserError, match=re.escape(f"params.yaml: {line}")) as raised:
        protocols.blocks(parse(Evaluation, chosen))
    assert "\n" not in str(raised.value)


def test_a_protocol_without_a_block_is_one_line(toy):
    for chosen in (["nearest"], ["nearest", "nothing"]):
        with pytest.raises(
            UserError, match=r"evaluation\.(nearest: missing block; add it|protocols: unknown 'nothing')"
        ):
            protocols.blocks(parse(Evaluation, {"protocols": chosen, "encoder_protocols": []}))
    with pytest.raises(UserError, match=r"evaluation\.nearest: missing block"):
        protocols.chosen(toy, parse(Evaluation, {"protocols": ["nearest"], "encoder_protocols": []}))


@pytest.mark.usefixtures("toy")
def test_two_protocols_with_one_title_are_one_line(found_in, tmp_path):
    (tmp_path / "again.py").write_text(TOY)
    found_in(tmp_path)
    line = "evaluation/protocols/again.py and evaluation/protocols/nearest.py: have the same TITLE, 'nearest image'"
    with pytest.raises(UserError, match=re.escape(line)):
        protocols.blocks(evaluation(again={"k": 1}, nearest={"k": 1}))


@pytest.mark.parametrize(
    ("need", "why"),
    [
        ("boxes", "needs boxes: the data set has none"),
        ("masks", "needs masks: the data set has none"),
    ],
)
def test_a_need_that_is_not_met_skips_the_protocol_with_its_reason(folder, hundred, found_in, capsys, need, why):
    (folder / "toys").mkdir()
    text = TOY.replace('{"features"}', f'{{"features", "{need}"}}').replace("features: Splits,", f"features, {need},")
    (folder / "toys/nearest.py").write_text(text)
    found_in(folder / "toys")
    evaluate("nearest", workspace.make(folder, hundred, **with_toy()))
    assert json.loads(Path("metrics/evaluate/nearest.json").read_text())["nearest"] == {"skipped": why}
    assert json.loads(Path("evaluations/nearest/details.json").read_text()) == {"skipped": why}
    assert capsys.readouterr().out == f"nearest: skipped, {why}\n"


@pytest.mark.parametrize("data", ["hundred", "unlabelled_shards"])
def test_a_protocol_without_labels_runs_on_any_data(folder, data, request, toy, capsys):
    written = evaluate(toy, workspace.make(folder, request.getfixturevalue(data), **with_toy()))
    rows = written["nearest"]
    assert list(rows) == ["features", "method", "supervised", "random", "pixels"], "the majority row has no features"
    assert rows["features"] == "l2-normalised"
    assert list(rows["method"]) == ["distance", "distance_se", "time", "k"]
    assert written["units"] == {"distance": "none, lower is better", "time": "seconds, lower is better"}
    found = read_folder(Path("evaluations/nearest"))
    assert found.title == "nearest image" and found.balance == {} and found.label is None
    outcomes = found.results["method"].metrics["distance"].outcomes
    assert len(outcomes) == found.images["test"] and outcomes.mean() == pytest.approx(rows["method"]["distance"])
    assert "nearest: drawn with seed 0\n" in capsys.readouterr().out
    lines = Path("evaluations/nearest/extremes.csv").read_text().splitlines()
    assert lines[0] == "row,which,distance" and lines[1].startswith("method,farthest,")
    assert not Path("evaluations/nearest/confusion.csv").exists()


@pytest.mark.parametrize("name", protocols.names())
def test_units_are_noted_of_what_is_not_a_percentage_of_which_more_is_better(folder, hundred, name):
    written = evaluate(name, workspace.make(folder, hundred, **workspace.quick()))
    metrics = read_folder(Path(f"evaluations/{name}")).results["method"].metrics
    noted = [key for key, one in metrics.items() if (one.unit, one.higher_is_better) != ("percent", True)]
    assert list(written.get("units", {})) == noted


def test_a_note_that_not_all_rows_have_names_those_that_do(folder, hundred, found_in):
    (folder / "toys").mkdir()
    note = 'notes=[f"drawn with seed {seed}"] + (["flat"] if features.train.shape[1] > 100 else []),'
    (folder / "toys/nearest.py").write_text(TOY.replace('notes=[f"drawn with seed {seed}"],', note))
    found_in(folder / "toys")
    evaluate("nearest", workspace.make(folder, hundred, **with_toy()))
    assert read_folder(Path("evaluations/nearest")).notes == ["drawn with seed 0", "flat (pixels)"]


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (("outcomes=distance", "outcomes=distance + 1"), r"nearest: distance is .*, but the mean of its outcomes"),
        (("Metric(1.5,", "Metric(float('nan'),"), "nearest: time: needs a finite float, got nan"),
        (("Metric(1.5,", "Metric(np.float32(1.5),"), "nearest: time: needs a finite float, got np.float32"),
    ],
)
def test_a_value_that_is_no_finite_float_or_not_its_outcomes_mean_is_a_fault(folder, hundred, found_in, change, line):
    (folder / "toys").mkdir()
    (folder / "toys/nearest.py").write_text(TOY.replace(*change))
    found_in(folder / "toys")
    with pytest.raises(ValueError, match=line):
        evaluate("nearest", workspace.make(folder, hundred, **with_toy()))


def test_details_of_another_version_are_one_line(folder, hundred, toy):
    evaluate(toy, workspace.make(folder, hundred, **with_toy()))
    Path("evaluations/nearest/details.json").write_text('{"titles": {}}')
    with pytest.raises(UserError, match=r"evaluations/nearest/details.json: not as this version writes it \(title: "):
        read_folder(Path("evaluations/nearest"))


def test_keys_are_derived_from_the_fields():
    hits = np.array([[True, False, True], [True, True, True]])
    metrics = {"top1": right(hits[0], np.array([0, 0, 1]), "top-1"), "few": right(hits, np.array([0, 0, 1]), "few")}
    metrics["nmi"] = Metric(0.5, "NMI", "none")
    metrics["gap"] = Metric(0.1, "gap", "points", uncertainty=Uncertainty(0.02, "draws"))
    result = Result(metrics, {"k": Choice(5, "k", {5: 0.9, 20: 0.8}, {5: 0.5, 20: 0.25}), "c": Choice(0.1, "C", {})})
    figures = flat(result)
    assert list(figures) == [
        *("top1", "top1_se", "top1_balanced", "top1_balanced_se"),
        *("few", "few_std", "few_balanced", "few_balanced_std"),
        *("nmi", "gap", "gap_std", "k", "top1_k5", "top1_k20", "c"),
    ]
    assert figures["top1_k20"] == 0.25 and figures["k"] == 5 and figures["gap_std"] == 0.02
    assert own_keys(list(figures), ["k", "c", "temperature"]) == ["top1", "few", "nmi", "gap"]
    assert own_keys(list(figures), []) == ["top1", "few", "nmi", "gap", "k", "top1_k5", "top1_k20", "c"]


@pytest.mark.parametrize("name", ["top1_se", "x_std", "x_balanced", "a/b", "Top", ""])
def test_names_that_derived_keys_could_take_are_refused(name):
    with pytest.raises(ValueError, match="needs lower-case letters"):
        Result({name: Metric(0.5, "x")})


def test_where_lower_is_better_the_lowest_is_best_and_ahead():
    low, high = np.array([0.1, 0.2, 0.12, 0.15]), np.array([0.5, 0.61, 0.52, 0.58])
    ranking = rank({"high": high, "low": low}, higher_is_better=False)
    assert (ranking.best, ranking.runner_up) == ("low", "high") and ranking.difference.ahead
    assert ranking.difference.mean < 0
    assert not paired(high, low, higher_is_better=False).ahead
    assert paired(high, low).ahead and not paired(low, high).ahead


@pytest.mark.parametrize("name", protocols.names())
def test_titles_can_stand_in_a_table_of_markdown(folder, hundred, name):
    evaluate(name, workspace.make(folder, hundred, **workspace.quick()))
    results = read_folder(Path(f"evaluations/{name}")).results
    titles = [one.title for result in results.values() for one in (*result.metrics.values(), *result.choices.values())]
    assert not [title for title in [protocols.find(name).title, *titles] if "|" in title or "\n" in title]
