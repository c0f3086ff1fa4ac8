"""A comparison for readers: one self-contained HTML page, its table as Markdown, and its figures as CSV.

Equal comparisons give equal bytes. `index.md` and `index.csv` hold no measured times: runs with the same weights give
the same files. Times are on the page and in `times.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from selfsup.compare import differences, parts
from selfsup.compare.answers import LEADS
from selfsup.compare.cells import markdown, measured, plain, unit_words
from selfsup.compare.comparison import Comparison, Run
from selfsup.compare.judgement import Judgement, Sentence
from selfsup.evaluation.result import Metric
from selfsup.files import replaced
from selfsup.report.scores import UNITS
from selfsup.report.template import render

QUESTIONS = {
    "best": "Which is best?",
    "baselines": "Does anything beat the baselines?",
    "few labels": "Where do few labels pay?",
    "cost": "What did it cost?",
    "seeds": "What can the seeds tell?",
    "decide": "What would decide it?",
    "conditions": "Were the conditions equal?",
}

LONG = 6  # sentences of an answer
SEEN = (
    " Each seed draws its own test images, so tuning with one seed may have read test images of another: figures of "
    "tuned recipes may be too high."
)


def write(comparison: Comparison, judgement: Judgement, folder: Path, root: Path = Path()) -> Path:
    """Write index.html, index.md, index.csv and times.csv to `folder`, and return the page's path.

    Thumbnails come from DVC's cache of the project in `root`, where it has the images that were judged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "index.html"
    with replaced(page) as new:
        new.write_text(html(comparison, judgement, differences.shown_from(root)), encoding="utf-8")
    with replaced(folder / "index.md") as new:
        new.write_text(as_markdown(comparison, judgement), encoding="utf-8")
    for name, timed in (("index.csv", False), ("times.csv", True)):
        with replaced(folder / name) as new, new.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, lineterminator="\n").writerows(figures(comparison.runs, timed))
    return page


@dataclass(frozen=True)
class Answer:
    """A reader's question, and sentences."""

    question: str
    sentences: Sequence[str]

    @property
    def first(self) -> Sequence[str]:
        """The sentences that are in sight: all but those that would make a list too long to read."""
        return self.sentences if len(self.sentences) <= LONG else self.sentences[: LONG - 1]

    @property
    def rest(self) -> Sequence[str]:
        return self.sentences[len(self.first) :]


def answers(sentences: Sequence[Sentence]) -> list[Answer]:
    """Sentences by their question, in the order of `QUESTIONS`; which protocols speak for all comes last."""
    found = []
    for topic, question in QUESTIONS.items():
        texts = [one.text for one in sentences if one.topic == topic and one.text != LEADS]
        if texts:
            found.append(Answer(question, texts))
    if any(one.text == LEADS for one in sentences):
        found.append(Answer("Which columns count most?", [LEADS]))
    return found


def tuning(comparison: Comparison) -> str:
    """Whether the recipes were tuned, and equally."""
    rows = list(dict.fromkeys(run.row for run in comparison.runs))
    trials = {row: comparison.tuned.get(row, 0) for row in rows}
    counts = set(trials.values())
    if counts <= {0}:
        return "No recipe was tuned on this data."
    seen = SEEN if _drawn(comparison.runs) else ""
    if len(counts) == 1:
        return f"Every recipe was tuned with {counts.pop()} trials.{seen}"
    words = ", ".join(f"{row} with {count}" if count else f"{row} not" for row, count in trials.items())
    return f"The recipes were not tuned equally: {words} trials. A lead may be due to the tuning.{seen}"


def _drawn(runs: Sequence[Run]) -> bool:
    """Whether the seeds of a row have different test images."""
    images: dict[tuple[str, str], set[bytes]] = {}
    for run in runs:
        for protocol, found in run.found.items():
            if found.image is not None:
                images.setdefault((run.row, protocol), set()).add(np.sort(found.image).tobytes())
    return any(len(own) > 1 for own in images.values())


def html(comparison: Comparison, judgement: Judgement, show: differences.Show) -> str:
    """The page."""
    look = parts.styles_of(comparison, judgement)
    blocks = [parts.of_block(block, look, show) for block in judgement.blocks]
    main = judgement.blocks[0].sentences if len(judgement.blocks) == 1 else []
    tuned = [Answer("Were the recipes tuned alike?", [tuning(comparison)])] if comparison.runs else []
    return render(
        "comparison.html",
        comparison=comparison,
        facts=parts.facts(comparison),
        answers=[*answers([*judgement.sentences, *main]), *tuned],
        block_answers=[answers(block.sentences) for block in judgement.blocks],
        differs=parts.differing(judgement.blocks),
        study=parts.study(comparison),
        alarms=parts.alarms(comparison),
        left_out=parts.left_out(comparison),
        blocks=blocks,
        look=look,
        legend=parts.LEGEND.replace("**", ""),
        named=differences.NAMED,
        shade=parts.shade,
        unit_words=unit_words,
        alarmed={run.row for run in comparison.runs if run.pretrain.get("alarm")},
        several_backbones=len({run.backbone for run in comparison.runs}) > 1,
        runs=parts.runs_by_row(comparison),
    )


def as_markdown(comparison: Comparison, judgement: Judgement) -> str:
    """The table of each block with what is needed to read it."""
    lines = [f"# {plain(comparison.title)}"]
    if not comparison.runs:
        lines.append(f"Nothing to show yet: run `{comparison.command or 'make compare'}` first.")
    for i, block in enumerate(judgement.blocks, start=1):
        lines += [f"## Block {i}"] if len(judgement.blocks) > 1 else []
        lines += [plain(f"{block.conditions.data}. {block.conditions.budget}."), markdown(block)]
    lines += [parts.LEGEND, tuning(comparison)] if comparison.runs else []
    lines += map(plain, comparison.notes)
    lines += ["\n".join(f"- {plain(line)}" for line in parts.left_out(comparison))]
    return "\n\n".join(line for line in lines if line) + "\n"


def figures(runs: Sequence[Run], timed: bool) -> Iterator[list[object]]:
    """A header and a line per figure: those of the protocols, or if `timed` those that differ between equal runs."""
    yield ["row", "representation", "seed", "protocol", "metric", "value", "unit", "experiment"]
    for run in runs:
        if timed:
            for name, value in run.times.items():
                yield [run.row, "method", run.seed, "pretrain", name, value, "", run.experiment]
        for protocol, found in run.found.items():
            for row, result in found.results.items():
                head = [run.row, row, run.seed, protocol]
                for key, metric in result.metrics.items():
                    if measured(protocol, metric.unit) == timed:
                        yield [*head, key, *_scaled(metric.value, metric), run.experiment]
                        if metric.balanced:
                            yield [*head, f"{key}_balanced", *_scaled(metric.balanced.value, metric), run.experiment]


def _scaled(value: float, metric: Metric) -> tuple[float, str]:
    unit = "" if metric.unit == "none" else UNITS[metric.unit]
    return (100 * value if metric.unit in ("percent", "points") else value), unit
