"""Results that are computed once: a row's `Result` is kept in .cache/evaluations and reused while nothing changes.

The baselines are the same for every method, so `dvc exp run -S method=byol` finds their figures here. A file's name is
a digest of everything that the result is a function of: the protocol's name, parameters and code, the seed, the labels,
the features and, for protocols that look inside the network, its weights, its code and the images. The file begins with
a digest of its name and content: a damaged or renamed file is ignored, and its result is computed again. Results of
protocols that measure (their `REPEATABLE` is false) are never kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from selfsup import digests
from selfsup.config import Strict
from selfsup.evaluation import protocols
from selfsup.evaluation.protocols import Protocol
from selfsup.evaluation.result import Choice, Curve, Estimate, Metric, Picture, Plot, Result, Table, Uncertainty, Unfit
from selfsup.features.store import FeatureSet, Splits
from selfsup.imports import closure

if TYPE_CHECKING:
    from selfsup.evaluation.networks import Networks  # which imports torch

LIMIT = 500_000_000  # bytes of all files; the least recently used are deleted first
LIBRARIES = ("numpy", "pillow", "scikit-learn", "scipy", "timm", "torch")  # that decode images or compute figures
_HEAD = 64  # characters of SHA-256 in hexadecimal
_log = logging.getLogger(__name__)


def place() -> Path:
    """The folder of kept results, shared by all experiments of the project."""
    return Path(os.environ.get("DVC_ROOT") or ".", ".cache", "evaluations")


@dataclass(frozen=True)
class Kept:
    """A protocol with its parameters, whose results are kept."""

    protocol: Protocol
    block: Strict
    seed: int
    networks: Networks | None

    def result(self, one: FeatureSet, features: str, labels: Splits) -> tuple[Result, bool]:
        """The result of a feature set with the digest `features`, and whether it was kept from an earlier run.

        Raises `Unfit` where the protocol cannot judge the row.
        """
        given: dict[str, Any] = {}
        encoder = None
        if self.protocol.inside and self.networks is not None:
            encoder = self.networks.encoder(one.row)
            if encoder is None:
                raise Unfit("has no network")
            given |= {"encoder": encoder, "images": self.networks.images}
        path = place() / f"{digests.of_values(self._identity(one.row, features, labels, encoder))}.npz"
        if self.protocol.repeatable and (found := read(path)) is not None:
            return found, True
        given |= {"features": one.splits(labels), "labels": labels}
        needs = {need: given[need] for need in self.protocol.needs}
        made = self.protocol.run(**needs, params=self.block, seed=self.seed)
        if self.protocol.repeatable:
            keep(path, made)
        return made, False

    def _identity(self, row: str, features: str, labels: Splits, encoder: Any) -> dict[str, Any]:
        """All that the result is a function of."""
        identity = self._of_all_rows | {"features": features, "labels": digests.of_arrays(*labels)}
        if encoder is None or self.networks is None:
            return identity
        state = encoder.state_dict()
        weights = digests.of_arrays(*(x.detach().cpu().numpy() for x in state.values()))
        images = self.networks.images
        seen = [images.train.split.checksum, str(images.train.device)]
        return identity | {"names": [*state], "weights": weights, "images": seen, "network": self.networks.code(row)}

    @cached_property
    def _of_all_rows(self) -> dict[str, Any]:
        name = self.protocol.name
        return {
            "protocol": name,
            "parameters": self.block.model_dump(),
            "seed": self.seed,
            "code": code_digest(protocols.file_of(name), protocols=[name]),
            "format": digests.of_files(Path(__file__)),
            "libraries": [_version(library) for library in LIBRARIES],
        }


def code_digest(*starts: Path, **choices: list[str]) -> str:
    """Digest of files and of all that they import of the project; `choices` as in `imports.files_of`."""
    return digests.of_files(*sorted(closure(starts, choices)))


def read(path: Path) -> Result | None:
    """The result that `keep` wrote; None where there is none, or where the file is damaged."""
    try:
        content = path.read_bytes()
        os.utime(path)  # unlike touch, it makes no empty file where another process has just deleted this one
    except OSError:
        return None
    head, body = content[:_HEAD], content[_HEAD:]
    if head != _head(path, body):
        _log.warning("%s: damaged; its figures are computed again", path)
        return None
    with np.load(io.BytesIO(body), allow_pickle=False) as arrays:
        facts = json.loads(bytes(arrays["facts"]))
        return _result(facts, {name: arrays[name] for name in arrays if name != "facts"})


def keep(path: Path, result: Result) -> None:
    """Write a result so that a reader, or a second process that writes the same, finds all of it or nothing.

    A folder that cannot be written to, or a full disk, is no error: the figures are in the evaluation's own outputs.
    """
    facts, arrays = _facts(result)
    body = io.BytesIO()
    arrays["facts"] = np.frombuffer(json.dumps(facts, default=_plain).encode(), np.uint8)
    np.savez_compressed(body, **arrays)  # type: ignore[arg-type]  # no array is named allow_pickle
    content = body.getvalue()
    unfinished = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
            unfinished = Path(file.name)
            file.write(_head(path, content) + content)
        unfinished.replace(path)
        _shrink(path.parent.iterdir())  # what killed processes left unfinished, too
    except OSError as error:
        _log.info("note: %s: %s; its figures are computed at each use", path.parent, error.strerror)
        if unfinished is not None:
            unfinished.unlink(missing_ok=True)


def _head(path: Path, body: bytes) -> bytes:
    """Digest of a file's name and of what follows the digest: under another name it would be another row's result."""
    return hashlib.sha256(path.name.encode() + body).hexdigest().encode()


def _shrink(files: Iterable[Path]) -> None:
    """Delete the least recently used files until all take at most LIMIT bytes."""
    found = []
    for path in files:
        try:
            found.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        except FileNotFoundError:  # another process deleted it
            continue
    total = sum(size for _, size, _ in found)
    for _, size, path in sorted(found):
        if total <= LIMIT:
            return
        path.unlink(missing_ok=True)
        total -= size


def _facts(result: Result) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """A result as plain data and arrays. Readings are pairs: keys of JSON are texts, and 1 is not 1.0."""
    arrays: dict[str, np.ndarray] = {}
    for key, metric in result.metrics.items():
        if metric.outcomes is not None:
            arrays[f"outcomes/{key}"] = metric.outcomes
    for key, picture in result.pictures.items():
        arrays[f"pictures/{key}"] = np.asarray(picture.pixels)
    if result.predicted is not None:
        arrays["predicted"] = result.predicted
    metrics = {key: replace(one, outcomes=None) for key, one in result.metrics.items()}
    pictures = {key: replace(one, pixels=None) for key, one in result.pictures.items()}
    facts = asdict(replace(result, metrics=metrics, pictures=pictures, predicted=None))
    for choice in facts["choices"].values():
        choice |= {name: [*choice[name].items()] for name in ("validation", "test")}
    return facts, arrays


def _result(facts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Result:
    """The opposite of `_facts`."""
    metrics = {}
    for key, one in facts.pop("metrics").items():
        for name, kind in (("uncertainty", Uncertainty), ("curve", Curve)):
            one[name] = None if one[name] is None else kind(**one[name])
        if one["balanced"] is not None:
            one["balanced"] = Estimate(one["balanced"]["value"], Uncertainty(**one["balanced"]["uncertainty"]))
        metrics[key] = Metric(**one | {"outcomes": arrays.get(f"outcomes/{key}")})
    choices = {
        key: Choice(one["value"], one["title"], dict(one["validation"]), dict(one["test"]))
        for key, one in facts.pop("choices").items()
    }
    plots = {
        key: Plot(**one | {"points": [tuple(point) for point in one["points"]]})
        for key, one in facts.pop("plots").items()
    }
    pictures = {
        key: Picture(**one | {"pixels": arrays[f"pictures/{key}"]}) for key, one in facts.pop("pictures").items()
    }
    tables = {key: Table(**one) for key, one in facts.pop("tables").items()}
    return Result(
        **facts | {"predicted": arrays.get("predicted")},
        metrics=metrics,
        choices=choices,
        tables=tables,
        plots=plots,
        pictures=pictures,
    )


def _plain(value: Any) -> Any:
    """A number of numpy as one of Python."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a result holds a {type(value).__name__}, which JSON does not have")


def _version(library: str) -> str:
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return library
