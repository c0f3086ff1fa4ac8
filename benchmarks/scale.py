"""Time and memory of the protocols on a million features against scikit-learn and faiss.

    python benchmarks/scale.py                       # writes benchmarks/results/scale.md; tens of minutes

Features are noise around class centres after a ReLU, made by a seeded generator and written as extraction writes them;
every arm reads the same file in a fresh process with one thread. Time is CPU time, so that other work on the machine
counts little, and covers what each arm does to the features first (normalising, standardising, copying). Memory is the
peak of anonymous memory beyond that of the imports: pages of mapped files, which the system drops where memory is
short, do not count. scikit-learn and faiss get all features in memory, as they ask for.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import resource
import statistics
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import numpy as np

from selfsup.evaluation import logistic, neighbours
from selfsup.evaluation.protocols import clustering, retrieval
from selfsup.features.store import Splits

TASKS = ["kNN", "retrieval", "k-means", "linear"]
K, STARTS, ITERATIONS, C = 200, 5, 10, 0.01


def make(folder: Path, images: int, width: int, classes: int, queries: int) -> None:
    """`bank.npy`, `labels.npy`, `queries.npy` and `query_labels.npy`."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(classes, width)).astype(np.float32)
    for name, prefix, count in (("bank", "", images), ("queries", "query_", queries)):
        labels = rng.integers(0, classes, count)
        array = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, width))
        for first in range(0, count, 50_000):
            own = labels[first : first + 50_000]
            noise = 3 * rng.standard_normal((len(own), width), dtype=np.float32)
            array[first : first + len(own)] = np.maximum(centres[own] + noise, 0)
        array.flush()
        np.save(folder / f"{prefix}labels.npy", labels)


def load(folder: Path, name: str) -> np.ndarray:
    return np.load(folder / f"{name}.npy", mmap_mode="r" if name in ("bank", "queries") else None)


def knn_ours(folder: Path, queries: int) -> Any:
    return neighbours.search([load(folder, "bank")], load(folder, "queries")[:queries], K)[1]


def knn_faiss(folder: Path, queries: int) -> Any:
    import faiss

    bank, rows = (np.array(load(folder, name)) for name in ("bank", "queries"))
    faiss.normalize_L2(bank)
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    del bank
    rows = np.ascontiguousarray(rows[:queries])
    faiss.normalize_L2(rows)
    return index.search(rows, K)[1]


def knn_sklearn(folder: Path, queries: int) -> Any:
    """By Euclidean distances of rows of length 1: the same order, and much faster there than `metric="cosine"`."""
    from sklearn.neighbors import NearestNeighbors
    from sklearn.preprocessing import normalize

    bank = normalize(np.array(load(folder, "bank")), copy=False)
    found = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="euclidean").fit(bank)
    return found.kneighbors(normalize(load(folder, "queries")[:queries]), return_distance=False)


def retrieval_ours(folder: Path, queries: int) -> Any:
    bank, rows, labels = load(folder, "bank"), load(folder, "queries")[:queries], load(folder, "labels")
    few = len(bank) // 10  # so much is validation
    features = Splits(bank[few:], bank[:few], rows)
    known = Splits(labels[few:], labels[:few], load(folder, "query_labels")[:queries])
    return retrieval.run(features, known, retrieval.Params(k=[1, 5, 10]), 0).metrics["map"].outcomes


def retrieval_sklearn(folder: Path, queries: int) -> Any:
    from sklearn.metrics import average_precision_score
    from sklearn.preprocessing import normalize

    bank, labels = normalize(np.array(load(folder, "bank")), copy=False), load(folder, "labels")
    similarity = normalize(load(folder, "queries")[:queries]) @ bank.T
    pairs = zip(load(folder, "query_labels"), similarity, strict=False)
    return np.array([average_precision_score(labels == label, row) for label, row in pairs])


def retrieval_faiss(folder: Path, queries: int) -> Any:
    """The whole ranking by faiss, and average precision along it."""
    import faiss

    bank, rows = np.array(load(folder, "bank")), np.array(load(folder, "queries")[:queries])
    faiss.normalize_L2(bank)
    faiss.normalize_L2(rows)
    _, order = faiss.knn(rows, bank, len(bank), metric=faiss.METRIC_INNER_PRODUCT)
    hits = load(folder, "labels")[order] == load(folder, "query_labels")[:queries, None]
    precision = hits.cumsum(axis=1) / np.arange(1, len(bank) + 1)
    return (precision * hits).sum(axis=1) / hits.sum(axis=1)


def first_centres(folder: Path, classes: int) -> np.ndarray:
    return neighbours.unit_rows(load(folder, "bank")[: STARTS * classes]).reshape(STARTS, classes, -1)


def k_means_ours(folder: Path, classes: int) -> Any:
    bank, centres = load(folder, "bank"), first_centres(folder, classes)
    norm = neighbours.lengths(bank)
    for _ in range(ITERATIONS):
        centres, _ = clustering.lloyd_step(bank, norm, centres)
    return centres


def k_means_sklearn(folder: Path, classes: int) -> Any:
    from sklearn.cluster import KMeans
    from sklearn.preprocessing import normalize

    bank = normalize(np.array(load(folder, "bank")), copy=False)
    starts = first_centres(folder, classes)
    fits = (KMeans(classes, init=one, n_init=1, max_iter=ITERATIONS, tol=0, copy_x=False) for one in starts)
    return np.stack([fit.fit(bank).cluster_centers_ for fit in fits])


