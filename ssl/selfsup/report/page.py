"""The report: one self-contained HTML page, from whatever the pipeline has written so far."""

from __future__ import annotations

import csv
import json
import re
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfsup import digests
from selfsup.data.index import load_index
from selfsup.errors import UserError
from selfsup.evaluation import protocols
from selfsup.evaluation.run import Inputs
from selfsup.features.measures import label_free
from selfsup.features.store import MAJORITY, WEIGHTS, FeatureSet
from selfsup.files import replaced
from selfsup.report import charts, pictures, sections
from selfsup.report import map as interactive
from selfsup.report.headline import headline
from selfsup.report.scores import NAMES, Scores, confusions, read_scores, tables
from selfsup.report.template import render

if TYPE_CHECKING:
    from selfsup.data.loader import Split
    from selfsup.params import Params

CLASSES_IN_LEGEND = 40
MAP = "map.html"  # beside the page


def write_report(params: Params, inputs: Inputs, path: Path, views: bytes | None = None) -> None:
    """Render the page of the working folder to `path`, and the interactive map beside it.

    `views` is a PNG of a few images and their views.
    """
    sheet = pictures.data_uri(views) if views else None
    shown = contents(params, inputs)
    map_page = shown.pop("map")
    page = render("page.html", **shown, map_file=MAP if map_page else None, views=sheet)
    for place, text in ((path, page), (path.with_name(MAP), map_page)):
        if text is not None:
            with replaced(place) as new:
                new.write_text(text, encoding="utf-8")


def contents(params: Params, inputs: Inputs) -> dict[str, Any]:
    """Everything that the template shows."""
    from selfsup.data.loader import open_split

    # A few images are looked at: no need to check, or to decode, all of them.
    data = params.data.model_copy(update={"verify": "size", "cache": "none"})
    test, train = (open_split("data/shards", split, data) for split in ("test", "train"))
    sets = inputs.sets
    name = sets[0].title
    names = {one.row: NAMES.get(one.row, one.title) for one in sets}
    names |= {MAJORITY: NAMES[MAJORITY]}
    scores = all_scores(params, inputs)
    run = training_run(params)
    places = interactive.layouts(sets, test, params.seed)
    free = [(one.row, label_free(one.load("test", test.samples), params.seed)) for one in sets if test.samples > 1]
    return {
        "name": name,
        "names": names,
        "colours": charts.COLOURS,
        "data_name": test.data.title,
        "extent": test.data.extent,
        "noun": test.data.noun,
        "classes": train.classes,
        "counts": {"training": train.samples, "test": test.samples},
        "headline": headline(scores, name) or unlabelled_headline(scores, dict(free), names),
        "alarm": run.get("alarm"),
        "run": run,
        "facts": facts(run, test.data.noun),
        "missing": inputs.missing,
        "not_run": [(one.title, one.why_not) for one in scores if one.why_not],
        "notes": [
            *load_index("data/shards").notes,
            *sections.notes(scores),
            *sections.left_out(scores, inputs.missing, names),
        ],
        **judged(scores, names, train.classes, test.data.noun),
        "curves": charts.curves(read_curves(Path("plots/pretrain.csv"))),
        "free": free,
        "maps": maps(places, test, params.seed),
        "map": interactive.page(f"{name} on {test.data.title}", names, sets, test, places, params.seed),
        "map_points": min(test.samples, pictures.POINTS),
        "legend": legend(train.classes),
        **neighbour_sides(sets, test, train, params.seed),
        "params": without_passwords(Path("params.yaml")),
        "commit": commit(),
    }


def all_scores(params: Params, inputs: Inputs) -> list[Scores]:
    """What every protocol that `evaluation` lists found, in that order."""
    known, origin = protocols.blocks(params.evaluation), inputs.computed_from(params)
    listed = [known[name][0] for name in params.evaluation.listed]
    return [read_scores(one, params.method, origin[one.name]) for one in listed]


def judged(scores: Sequence[Scores], names: dict[str, str], classes: Sequence[str], noun: str) -> dict[str, Any]:
    """The template's names that show what protocols found; `noun` is what samples are called."""
    rows, found = tables(scores)
    predicted = sections.with_predictions(scores)
    return {
        "rows": rows,
        "tables": found,
        "groups": sections.groups,
        "balance": sections.balance_note(scores, rows, noun),
        "dots": sections.dots(scores, names),
        "choices": sections.choices(scores),
        "label_curves": sections.label_curves(scores, names),
        "lines": sections.lines(scores, names),
        "protocol_pictures": sections.protocol_pictures(scores),
        "protocol_tables": sections.protocol_tables(scores, names),
        "matrix": sections.confusion_matrix(predicted, classes),
        "confused_by": predicted.title if predicted else "",
        "confusions": confusions(predicted, classes) if predicted else [],
    }


