import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from selfsup import digests
from selfsup.data.shards import write
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.evaluation.result import Choice, Metric, Result
from selfsup.evaluation.run import evaluate, read_inputs
from selfsup.features.store import Splits
from selfsup.report import page, pictures, sections
from tests.evaluation import workspace
from tests.helpers import params as make_params
from tests.helpers import values
from tests.report.test_scores import probe, scores

QUICK = workspace.quick()
BLOCKS = values()["evaluation"]
LISTED = BLOCKS["protocols"]
TITLES = {name: protocols.find(name).title for name in LISTED}
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Checker(HTMLParser):
    """Collects tags, attributes and text, and fails on a tag that closes another."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pictures, "POINTS", 60)
    return tmp_path


def report(params):
    page.write_report(params, read_inputs(params), Path("report/index.html"))
    text = Path("report/index.html").read_text()
    return text, Checker(text)


def finished(folder, shards, names=LISTED, **overrides):
    """A workspace in which every stage before the report has run."""
    params = workspace.make(folder, shards, **(QUICK | overrides))
    for name in names:
        evaluate(name, params)
    for place in ("models/pretrained", "plots", "metrics"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    (folder / "plots/pretrain.csv").write_text("step,epoch,loss,knn_validation\n5,1,2.5,\n10,2,1.5,0.7\n")
    run = {"method": "simclr", "backbone": "conv", "seconds": 192.3, "images_per_second": 1234.5, "alarm": None}
    (folder / "metrics/pretrain.json").write_text(json.dumps(run | {"parameters": 412345, "loss": 0.25}))
    return params


def test_a_complete_page(folder, hundred):
    text, checker = report(finished(folder, hundred))
    said = " ".join(checker.texts)
    for expected in (
        "supervised",
        "random weights",
        "raw pixels",
        "Nearest neighbours",
        "3 min 12 s",
        "1,234",
        "412,345",
    ):
        assert expected in said
    assert "Alarm" not in said
    assert "Not under git." in said
    assert "source: digits" in said  # the parameters
    assert text.count("<svg") == 3
    assert [title for title in TITLES.values() if title not in said] == []
    assert re.search(r"Everything chosen, such as (linear probe: C, )?.*\w: \w.*, was chosen", " ".join(said.split()))


def test_the_page_is_self_contained(folder, hundred):
    text, checker = report(finished(folder, hundred))
    for name, value in checker.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "data", "poster"):
            assert value.startswith(("data:", "#")) or value == page.MAP, "a link, and nothing that is loaded"
    assert "script" not in checker.tags
    assert "link" not in checker.tags
    assert not re.search(r"url\((?!#|data:)", text)
    assert "@import" not in text
    assert {path.name for path in Path("report").iterdir()} == {"index.html", page.MAP}


def test_a_lopsided_set_of_noise_is_not_said_to_be_learnt(folder, tmp_path_factory, capsys):
    """150 images of one class and 8 of each other: 88 % of the test images are of the first."""
    root = tmp_path_factory.mktemp("lopsided")
    rng = np.random.default_rng(0)
    for name, count in {"common": 150, "rare": 8, "scarce": 8}.items():
        (root / "images" / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(root / "images" / name / f"{i}.png")
    source = {
        "data__image__source": "image_folder",
        "data__image__path": str(root / "images"),
        "data__image__image_size": 8,
    }
    write(make_params(**source).data.of("image"), 0, root / "shards", processes=1)
    few = {f"evaluation__{name}__fraction": [0.01, 1.0] for name in LISTED if "fraction" in BLOCKS[name]}
    overrides = source | QUICK | few
    params = workspace.make(folder, root / "shards", **overrides)
    for place in workspace.PLACES:
        arrays = {
            name: rng.normal(size=np.load(folder / f"features/{place}/{name}.npy").shape) for name in Splits._fields
        }
        meta = json.loads((folder / f"features/{place}/meta.json").read_text())
        workspace.write_features(folder / "features" / place, meta, arrays)
    capsys.readouterr()
    for protocol in LISTED:
        evaluate(protocol, params)
    lines = capsys.readouterr().out.splitlines()
    for protocol in LISTED:
        assert any(line.startswith(f"{protocol}: classes are uneven: 5 to 108 images per class in") for line in lines)
        assert any(line.startswith(f"{protocol}: simclr does not beat majority in") for line in lines)
        (row,) = [line for line in lines if line.startswith(f"{protocol}: majority: ")]
        assert "0.8824" in row and "_balanced 0.3333" in row
    assert [line for line in lines if line.endswith(": 1 % = 3 of 118 labels: each class gives at least one")]
    _, checker = report(params)
    said = " ".join(" ".join(checker.texts).split())
    assert "simclr does not beat the majority class: answering “common” for every sample is right for 88.2 %" in said
    assert "any constant answer has 33.3 %" in said
    assert "by class-balanced accuracy" in said
    assert "balanced, %" in said
    assert said.count("majority class") >= 4  # two tables, the chart and the headline
    assert "1 % 3 of 118 labels" in said and "100 % all 118 labels" in said


def test_choices_are_shown_by_row_and_a_page_without_names_none(folder, hundred):
    chosen = Choice(0.1, "C", {0.1: 0.9})
    one = scores("probe", {"method": Result({"top1": Metric(0.9, "top-1")}, {"c": chosen})})
    assert sections.choices([one, probe(method=0.9)]) == [("probe: C", {"method": "0.1"})]
    _, checker = report(finished(folder, hundred, ()))
    assert "chosen on the validation split" not in " ".join(" ".join(checker.texts).split())


def test_even_classes_have_no_balanced_table(folder, hundred):
    _, checker = report(finished(folder, hundred, LISTED[:1]))
    said = " ".join(checker.texts)
    assert "balanced, %" not in said
    assert "does not beat the majority class" not in said
    assert "Majority class: the answer" in said


def test_a_row_that_was_dropped_is_not_on_the_page(folder, hundred):
    _, checker = report(finished(folder, hundred, LISTED[:1], baselines=["pixels"]))
    assert "majority" not in " ".join(checker.texts).lower().replace("baselines", "")


def test_names_with_html_in_them_are_text(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    rng = np.random.default_rng(0)
    classes = ["<script>alert(1)<", "a&b\"'><img src=x>", "$\\frac{", "{{ 7 * 7 }}"]
    for number, name in enumerate(classes):
        (root / "images" / name.replace("/", "")).mkdir(parents=True)
        for i in range(15):
            pixels = rng.integers(40 * number, 40 * number + 60, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(root / "images" / name / f"<b onclick=x>{i}.png")
    source = {"data__image__source": "image_folder", "data__image__path": str(root / "images")}
    write(make_params(**source).data.of("image"), 0, root / "shards", processes=1)
    _, checker = report(finished(folder, root / "shards", LISTED[:1], **source))
    assert not {"script", "b"} & set(checker.tags)
    assert "onclick" not in {name for name, _ in checker.attributes}
    assert ("src", "x") not in checker.attributes
    said = "".join(checker.texts)
    for name in classes:
        assert name in said
    assert any(name == "title" and "<b onclick=x>" in value for name, value in checker.attributes)


def test_unlabelled_data_still_makes_a_page(folder, unlabelled_shards):
    _, checker = report(finished(folder, unlabelled_shards))
    said = " ".join(checker.texts)
    assert "No accuracy to report: needs labels" in said
    assert "Effective rank" in said
    assert "no labels" in said
    assert "Nearest neighbours" in said
    assert "t-SNE of" in said
    assert "How good are the features?" not in said
    assert not {"right", "wrong"} & {value for name, value in checker.attributes if name == "class"}


def test_missing_baselines_and_protocols_are_said(folder, hundred):
    params = workspace.make(folder, hundred, **QUICK)
    (folder / "features/baselines/pixels/meta.json").unlink()
    (folder / "features/baselines/supervised/meta.json").write_text('{"skipped": "no <time>"}')
    evaluate(LISTED[0], params)
    _, checker = report(params)
    said = " ".join(checker.texts)
    assert "baseline supervised: no <time>" in said
    assert "baseline pixels:" in said
    assert [f"{TITLES[name]}: not run" in said for name in LISTED] == [False] + [True] * (len(LISTED) - 1)
    assert "nearest training images by simclr" in said
    assert "nearest training images by raw pixels" not in said
    assert "The training run" not in said


@pytest.mark.parametrize("data", ["hundred", "unlabelled_shards"])
def test_a_protocol_of_another_kind_is_shown_with_its_unit_and_direction(folder, data, request, toy):
    """No percentages, no labels, lower is better: beside the others, and alone on data without labels."""
    kind = {"evaluation": BLOCKS | {"protocols": [LISTED[0], toy], toy: {"k": 2}}}
    params = workspace.make(folder, request.getfixturevalue(data), **kind)
    for name in (LISTED[0], toy):
        evaluate(name, params)
    text, checker = report(params)
    said = " ".join(" ".join(checker.texts).split())
    for words in ("nearest image", "cosine distance lower is better", "no unit", "search time lower is better"):
        assert words in said
    assert "cosine distance, no unit, lower is better" in said, "the axis of its chart"
    assert "nearest image: drawn with seed 0" in said and "nearest image: extremes" in said
    assert re.search(r"raw pixels\s*farthest\s*0\.\d{1,5}\s", said), "to four digits"
    assert "nearest image: neighbours" in said
    column = re.findall(r"<td[^>]*>(.*?)</td>", text[text.index("no unit</th>") :].partition("</table>")[0], re.DOTALL)
    (best,) = [cell for cell in column if "<strong>" in cell]
    written = json.loads(Path("metrics/evaluate/nearest.json").read_text())["nearest"]
    lowest = min(row["distance"] for row in written.values() if isinstance(row, dict))
    assert f"<strong>{lowest:.3g}</strong>" in best
    if data == "unlabelled_shards":
        assert "Nearest image, cosine distance (lower is better): raw pixels wins with" in said
        assert f"{TITLES[LISTED[0]]}: needs labels: the data set has none" in said
        assert "Which classes are confused?" not in said and "balanced" not in said
    else:
        assert "Which classes are confused?" in said and f"By the protocol “{TITLES[LISTED[0]]}”" in said


def test_an_alarm_is_shown_escaped(folder, hundred):
    params = finished(folder, hundred, ())
    (folder / "metrics/pretrain.json").write_text('{"alarm": "collapsed: <all> alike"}')
    text, checker = report(params)
    assert 'role="alert"' in text
    assert "collapsed: <all> alike" in "".join(checker.texts)


def test_a_collapsed_representation_has_no_map_but_a_page(folder, hundred):
    params = workspace.make(folder, hundred, **QUICK)
    for split in ("train", "validation", "test"):
        path = folder / f"features/pretrained/{split}.npy"
        np.save(path, np.ones_like(np.load(path)))
    for protocol in LISTED:
        evaluate(protocol, params)
    _, checker = report(params)
    said = " ".join(checker.texts)
    assert "No map: fewer than five test images, or all features are alike." in said
    assert "does not beat raw pixels" in said


def test_bold_only_where_the_lead_exceeds_the_spread(folder, hundred):
    params = finished(folder, hundred, LISTED[:1])
    text, _ = report(params)
    assert len(re.findall(r"<td[^>]*><strong>", text)) >= 1
    # The same outcomes for all rows: a lead of nothing.
    place = f"evaluations/{LISTED[0]}/outcomes.npz"
    with np.load(place) as arrays:
        same = {name: arrays[f"method/{name.split('/')[1]}"] if "/" in name else arrays[name] for name in arrays}
    np.savez_compressed(place, **same)
    text, _ = report(params)
    assert not re.findall(r"<td[^>]*><strong>", text)


def test_the_same_files_make_the_same_page(folder, hundred):
    params = finished(folder, hundred, LISTED[:1])
    assert report(params)[0] == report(params)[0]


def test_passwords_in_parameters_stay_out(folder, hundred):
    params = finished(folder, hundred, (), tracking__uri="http://me:secret@host:5000")
    text, _ = report(params)
    assert "secret" not in text
    assert "host:5000" in text


@pytest.mark.usefixtures("folder")
def test_commit_tells_clean_from_changed_and_ignores_the_lock():
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c"]
    assert page.commit() is None
    for name in ("code.py", "dvc.lock"):
        Path(name).write_text("1")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert page.commit() == head
    Path("dvc.lock").write_text("2")
    assert page.commit() == head
    Path("code.py").write_text("2")
    assert page.commit() == f"{head} + uncommitted changes"


@pytest.mark.usefixtures("folder")
def test_curves_have_gaps_where_nothing_was_read():
    Path("a.csv").write_text("step,loss,knn\n1,2.5,\n2,nan,0.5\n")
    found = page.read_curves(Path("a.csv"))
    assert found["step"].tolist() == [1, 2]
    assert np.isnan(found["loss"]).tolist() == [False, True]
    assert np.isnan(found["knn"]).tolist() == [True, False]
    assert page.read_curves(Path("none.csv")) == {}
    Path("empty.csv").write_text("step,loss\n")
    assert page.read_curves(Path("empty.csv")) == {}


@pytest.mark.parametrize(("seconds", "text"), [(7.25, "7.2 s"), (192.3, "3 min 12 s"), (7260, "2 h 1 min")])
def test_durations_read_as_words(seconds, text):
    assert page.duration(seconds) == text


def test_a_matrix_counts_by_actual_class():
    result = Result({"top1": Metric(1 / 3, "top-1")}, predicted=np.array([1, 1, 0]))
    one = scores("probe", {"method": result}, np.array([0, 0, 0]))
    assert sections.with_predictions([probe(method=0.9), one]) is one
    assert sections.confusion_matrix(one, ["a", "b"]) == [[(1, 1 / 3), (2, 2 / 3)], [(0, 0.0), (0, 0.0)]]
    assert sections.confusion_matrix(one, [str(i) for i in range(50)]) is None
    assert sections.confusion_matrix(None, ["a"]) is None


def test_figures_of_other_features_or_parameters_are_left_out_with_the_command_to_run(folder, hundred):
    """As after `pretrain` and `extract` alone, or a protocol whose parameters were changed and that was not run."""
    first, second = LISTED[:2]
    chosen = {"evaluation__protocols": [first, second]}
    before = finished(folder, hundred, (first, second), **chosen)
    features = np.load("features/pretrained/test.npy")
    np.save("features/pretrained/test.npy", features[::-1])
    _, checker = report(before)
    said = " ".join(checker.texts)
    for name in (first, second):
        why = "left out, as its figures are computed from other features of simclr"
        assert f"{TITLES[name]}: {why}; run dvc repro evaluate@{name}" in said
    assert "How good are the features?" not in said
    np.save("features/pretrained/test.npy", features)
    own = {key: value for key, value in QUICK.items() if key.startswith(f"evaluation__{first}__")}
    other = {key: value[:1] if isinstance(value, list) else value + 1 for key, value in own.items()}
    changed = make_params(**(QUICK | chosen | other), data__cache="none")
    _, checker = report(changed)
    said = " ".join(checker.texts)
    assert f"{TITLES[first]}: left out, as its figures are computed from other parameters" in said
    assert "How good are the features?" in said and f"{TITLES[second]}: left out" not in said


def test_features_of_another_method_or_of_other_weights_are_refused(folder, hundred):
    params = finished(folder, hundred, ())
    with pytest.raises(UserError, match=r"of simclr, but params.yaml has method byol; run dvc repro extract"):
        report(params.model_copy(update={"method": "byol"}))
    Path("models/pretrained/task.safetensors").write_bytes(b"of another training")
    with pytest.raises(UserError, match=r"not extracted from models/\S+; run dvc repro extract"):
        report(params)
    with pytest.raises(UserError, match="not extracted from"):
        evaluate(LISTED[0], params)
    assert not Path("metrics/evaluate").exists()
    meta = Path("features/pretrained/meta.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"weights": digests.of_files(page.WEIGHTS)}))
    _, checker = report(params)
    assert "412,345" not in " ".join(checker.texts)  # what metrics/pretrain.json says is of yet another training


def test_a_training_with_other_parameters_is_refused(folder, hundred):
    params = finished(folder, hundred, ())
    path = Path("metrics/pretrain.json")
    origin = {"parameters": digests.of_training(params, "simclr", "image", "conv")}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"computed_from": origin}))
    report(params)
    longer = params.pretrain.model_copy(update={"epochs": params.pretrain.epochs + 1})
    with pytest.raises(UserError, match=r"of a training with other parameters than params.yaml; run `dvc repro`"):
        report(params.model_copy(update={"pretrain": longer}))