def k_means_faiss(folder: Path, classes: int) -> Any:
    import faiss

    bank = np.array(load(folder, "bank"))
    faiss.normalize_L2(bank)
    found = []
    for start in first_centres(folder, classes):
        fit = faiss.Kmeans(bank.shape[1], classes, niter=ITERATIONS, max_points_per_centroid=len(bank))
        fit.train(bank, init_centroids=start)
        found.append(fit.centroids)
    return np.stack(found)


def linear_ours(folder: Path, _: int) -> Any:
    bank, labels = load(folder, "bank"), load(folder, "labels")
    (fitted,) = logistic.fits(logistic.Standardise(bank)(bank), labels, [C])
    return fitted.weight


def linear_sklearn(folder: Path, _: int) -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    bank = StandardScaler().fit_transform(np.array(load(folder, "bank")))
    return LogisticRegression(C=C, max_iter=logistic.ITERATIONS).fit(bank, load(folder, "labels")).coef_


def anonymous() -> float:
    """Anonymous memory of this process, MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1e3 for line in lines if line.startswith("RssAnon"))


def measured(arm: Callable[[Path, int], Any], folder: Path, size: int) -> tuple[float, float, Any]:
    """CPU seconds, MB beyond what was held before, and the answer."""
    import faiss  # imports are not measured
    import sklearn.cluster
    import sklearn.linear_model
    import sklearn.metrics
    import sklearn.neighbors  # noqa: F401

    faiss.omp_set_num_threads(1)
    before, most, ended = anonymous(), [0.0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            most[0] = max(most[0], anonymous())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = _cpu()
    answer = arm(folder, size)
    seconds = _cpu() - start
    ended.set()
    watcher.join()
    return seconds, max(0.0, most[0] - before), answer


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def agreement(task: str, own: np.ndarray, other: np.ndarray) -> str:
    """How far two answers are apart."""
    if task.startswith("kNN"):
        return f"{(own == other).mean():.2%} of places equal"
    count = min(len(own), len(other))
    return f"largest difference {np.abs(own[:count] - other[:count]).max():.1g}"


def main() -> None:
    parser = common.arguments(__doc__, "scale.md")
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--queries", type=int, default=1024, help="for kNN; retrieval takes one of 16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument(
        "--folder", type=Path, help="for the features, deleted afterwards; default: the temporary folder"
    )
    args = parser.parse_args()
    few = max(1, args.queries // 16)
    tasks: dict[str, tuple[int, dict[str, Callable[[Path, int], Any]]]] = {
        f"kNN, k = {K}, {args.queries:,} queries": (
            args.queries,
            {"ours": knn_ours, "scikit-learn": knn_sklearn, "faiss": knn_faiss},
        ),
        f"retrieval, {few} queries": (
            few,
            {"ours": retrieval_ours, "scikit-learn": retrieval_sklearn, "faiss": retrieval_faiss},
        ),
        f"k-means, {args.classes} clusters, {STARTS} starts of {ITERATIONS} iterations": (
            args.classes,
            {"ours": k_means_ours, "scikit-learn": k_means_sklearn, "faiss": k_means_faiss},
        ),
        f"linear probe, {args.classes} classes, C = {C:g}": (0, {"ours": linear_ours, "scikit-learn": linear_sklearn}),
    }
    rows = []
    with tempfile.TemporaryDirectory(dir=args.folder) as scratch:
        folder = Path(scratch)
        make(folder, args.images, args.width, args.classes, args.queries)
        os.chdir(folder)  # where the linear probe puts its temporary file
        for task, (size, arms) in tasks.items():
            if task.replace(",", "").split()[0] not in args.tasks:
                continue
            rows += compare(task, size, arms, folder, args.rounds)
    text = (
        f"{args.images:,} x {args.width} float32 features ({4 * args.images * args.width / 1e6:,.0f} MB), one thread, "
        f"median (minimum to maximum) of {args.rounds} rounds. The ratio is the CPU time of ours over that of the "
        "faster other arm, round by round."
    )
    head = ["task", "arm", "CPU seconds", "memory beyond imports, MB", "ours against the best other", "against ours"]
    table = common.table(head, rows)
    common.write(
        args.out,
        "Protocols on many features",
        text,
        common.conditions("numpy", "scipy", "scikit-learn", "faiss-cpu"),
        table,
    )


def compare(
    task: str, size: int, arms: dict[str, Callable[[Path, int], Any]], folder: Path, rounds: int
) -> list[list[str]]:
    """The lines of the table for one task; the arms take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    memory: dict[str, list[float]] = {name: [] for name in arms}
    answers = {}
    for _ in range(rounds):
        for name, arm in arms.items():
            took, held, answers[name] = common.in_child(measured, arm, folder, size)
            seconds[name].append(took)
            memory[name].append(held)
            print(f"{task}: {name}: {took:.1f} s, {held:.0f} MB", flush=True)
    best = [min(pair) for pair in zip(*(seconds[name] for name in arms if name != "ours"), strict=True)]
    ratio = common.spread(common.ratios(seconds["ours"], best), 2)
    return [
        [
            task if name == "ours" else "",
            name,
            common.spread(seconds[name], 1),
            f"{statistics.median(memory[name]):,.0f}",
            ratio if name == "ours" else "",
            "" if name == "ours" else agreement(task, answers["ours"], answers[name]),
        ]
        for name in arms
    ]


if __name__ == "__main__":
    main()
