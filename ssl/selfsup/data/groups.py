"""Groups of samples that must stay in one split, such as a patient's or a video's, as `data.group` tells them."""

import csv
import re
from collections.abc import Callable, Mapping
from pathlib import PurePosixPath

import numpy as np

from selfsup.blocks import GroupTable, KindData
from selfsup.data.source import Samples, resolve
from selfsup.errors import UserError


def group_numbers(splits: Mapping[str, Samples], data: KindData) -> dict[str, np.ndarray] | None:
    """Each sample's group as a number, int64 [N] per split of the source; None where `data.group` is null.

    Raises `UserError` for a sample without a group and for a group in two splits of the source.
    """
    if (group := data.group) is None:
        return None
    find = _by_expression(group) if isinstance(group, str) else _by_table(group)
    known: dict[str, int] = {}
    numbers = {}
    for split, samples in splits.items():
        found = (known.setdefault(find(name), len(known)) for name in samples.names)
        numbers[split] = np.fromiter(found, np.int64, len(samples.names))
    _check_own_splits(splits, numbers, list(known), data.noun)
    return numbers


def _by_expression(expression: str) -> Callable[[str], str]:
    compiled = re.compile(expression)

    def find(name: str) -> str:
        match = compiled.search(name)
        found = match and match[1 if compiled.groups else 0]
        if not found:
            raise UserError(f"data.group: {expression!r} finds no group in the file name {name!r}; change it")
        return found

    return find


def _by_table(group: GroupTable) -> Callable[[str], str]:
    """Files are found by their path, else by their name, else by their name without extension."""
    rows = _rows(group)

    def find(name: str) -> str:
        path = PurePosixPath(name)
        for key in (name, path.name, path.stem):
            if key in rows:
                return rows[key]
        raise UserError(f"data.group: {group.table} has no file {name!r} in column {group.file!r}; add a row for it")

    return find


def _rows(group: GroupTable) -> dict[str, str]:
    """The table's files and their groups."""
    rows: dict[str, str] = {}
    try:
        with resolve(group.table).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            for column in (group.file, group.group):
                if column not in (reader.fieldnames or []):
                    have = ", ".join(reader.fieldnames or []) or "none"
                    raise UserError(f"data.group: {group.table} has no column {column!r} (it has: {have}); change it")
            for row in reader:
                name, value = row[group.file], row[group.group]
                if not name or not value:
                    raise UserError(f"data.group: {group.table}, line {reader.line_num}: an empty cell; fill it in")
                if rows.setdefault(name, value) != value:
                    both = f"{rows[name]!r} and {value!r}"
                    raise UserError(f"data.group: {group.table} has {name!r} in the groups {both}; remove a row")
    except FileNotFoundError:
        raise UserError(f"data.group: no table {group.table}; correct the path") from None
    except (UnicodeDecodeError, csv.Error, IsADirectoryError) as error:
        raise UserError(f"data.group: {group.table} is no CSV file in UTF-8 ({error}); save it as one") from None
    return rows


def _check_own_splits(
    splits: Mapping[str, Samples], numbers: Mapping[str, np.ndarray], names: list[str], noun: str
) -> None:
    ordered = sorted(splits)
    for one in ordered:
        for other in ordered[ordered.index(one) + 1 :]:
            both = np.intersect1d(numbers[one], numbers[other])
            if len(both):
                files = " and ".join(
                    f"{splits[split].names[int(np.flatnonzero(numbers[split] == both[0])[0])]} ({split})"
                    for split in (one, other)
                )
                more = f" (and {len(both) - 1} more groups)" if len(both) > 1 else ""
                raise UserError(
                    f"data.group: group {names[both[0]]!r}{more} is in two splits of the source, {files}; move its "
                    f"{noun} into one split, or set data.group: null"
                )
