"""A comparison made up from numbers: correlated outcomes of methods, baselines and seeds, and things that are missing.

Each test image has a difficulty and each network a skill. Seeds and draws of labels add noise to the skill, so outcomes
of two networks on one image are correlated as real ones are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from selfsup.compare.answers import LEADS
from selfsup.compare.comparison import Absent, Comparison, Conditions, Run
from selfsup.compare.judgement import Block, Column, Judgement, Pair, Row, Score, Sentence
from selfsup.evaluation.folder import Found
from selfsup.evaluation.result import Curve, Metric, Result, right

SKILL = {"byol": 1.75, "simclr": 1.7, "vicreg": 1.45, "mae": 0.75, "simsiam": -0.6}
BASELINES = {"supervised": 2.1, "random": 0.9, "pixels": 1.3}
SECONDS = {"byol": 200.0, "simclr": 150.0, "vicreg": 145.0, "mae": 90.0, "simsiam": 160.0}
BACKBONE = {"mae": "vit"}
ALARM = "the embeddings collapsed: their spread is 0.01 (1: isotropic); the predictor may be missing"
SHARDS = "c4d43914f34cbbe9"
CONDITIONS = Conditions(
    "digits, 1,293 training and 359 test images, 16 px",
    "50 epochs, batches of 64 images, fp32",
    "7a1b2c3d",
    {"knn": "k1", "linear": "l1", "few_label": "f1"},
)
FEW = {
    "per_class_1": ("1 per class", 10, -1.4),
    "per_class_5": ("5 per class", 50, -0.5),
    "percent_10": ("10 %", 144, -0.2),
}
LABELS = 1438


def _rng(*words: object) -> np.random.Generator:
    digest = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def labels(images: int, classes: int) -> np.ndarray:
    """Even classes, int64 [images]."""
    return np.arange(images) % classes


def outcomes(name: str, skill: float, label: np.ndarray, noise: object, draws: int = 0) -> np.ndarray:
    """Right answers, bool [images] or with draws [draws, images]."""
    images, classes = len(label), int(label.max()) + 1
    difficulty = _rng("images").normal(size=images)
    easy = 0.4 * _rng("classes", name).normal(size=classes)[label]
    shape = (draws, images) if draws else (images,)
    own = _rng("run", name, noise)
    answer = skill + easy + 0.12 * own.normal() + 0.7 * own.normal(size=shape)
    return answer > 1.1 * difficulty


def predictions(hits: np.ndarray, label: np.ndarray, name: object) -> np.ndarray:
    """Predicted classes, int64 [images], that are right where `hits` says so."""
    classes = int(label.max()) + 1
    other = (label + _rng("wrong", name).integers(1, max(2, classes), size=len(label))) % classes
    return np.where(hits, label, other)


def result(protocol: str, name: str, skill: float, seed: int, label: np.ndarray) -> Result:
    """What a protocol found of a network."""
    if protocol == "few_label":
        metrics = {
            key: right(
                outcomes(name, skill + less, label, (seed, key), draws=3),
                label,
                title,
                curve=Curve("linear probe", n, LABELS),
            )
            for key, (title, n, less) in FEW.items()
        }
        return Result(metrics)
    hits = outcomes(name, skill + (0.1 if protocol == "linear" else 0.0), label, (seed, protocol))
    curve = Curve("linear probe", LABELS, LABELS) if protocol == "linear" else None
    metrics = {"top1": right(hits, label, "top-1", curve=curve)}
    if protocol == "linear":
        near = hits | outcomes(name, skill + 1.5, label, (seed, "top5"))
        metrics["top5"] = right(near, label, "top-5", answers=5)
    return Result(metrics, predicted=predictions(hits, label, (name, seed, protocol)))


def found(protocol: str, method: str, seed: int, skill: float, label: np.ndarray, uneven: bool = False) -> Found:
    """What a protocol found of a method and of the baselines, which are the same beside every method of a backbone."""
    backbone = BACKBONE.get(method, "conv")
    results = {"method": result(protocol, method, skill, seed, label)}
    for row, strength in BASELINES.items():
        own = row if row == "pixels" else f"{row} {backbone}"
        less = 0.8 if row == "random" and backbone == "vit" else 0.0
        results[row] = result(protocol, own, strength - less, 0 if row == "pixels" else seed, label)
    counts = np.bincount(label)
    common = label == counts.argmax()
    first = {key: metric for key, metric in results["method"].metrics.items() if metric.answers == 1}
    hits = {key: np.broadcast_to(common, np.shape(metric.outcomes)) for key, metric in first.items()}
    results["majority"] = Result(
        {key: right(hits[key], label, metric.title, curve=metric.curve) for key, metric in first.items()}
    )
    titles = {"method": method, **{row: row for row in BASELINES}}
    facts = {"largest": int(counts.max()), "smallest": int(counts.min()), "classes": len(counts)}
    return Found(
        title={"knn": "kNN", "linear": "linear probe", "few_label": "few labels"}.get(protocol, protocol),
        titles=titles,
        missing={},
        images={"train": 1293, "validation": 145, "test": len(label)},
        balance={"uneven": uneven, "commonest": str(counts.argmax()), "train": facts, "test": facts},
        notes=[],
        own_tables=[],
        results=results,
        label=label,
    )


def curve(method: str, seed: int, skill: float, epochs: int) -> list[dict[str, float]]:
    """Rows of plots/pretrain.csv: kNN is read in every fifth epoch, NaN elsewhere."""
    noise = _rng("curve", method, seed)
    rows = []
    for epoch in range(1, epochs + 1):
        done = epoch / epochs
        row = {"step": 20.0 * epoch, "epoch": float(epoch)}
        row["loss"] = 1.2 + 3.4 * float(np.exp(-4 * done)) + 0.03 * float(noise.normal())
        read = 0.5 + 0.2 * skill * (1 - float(np.exp(-3 * done))) + 0.004 * float(noise.normal())
        row["knn_validation"] = read if epoch % 5 == 0 else float("nan")
        row["spread"] = 0.9 if skill > 0 else 0.9 * (1 - done) + 0.01
        rows.append(row)
    return rows


def run(method: str, seed: int, label: np.ndarray, skill: float, **changes: object) -> Run:
    """A finished run of one method."""
    name = f"compare-{method}-{seed}"
    own = Run(
        row=method,
        seed=seed,
        method=method,
        backbone=BACKBONE.get(method, "conv"),
        experiment=name,
        revision=hashlib.sha1(name.encode()).hexdigest(),
        command=f"dvc exp run -S method={method} -S seed={seed}",
        tracked=hashlib.md5(name.encode()).hexdigest(),
        conditions=CONDITIONS,
        images=SHARDS,
        found={protocol: found(protocol, method, seed, skill, label) for protocol in ("knn", "linear", "few_label")},
        skipped={},
        pretrain={
            "method": method,
            "seed": seed,
            "backbone": BACKBONE.get(method, "conv"),
            "epochs": 50,
            "steps": 1000,
            "parameters": 411_664 if method not in BACKBONE else 1_210_240,
            "alarm": ALARM if skill < 0 else None,
            "loss": 1.2,
            "last": {"spread": 0.9 if skill > 0 else 0.01, "knn_validation": 0.8},
        },
        times={
            "seconds": SECONDS.get(method, 120.0) + 3.0 * seed,
            "images_per_second": 64_650 / (SECONDS.get(method, 120.0) + 3.0 * seed),
            "world_size": 1,
            "device": "cpu",
        },
        curve=curve(method, seed, skill, 50),
        classes=[str(c) for c in range(int(label.max()) + 1)],
    )
    return replace(own, **changes)


def comparison(
    skills: Mapping[str, float] = SKILL,
    seeds: Sequence[int] = (0, 1, 2),
    *,
    images: int = 359,
    classes: int = 10,
    whole: bool = False,
) -> Comparison:
    """A comparison. Unless `whole`, one run of the fourth method is absent and one of the third lacks a protocol."""
    label = labels(images, classes)
    runs = [run(method, seed, label, skill) for method, skill in skills.items() for seed in seeds]
    absent: list[Absent] = []
    if not whole:
        names = list(skills)
        gone, short = names[3], names[2]
        reason = "the run failed: no space left on the device; free some disk space and run the same command again"
        absent = [Absent(gone, seeds[-1], reason)]
        runs = [one for one in runs if (one.row, one.seed) != (gone, seeds[-1])]
        why = "the smallest class has too few images"
        runs = [
            replace(one, found={k: v for k, v in one.found.items() if k != "few_label"}, skipped={"few_label": why})
            if (one.row, one.seed) == (short, seeds[0])
            else one
            for one in runs
        ]
    return Comparison(
        name="digits",
        title="Five methods on digits",
        rows=list(skills),
        seeds=list(seeds),
        runs=runs,
        absent=absent,
        command="make compare METHODS=... SEEDS=...",
    )


CLOSE = 0.03
"""Rows whose means differ by less cannot be told apart in `judged`."""
SENTENCES = [
    Sentence("best", LEADS),
    Sentence("best", "By kNN and by the linear probe, byol and simclr cannot be told apart."),
    Sentence("baselines", "byol and simclr beat raw pixels and random weights; nothing beats the supervised network."),
    Sentence("few labels", "With 1 label per class byol is 25 points ahead of raw pixels."),
    Sentence("cost", "One run of byol took 203 s."),
    Sentence("seeds", "Three seeds per method."),
    Sentence("decide", "About 9 seeds per method would tell byol and simclr apart."),
]


def judged(comparison: Comparison) -> Judgement:
    """A judgement whose means are right and whose tests are made up, so that the page alone is tested."""
    blocks: list[list[Run]] = []
    for one in comparison.runs:
        same = next((own for own in blocks if own[0].conditions == one.conditions), None)
        if same is None:
            blocks.append([one])
        else:
            same.append(one)
    alike = "All runs have the same data, budget, code and protocols."
    sentences = [Sentence("conditions", alike if len(blocks) < 2 else "The runs differ in their conditions.")]
    return Judgement([_block(comparison, own) for own in blocks], sentences)


def _block(comparison: Comparison, runs: Sequence[Run]) -> Block:
    rows = {}
    for name in comparison.rows:
        own = [one for one in runs if one.row == name]
        if own:
            rows[name] = Row(name, name, "method", own[0].backbone, tuple(one.seed for one in own))
    metrics: dict[tuple[str, str, bool], dict[str, dict[int, Metric]]] = {}
    for one in runs:
        for protocol, every in one.found.items():
            for kind, of_row in every.results.items():
                key, row = _row(one, kind)
                rows.setdefault(key, row)
                for name, metric in of_row.metrics.items():
                    for balanced in (False, True) if every.balance["uneven"] and metric.balanced else (False,):
                        metrics.setdefault((protocol, name, balanced), {}).setdefault(key, {})[one.seed] = metric
    titles = {protocol: every.title for one in runs for protocol, every in one.found.items()}
    columns = [_column(*key, titles[key[0]], rows, figures) for key, figures in metrics.items()]
    return Block(runs[0].conditions, runs, list(rows.values()), columns, SENTENCES)


def _row(one: Run, kind: str) -> tuple[str, Row]:
    if kind == "method":
        return one.row, Row(one.row, one.row, kind, one.backbone, ())
    names = {"random": "random weights", "pixels": "raw pixels", "majority": "majority class"}
    alone = kind in ("pixels", "majority")
    key = kind if alone else f"{kind}, {one.backbone}"
    title = names.get(kind, kind) + ("" if alone else f", {one.backbone}")
    return key, Row(key, title, kind, "" if alone else one.backbone, ())


def _column(
    protocol: str,
    name: str,
    balanced: bool,
    group: str,
    rows: Mapping[str, Row],
    figures: Mapping[str, Mapping[int, Metric]],
) -> Column:
    first = next(iter(next(iter(figures.values())).values()))
    values = {
        row: {seed: one.balanced.value if balanced and one.balanced else one.value for seed, one in own.items()}
        for row, own in figures.items()
    }
    means = {row: float(np.mean(list(own.values()))) for row, own in values.items()}
    sign = 1 if first.higher_is_better else -1
    order = sorted((row for row in means if not rows[row].baseline), key=lambda row: -sign * means[row])
    scores, pairs = {}, []
    for row, own in values.items():
        near = [i for i, other in enumerate(order) if abs(means[other] - means[row]) < CLOSE]
        score = Score(means[row], float(np.std(list(own.values()), ddof=1)) if len(own) > 1 else None, own)
        if row in order:
            score = replace(
                score,
                letters="".join("abcdefghijklmnopqrstuvwxyz"[i % 26] for i in near),
                ranks=(near[0] + 1, near[-1] + 1),
            )
        scores[row] = score
    for i, a in enumerate(means):
        for b in list(means)[i + 1 :]:
            seeds = tuple(seed for seed in values[a] if seed in values[b])
            if seeds:
                mean = float(np.mean([values[a][seed] - values[b][seed] for seed in seeds]))
                better = None if abs(mean) < CLOSE else (a if sign * mean > 0 else b)
                pairs.append(Pair(a, b, mean, mean - CLOSE, mean + CLOSE, 0.01, 0.02, seeds, better))
    return Column(
        key=f"{protocol}.{name}" + "_balanced" * balanced,
        protocol=protocol,
        metric=name,
        group=group,
        title=first.title,
        unit=first.unit,
        higher_is_better=first.higher_is_better,
        balanced=balanced,
        headline=protocol in ("knn", "linear") and name == "top1" and not balanced,
        curve=first.curve,
        scores=scores,
        missing={row: f"{group} was not run for {row}" for row in rows if row not in means},
        pairs=pairs,
        covers="Intervals cover seeds and test images.",
    )
