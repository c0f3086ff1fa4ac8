"""Whether two checkouts compute the same: the demo and two epochs of every method, compared bit for bit.

    python benchmarks/equal.py run FOLDER BEFORE.json        # FOLDER: a clone with its own environment in .venv
    python benchmarks/equal.py run OTHER-FOLDER AFTER.json
    python benchmarks/equal.py compare BEFORE.json AFTER.json --renamed rank_me=rankme

`run` executes `dvc repro` and then the pretraining of each method in FOLDER, and puts its params.yaml back. It writes
the figures of the metrics files without times, the curves, and SHA-256 digests of the tensors of the weights and of the
features. `compare` prints one line per difference and exits with 1 if there is any. `--methods` chooses some methods.
`--no-demo` leaves out the demo; the clone must then have shards. Nothing of `selfsup` is imported, so that one script
runs in clones of all versions.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from safetensors import safe_open

WITHOUT = ("computed_from", "weights", "features")  # digests of files and parameters, whose form may change
WEIGHTS = "models/pretrained/task.safetensors"
MISSING = "nothing"  # beside a value that only the other side has
SHORT = {"epochs": 2, "knn_every": 1}  # of `pretrain`


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def weights(path: Path) -> dict[str, str]:
    """Digest of each tensor by name."""
    with safe_open(path, "np") as file:
        return {name: digest(file.get_tensor(name).tobytes()) for name in sorted(file.keys())}


def figures(value: Any) -> Any:
    """The content of a metrics file without digests."""
    if isinstance(value, dict):
        return {key: figures(part) for key, part in value.items() if key not in WITHOUT}
    return value


def execute(folder: Path, *command: str) -> None:
    """Run a command in a clone's environment; exit with the last line of its error."""
    environment = dict(os.environ, PATH=f"{folder / '.venv/bin'}{os.pathsep}{os.environ['PATH']}")
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        sys.exit(f"error: {' '.join(command)} failed in {folder}: {lines[-1]}")


def demo(folder: Path) -> dict[str, Any]:
    """What the whole pipeline writes with the parameters of the clone."""
    execute(folder, "dvc", "repro")
    metrics = [path for path in sorted((folder / "metrics").rglob("*.json")) if "times" not in path.parts]
    features = sorted((folder / "features").rglob("*.npy"))
    return {
        "metrics": {str(path.relative_to(folder)): figures(json.loads(path.read_text())) for path in metrics},
        "features": {str(path.relative_to(folder)): digest(path.read_bytes()) for path in features},
        "weights": weights(folder / WEIGHTS),
    }


def short_run(folder: Path, method: str, params: str) -> dict[str, Any]:
    """What two epochs of a method write; `params` is the text of params.yaml."""
    yaml = YAML()
    values = yaml.load(params)
    values["method"] = method
    values["pretrain"] |= SHORT
    values["tracking"]["enabled"] = False
    with (folder / "params.yaml").open("w") as file:
        yaml.dump(values, file)
    execute(folder, "python", "stages/pretrain.py")
    return {
        "metrics": figures(json.loads((folder / "metrics/pretrain.json").read_text())),
        "curves": (folder / "plots/pretrain.csv").read_text().splitlines(),
        "weights": weights(folder / WEIGHTS),
    }


def run(folder: Path, methods: Collection[str] | None, with_demo: bool) -> dict[str, Any]:
    """What a clone computes, by `demo` and method. `methods`: None for all."""
    params = folder / "params.yaml"
    text = params.read_text()
    known = list(YAML(typ="safe", pure=True).load(text)["methods"])
    if unknown := sorted(set(methods or ()) - set(known)):
        sys.exit(f"error: --methods: {folder} has no {', '.join(unknown)}; known: {', '.join(known)}")
    chosen = [name for name in known if methods is None or name in methods]
    try:
        found = {"demo": demo(folder)} if with_demo else {}
        for number, method in enumerate(chosen, 1):
            found[method] = short_run(folder, method, text)
            print(f"{number}/{len(chosen)} {method}", file=sys.stderr, flush=True)
    finally:
        params.write_text(text)
    return found


def renamed(value: Any, names: Mapping[str, str]) -> Any:
    """The same with the names of figures changed, also in the first line of curves."""
    if isinstance(value, dict):
        return {names.get(key, key): renamed(part, names) for key, part in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], str):
        return [",".join(names.get(name, name) for name in value[0].split(",")), *value[1:]]
    return value


def differences(before: Any, after: Any, where: str = "") -> list[str]:
    """A line per value that differs or is missing on one side, with its place."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = sorted({*before, *after})
        sides = {name: (before.get(name, MISSING), after.get(name, MISSING)) for name in names}
        return [line for name, pair in sides.items() for line in differences(*pair, f"{where}/{name}")]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = zip(before, after, strict=True)
        return [line for i, pair in enumerate(pairs) for line in differences(*pair, f"{where}/{i}")]
    return [] if before == after else [f"{where}: {before} != {after}"]


def read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"error: {path}: not a file that `run` wrote ({error})")


def pair(text: str) -> tuple[str, str]:
    old, sign, new = text.partition("=")
    if not (old and sign and new):
        raise argparse.ArgumentTypeError(f"{text!r} is not OLD=NEW")
    return old, new


def compare(before: Path, after: Path, names: Mapping[str, str]) -> int:
    """Print the differences of two results of `run`; 1 if there are any. Parts that only one of them has are named."""
    one, two = (renamed(read(path), names) for path in (before, after))
    both = one.keys() & two.keys()
    for path, own in ((before, one), (after, two)):
        if rest := sorted(own.keys() - both):
            print(f"only in {path}, not compared: {', '.join(rest)}")
    if not both:
        sys.exit(f"error: {before} and {after} have nothing in common; give both the same --methods or the demo")
    lines = differences({name: one[name] for name in both}, {name: two[name] for name in both})
    print("\n".join(lines) or f"equal: {', '.join(sorted(both))}")
    return int(bool(lines))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="compute and write what two checkouts are compared by")
    one.add_argument("folder", type=Path, help="a clone with its own environment in .venv")
    one.add_argument("out", type=Path, help="the JSON file to write")
    one.add_argument("--methods", nargs="+", metavar="METHOD", help="default: all methods of the clone")
    one.add_argument("--no-demo", action="store_true", help="leave out `dvc repro`; shards must be there")
    two = commands.add_parser("compare", help="print the differences of two files")
    two.add_argument("before", type=Path)
    two.add_argument("after", type=Path)
    two.add_argument(
        "--renamed", nargs="+", type=pair, default=[], metavar="OLD=NEW", help="figures that changed their name"
    )
    args = parser.parse_args()
    if args.command == "compare":
        sys.exit(compare(args.before, args.after, dict(args.renamed)))
    if not (args.folder / "params.yaml").exists():
        sys.exit(f"error: {args.folder}: not a clone, it has no params.yaml")
    args.out.touch()  # an unwritable place is found now and not after an hour
    found = run(args.folder.resolve(), args.methods, not args.no_demo)
    args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
