"""`index.json` of a folder of shards: what the shards hold, and whether they still hold it."""

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, ValidationError, ValidationInfo, field_validator

from selfsup.config import Strict
from selfsup.data import formats
from selfsup.errors import UserError

SCHEMA = 4
REMEDY = "run `dvc repro --force --single-item shard` to write the shards again"


class File(Strict):
    """A file beside the index."""

    file: Annotated[str, Field(pattern=r"^\w+/\d+\.(tar|npz)$")]  # path below the index's folder
    bytes: NonNegativeInt
    sha256: str


class Shard(File):
    """A tar of samples and its table: arrays offset, size (int64, of the sample's bytes in the tar), label, name."""

    samples: PositiveInt
    table: File


class Skipped(Strict):
    """A source file that is in no shard."""

    name: str
    reason: str


class Copies(Strict):
    """Samples whose decoded content is equal."""

    surplus: NonNegativeInt  # samples less the different ones among them
    across: dict[str, PositiveInt]  # "train/test": samples of the second split that are also in the first
    relabelled: NonNegativeInt  # labelled samples that equal one with another label
    dropped: NonNegativeInt  # samples that are in no shard, because an equal one is


class Index(Strict):
    """The whole of `index.json`."""

    schema_version: int
    kind: Annotated[str, Field(pattern=r"^[a-z]\w*$")]  # of the samples: a block under `data` in params.yaml
    source: str
    seed: int
    classes: list[str]  # [] when unlabelled
    facts: Any  # the `Facts` of the kind's format: what sharding found in the whole set and readers need
    splits: dict[str, Annotated[list[Shard], Field(min_length=1)]]  # train, validation and test
    skipped_count: int
    skipped: list[Skipped]
    copies: Copies
    rare: dict[str, NonNegativeInt]  # classes too small for every split -> samples without label, or dropped
    left_out: dict[str, int]  # the source's files that are no samples, by extension
    notes: list[str]  # whole sentences on what was left out or looks wrong; sharding prints them, the page shows them
    checksum: str = ""  # SHA-256 of all the rest, and so of the whole data set

    @field_validator("facts", mode="before")
    @classmethod
    def _facts_are_of_the_kind(cls, value: Any, info: ValidationInfo) -> Any:
        if "kind" not in info.data:  # is no name, which is an error already
            return value
        model = formats.find(info.data["kind"]).Facts
        return value if isinstance(value, model) else model.model_validate(value)

    def digest(self) -> str:
        """What `checksum` should be."""
        text = json.dumps(self.model_dump(exclude={"checksum"}), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def samples(self, split: str) -> int:
        return sum(shard.samples for shard in self.splits[split])


def describe(path: Path, root: Path) -> File:
    """The entry of a file that was just written."""
    return File(file=path.relative_to(root).as_posix(), bytes=path.stat().st_size, sha256=sha256(path))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_index(index: Index, folder: Path) -> Index:
    """Write `index.json` with its checksum."""
    index = index.model_copy(update={"checksum": index.digest()})
    (folder / "index.json").write_text(json.dumps(index.model_dump(), indent=1) + "\n", encoding="utf-8")
    return index


def load_index(folder: Path | str) -> Index:
    """Read `index.json`. Raises `UserError` when it is missing, damaged, edited or of another version."""
    path = Path(folder) / "index.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(values, dict) and values.get("schema_version", SCHEMA) != SCHEMA:
            raise UserError(f"written by another version of this project; {REMEDY}")
        index = Index.model_validate(values)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro shard` first") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (ValidationError, ValueError, RecursionError):  # ValueError: not UTF-8, not JSON
        raise UserError(f"{path}: damaged or edited; {REMEDY}") from None
    files = [entry.file for shards in index.splits.values() for shard in shards for entry in (shard, shard.table)]
    if set(index.splits) != {"train", "validation", "test"} or len(set(files)) < len(files):
        raise UserError(f"{path}: not the three splits, or a shard in it twice; {REMEDY}")
    if index.checksum != index.digest():
        raise UserError(f"{path}: edited since it was written, its checksum differs; {REMEDY}")
    return index


def verify(folder: Path | str, level: str = "full", splits: list[str] | None = None) -> Index:
    """Check the shards against the index: sizes and counts, and SHA-256 when `level` is `full`.

    Raises `UserError` that names the first shard that differs: a tar cut between two members reads without error.
    """
    folder = Path(folder)
    index = load_index(folder)
    shards = [shard for split in splits or index.splits for shard in index.splits[split]]
    for shard in shards:
        for entry in (shard, shard.table):
            _check_size(folder, entry)
        _check_table(folder, shard, len(index.classes))
    if level == "full":
        entries = [entry for shard in shards for entry in (shard, shard.table)]
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            found = pool.map(lambda entry: sha256(folder / entry.file), entries)
            for entry, digest in zip(entries, found, strict=True):
                if digest != entry.sha256:
                    raise UserError(f"{folder / entry.file}: its bytes changed, SHA-256 differs; {REMEDY}")
    return index


def _check_size(folder: Path, entry: File) -> None:
    path = folder / entry.file
    size = path.stat().st_size if path.is_file() else None
    if size is None:
        raise UserError(f"{path}: missing; {REMEDY}")
    if size != entry.bytes:
        raise UserError(f"{path}: {size} bytes instead of {entry.bytes}, cut short or edited; {REMEDY}")


def _check_table(folder: Path, shard: Shard, classes: int) -> None:
    """Check that each sample lies in the tar after the previous sample, and has a label of the index or none."""
    offset, size, label = (table := load_table(folder / shard.table.file)).values()
    fits = all(array.dtype == np.int64 and array.shape == (shard.samples,) for array in table.values())
    if fits:
        free = np.append(offset[1:], shard.bytes) - offset  # bytes up to the next sample
        inside = (offset >= 0) & (offset <= shard.bytes)
        fits = bool((inside & (size > 0) & (size <= free)).all())
    if not fits or label.min() < -1 or label.max() >= classes:
        raise UserError(f"{folder / shard.file}: does not fit its table of {shard.samples} samples; {REMEDY}")


def load_table(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of a shard's table, by default offset, size and label. Raises `UserError`."""
    try:
        with np.load(path) as table:
            return {name: table[name] for name in names or ("offset", "size", "label")}
    except Exception as error:  # zipfile, zlib and numpy each have their own errors for damaged bytes
        raise UserError(f"{path}: damaged; {REMEDY}") from error
