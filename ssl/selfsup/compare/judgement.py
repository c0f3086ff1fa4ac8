"""What is known of a comparison: figures over seeds, which differences can be believed, and the answers in sentences.

`judge` fills these from runs; the page and the tables show them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from selfsup.compare.comparison import Conditions, Run
from selfsup.compare.statistics import Components
from selfsup.evaluation.result import Curve, Unit

HEADLINES = ("linear", "knn")
"""Protocols whose first metric the first answers speak of: of what can be measured on frozen features, linear and kNN
probes on the data themselves predict best how representations do elsewhere (Marks et al. 2024, arXiv:2407.12210)."""

Topic = Literal["conditions", "best", "baselines", "few labels", "cost", "seeds", "decide"]
"""What a sentence is about, in the order in which a reader asks."""


@dataclass(frozen=True)
class Sentence:
    """An answer, in whole sentences for readers."""

    topic: Topic
    text: str


@dataclass(frozen=True)
class Row:
    """A row of every table of a block: a method (or a study's setting), or a baseline."""

    key: str  # unique in the block: the run's row, `random, conv`, `pixels`
    title: str  # for readers: `simclr`, `random weights, conv`, `raw pixels`
    kind: str  # `method`, or the baseline's row of a `Found`: `supervised`, `random`, `pixels`, `majority`
    backbone: str  # "" where the row does not depend on it
    seeds: tuple[int, ...]  # that it has figures of

    @property
    def baseline(self) -> bool:
        return self.kind != "method"


@dataclass(frozen=True)
class Score:
    """A row's figure in a column, in the unit of the metric (shares for percentages and points)."""

    mean: float  # over seeds
    deviation: float | None  # standard deviation over seeds; None with one seed
    values: Mapping[int, float]  # by seed
    letters: str = ""  # rows that share a letter cannot be told apart; empty where nothing was tested
    ranks: tuple[int, int] | None = None  # best and worst rank among methods that the tests leave open; methods only


@dataclass(frozen=True)
class Pair:
    """The difference of two rows, `first` minus `second`, over the seeds that both have."""

    first: str  # keys of rows
    second: str
    mean: float
    low: float  # ends of the 95 % interval of this difference alone; infinite where nothing can be said
    high: float
    p: float  # two-sided, of this difference alone; 1 where nothing can be said
    adjusted: float  # p after Holm's correction over all pairs of the column, never below `p`
    seeds: tuple[int, ...]  # shared
    better: str | None  # key of the row that is better at 5 % after the correction; None: cannot be told apart
    components: Components | None = None  # of the squared standard error; None with one seed


@dataclass(frozen=True)
class Column:
    """One metric of one protocol over the rows of a block."""

    key: str  # `knn.top1`, class-balanced `knn.top1_balanced`
    protocol: str
    metric: str
    group: str  # the protocol's title
    title: str  # the metric's title below it
    unit: Unit
    higher_is_better: bool
    balanced: bool  # classes weigh alike
    headline: bool  # the sentences' first answers speak of it
    curve: Curve | None
    scores: Mapping[str, Score]  # by key of the row
    missing: Mapping[str, str]  # rows without a figure, with the reason
    pairs: Sequence[Pair]  # of all rows that can be paired
    covers: str  # what the intervals cover: a whole sentence, to stand below the table

    def pair(self, first: str, second: str) -> Pair | None:
        """The pair of two rows, whichever is first; None where they have no seed in common."""
        return next((one for one in self.pairs if {one.first, one.second} == {first, second}), None)


@dataclass(frozen=True)
class Block:
    """Runs of equal conditions, judged together."""

    conditions: Conditions  # with the protocols of all its runs
    runs: Sequence[Run]  # one per row of a method and seed
    rows: Sequence[Row]  # methods in the order asked for, then baselines
    columns: Sequence[Column]
    sentences: Sequence[Sentence]


@dataclass(frozen=True)
class Judgement:
    """All that is known of a comparison; the page and the tables show it."""

    blocks: Sequence[Block]  # the one with most runs first
    sentences: Sequence[Sentence] = ()  # on the comparison as a whole, above the blocks'
