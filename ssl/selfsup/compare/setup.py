"""A set-up, setups/<name>.yaml: the parameters in which a run differs from params.yaml, in the form of params.yaml.

    dvc exp run $(python -m selfsup.compare.setup cifar10) -S method=byol

The command checks the set-up and prints it as flags of `dvc exp run`, so that the run is an experiment like any other.
Sections are merged with those of params.yaml. Two are replaced, as their keys depend on the name beside them: the
`options` of a network, and an `optimizer` that is given with its name. The section `tuned`, which `make tune` writes of
its budget, holds no parameters.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from selfsup import methods
from selfsup.config import choose, parse, read_yaml
from selfsup.errors import UserError, one_line_errors
from selfsup.evaluation import protocols
from selfsup.params import Params, load

FOLDER = "setups"
TUNED = "tuned"  # the section that tells how the recipes were tuned
REFUSED = "--set-up-refused"  # dvc knows no such flag: with none, `dvc exp run $(...)` would run without the set-up
Overlay = Mapping[str, Any]  # parameters in the form of params.yaml, of which it holds some


def names(root: Path) -> list[str]:
    return sorted(path.stem for path in (root / FOLDER).glob("*.yaml"))


def read(root: Path, name: str, base: Overlay) -> Overlay:
    """The set-up of that name, checked as a change of `base`. Raises `UserError`."""
    file = f"{FOLDER}/{name}.yaml"
    try:
        choose(f"{FOLDER}/", name, names(root))
    except ValueError as error:
        raise UserError(str(error)) from None
    overlay = read_yaml(root / file)
    if isinstance(overlay, Mapping):
        overlay = {key: value for key, value in overlay.items() if key != TUNED}
    check(merged(base, overlay) if isinstance(overlay, Mapping) else overlay, overlay, file)
    return overlay


def base_of(root: Path) -> dict[str, Any]:
    """What params.yaml holds, checked. Raises `UserError`."""
    path = root / "params.yaml"
    if not path.exists():
        load(path)  # raises
    values = read_yaml(path)
    parse(Params, values)
    return values


def check(values: Any, overlay: Any, file: str) -> None:
    """Raise `UserError`, which names `file`, unless `values` and the blocks of methods in `overlay` are valid."""
    params = parse(Params, values, file=file)
    protocols.blocks(params.evaluation, file)
    for name in {params.method, *overlay.get("methods", {})}:
        model, _ = methods.find(name)
        parse(model, params.methods[name], f"methods.{name}", file)


def merged(base: Overlay, overlay: Overlay) -> dict[str, Any]:
    """`base` with the values of `overlay`; neither is changed."""
    out = dict(base)
    for key, value in overlay.items():
        old = out.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _replaced(key, value):
            value = merged(old, value)
        out[key] = value
    return out


def overrides(base: Overlay, overlay: Overlay, place: str = "") -> Iterator[str]:
    """The changes that turn `base` into `merged(base, overlay)`, in the form of `dvc exp run -S`.

    A value that `base` already has is included too, so that these overrides replace all earlier ones.
    """
    for key, value in overlay.items():
        old = base.get(key)
        if not isinstance(old, Mapping) or not isinstance(value, Mapping):
            yield f"{'' if key in base else '++'}{place}{key}={_literal(value)}"
            continue
        if _replaced(key, value):
            yield from (f"~{place}{key}.{one}" for one in old if one not in value)
        yield from overrides(old, value, f"{place}{key}.")


def difference(base: Overlay, values: Overlay) -> dict[str, Any]:
    """The least overlay of which `merged(base, overlay)` are `values`, which have all keys of `base`."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _replaced(key, value):
            value = difference(old, value)
            if not value:
                continue
        if key not in base or type(old) is not type(value) or old != value:
            out[key] = value
    return out


def changes(base: Overlay, values: Overlay, place: str = "") -> Iterator[str]:
    """The fewest changes that turn `base` into `values`, in the form of `dvc exp run -S`."""
    yield from (f"~{place}{key}" for key in base if key not in values)
    for key, value in values.items():
        old = base.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            yield from changes(old, value, f"{place}{key}.")
        elif key not in base or type(old) is not type(value) or old != value:
            yield f"{'' if key in base else '++'}{place}{key}={_literal(value)}"


def _replaced(key: str, value: Overlay) -> bool:
    return key == "options" or (key == "optimizer" and "name" in value)


def _literal(value: Any) -> str:
    """A value in the grammar of hydra, which DVC reads overrides by; without spaces, unless they are in a text."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_literal, value)) + "]"
    if isinstance(value, str):
        special = value.lower() in ("null", "true", "false", "nan", "inf")
        return value if re.fullmatch(r"[A-Za-z_/][\w./-]*", value) and not special else _quoted(value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value)


def _quoted(text: str) -> str:
    """In single quotes. A backslash stays, but those before a quote, also before the last, are doubled."""
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), text) + "'"


def main() -> None:
    root = Path()
    try:
        flags(root)
    except BaseException as end:
        if getattr(end, "code", 1):  # not of --help
            print(REFUSED)
        raise


def flags(root: Path) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"a file of {FOLDER}/, without its ending: {', '.join(names(root))}")
    args = parser.parse_args()
    base = base_of(root)
    words = list(overrides(base, read(root, args.name, base)))
    for word in words:
        if re.search(r"\s", word):
            key = word.partition("=")[0]
            raise UserError(f"{FOLDER}/{args.name}.yaml: {key}: a shell cuts a value at its space; set it with -S")
    print("\n".join(f"-S {word}" for word in words))


if __name__ == "__main__":
    with one_line_errors():
        main()