def training_run(params: Params) -> dict[str, Any]:
    """The training's figures from the metrics files; {}: of other weights. Raises `UserError`: of other parameters."""
    run = _json("metrics/pretrain.json")
    if not digests.same_training(params, params.method, run):
        raise UserError("metrics/pretrain.json: of a training with other parameters than params.yaml; run `dvc repro`")
    if WEIGHTS.exists() and run.get("weights") != digests.of_files(WEIGHTS):
        return {}
    return _json("metrics/times/pretrain.json") | run


def unlabelled_headline(
    scores: Sequence[Scores], free: dict[str, dict[str, float]], names: dict[str, str]
) -> list[str]:
    """The headline without labels."""
    why = next((one.why_not for one in scores if one.why_not), "no protocol was run")
    ranks = "; ".join(f"{names[row]} {value['rankme']:.1f} of {value['width']:.0f}" for row, value in free.items())
    return [f"No accuracy to report: {why}.", f"Effective rank of the features: {ranks}."]


def facts(run: dict[str, Any], noun: str) -> list[tuple[str, str]]:
    """The figures of the run from the metrics files, as names and texts for readers; `noun` names samples."""
    kinds: dict[str, tuple[str, Callable[[Any], str]]] = {
        "method": ("method", str),
        "backbone": ("backbone", str),
        "parameters": ("parameters", "{:,}".format),
        "epochs": ("epochs", str),
        "steps": ("steps", "{:,}".format),
        "loss": ("last loss", "{:.4g}".format),
        "seconds": ("time", duration),
        "images_per_second": (f"{noun}/s", "{:,.0f}".format),
        "device": ("device", str),
        "world_size": ("processes", str),
    }
    return [(title, show(run[key])) for key, (title, show) in kinds.items() if run.get(key) is not None]


def maps(places: interactive.Layouts, test: Split, seed: int) -> list[tuple[str, str | None]]:
    """t-SNE of the pretrained features and of raw pixels, as (row, data URI); None where there is nothing to draw."""
    shown = pictures.sample(test.samples, pictures.POINTS, seed)
    return [
        (row, pictures.scatter(own["t-SNE"], test.labels[shown], len(test.classes)) if "t-SNE" in own else None)
        for row, own in places.items()
    ]


def neighbour_sides(sets: Sequence[FeatureSet], test: Split, train: Split, seed: int) -> dict[str, Any]:
    """Nearest training images of a few test images, in pretrained features and in raw pixels."""
    used = [one for one in sets if one.row in ("method", "pixels")]
    spaces = [(one.load("train", train.samples), one.load("test", test.samples)) for one in used]
    found = pictures.neighbours(test, train, spaces, seed) if test.samples and train.samples else []
    return {"neighbours": found, "neighbour_rows": [one.row for one in used]}


def legend(classes: Sequence[str]) -> list[tuple[str, str]]:
    """(class, CSS colour), empty when there are too many to tell apart."""
    if len(classes) > CLASSES_IN_LEGEND:
        return []
    colours = (charts.palette(len(classes)) * 255).round().astype(int)
    return [(name, f"rgb({r},{g},{b})") for name, (r, g, b) in zip(classes, colours.tolist(), strict=True)]


def read_curves(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV of numbers, NaN where a cell is empty; {} without a file."""
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in (rows[0] if rows else {})}


def without_passwords(path: Path) -> str:
    """The file's text, without the password that a URI in it may hold."""
    return re.sub(r"//[^/@\s]+@", "//***@", path.read_text(encoding="utf-8")) if path.exists() else ""


def commit() -> str | None:
    """The commit of the code, marked when tracked files differ from it; None outside git."""
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        # dvc.lock is written by the very run that is reported.
        asked = ["git", "status", "--porcelain", "--untracked-files=no", "--", ".", ":(exclude)dvc.lock"]
        changes = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + (" + uncommitted changes" if changes else "")


def duration(seconds: float) -> str:
    """`3 min 12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def _json(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text(encoding="utf-8")) if Path(path).exists() else {}
