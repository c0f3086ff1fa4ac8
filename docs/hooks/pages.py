"""Pages that mkdocs generates: one per method, from its file, its block in params.yaml and the result files.

The modules are imported once: restart `make docs-serve` after you have changed a method's file.
"""

import functools
import importlib
import inspect
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from ruamel.yaml import YAML

os.environ.setdefault("TQDM_DISABLE", "1")
ROOT = Path(__file__).resolve().parent.parent.parent
SECTION = "The methods"
HERE = "here:"  # a comment in a method's block that begins with it replaces the shared meaning


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the section of the navigation that has one page per method."""
    pages = ["methods/index.md", *(f"methods/{name}.md" for name in names())]
    config.nav = [{SECTION: pages} if list(entry) == [SECTION] else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and a picture of every method's views."""
    generated: dict[str, str | bytes] = {"methods/index.md": overview()}
    generated |= {f"methods/{name}.md": page(name) for name in names()}
    generated |= {f"methods/{name}.png": picture for name, picture in pictures().items()}
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    return files


def names() -> list[str]:
    """The methods, in the order of their titles."""
    from selfsup import methods

    return sorted(methods.names(), key=lambda name: title(name).lower())


def title(name: str) -> str:
    return idea(name).partition(":")[0]


def idea(name: str) -> str:
    """The first sentence of the module's docstring, which begins with the method's title."""
    return doc(name).partition("\n")[0]


def doc(name: str) -> str:
    return inspect.getdoc(module(name)) or ""


def module(name: str) -> Any:
    return importlib.import_module(f"selfsup.methods.{name}")


def page(name: str) -> str:
    """The page of a method: idea, paper, equation, knobs, figures, views, code."""
    head, _, body = doc(name).partition("\n")
    sentence = head.partition(": ")[2]
    file = Path(inspect.getfile(module(name)))
    source = file.read_text(encoding="utf-8")
    parts = [
        f"# {title(name)}",
        sentence[:1].upper() + sentence[1:],
        f"Use it: `-S method={name}`. The code: [{file.relative_to(ROOT)}](#the-code).",
        "## The paper, and what is different here",
        body.strip(),
        *equations(name),
        "## Knobs",
        f"Defaults are those of `methods.{name}` in `params.yaml`.",
        knobs(name),
        *figures(name),
        *views(name),
        "## The code",
        f'```python title="{file.relative_to(ROOT)}"\n{source}```',
    ]
    return "\n\n".join(parts) + "\n"


def equations(name: str) -> list[str]:
    """The functions that the docstring names."""
    space = vars(module(name))
    named = [space[word] for word in dict.fromkeys(re.findall(r"`(\w+)`", doc(name))) if word in space]
    found = [inspect.getsource(function) for function in named if inspect.isfunction(function)]
    return ["## The equation", *(f"```python\n{source}```" for source in found)] if found else []


@functools.cache
def parameters() -> str:
    return (ROOT / "params.yaml").read_text(encoding="utf-8")


def shared(text: str) -> dict[str, str]:
    """Meanings of the knobs that several methods have, from the comment above `methods`: `#   name: meaning`."""
    above = text.partition("\nmethods:")[0].rsplit("\n\n", 1)[-1]
    lines = re.sub(r"\n#     +", " ", above)  # a meaning's second line
    return dict(re.findall(r"^#   (\w+): (.*)$", lines, re.MULTILINE))


def explained(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Name, value as it stands, and meaning of every knob of the method's block."""
    block, lines, common = YAML().load(text)["methods"][name], text.splitlines(), shared(text)
    for key in block:
        value, _, comment = (part.strip() for part in lines[block.lc.key(key)[0]].partition(": ")[2].partition("#"))
        meaning = (
            comment.removeprefix(HERE).strip() if comment.startswith(HERE) else f"{common.get(key, '')}; {comment}"
        )
        yield key, value, meaning.strip("; ")


def knobs(name: str) -> str:
    rows = (map(escaped, row) for row in explained(parameters(), name))
    rows = [f"| `{key}` | `{value}` | {meaning} |" for key, value, meaning in rows]
    return "\n".join(["| knob | default | meaning |", "|---|---|---|", *rows])


def escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


RESULTS = {"digits": "Digits, 16 px", "fashion-mnist-10k": "Fashion-MNIST-10k, 28 px"}
COLUMNS = ["kNN", "linear", "1 label a class", "1 % of labels", "10 % of labels", "kNN over random weights"]


@functools.cache
def measured(results: str) -> dict[str, dict[str, str]]:
    """Cells by column of every row of benchmarks/results/<results>.md."""
    text = (ROOT / f"benchmarks/results/{results}.md").read_text(encoding="utf-8")
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    return {cells[0]: dict(zip(lines[0], cells, strict=True)) for cells in lines[2:]}


def figures(name: str) -> list[str]:
    """Tables of the figures measured here, with the baselines of the same architecture."""
    parts = ["## Figures measured here"]
    for results, heading in RESULTS.items():
        rows = measured(results)
        if name not in rows:
            continue
        backbone = rows[name]["backbone"]
        shown = {f"**{title(name)}**": name, "random weights": f"random, {backbone}", "raw pixels": "pixels"}
        shown |= {} if name == "supervised" else {"supervised": f"supervised, {backbone}"}
        parts += [
            f"{heading}: test accuracy in %.",
            "\n".join(
                [
                    "| | " + " | ".join(column.replace(" a class", " per class") for column in COLUMNS) + " |",
                    "|---" * (len(COLUMNS) + 1) + "|",
                    *(
                        f"| {label} | " + " | ".join(rows[row][c] for c in COLUMNS) + " |"
                        for label, row in shown.items()
                    ),
                ]
            ),
        ]
    if len(parts) == 1:
        return [*parts, "Not measured yet."]
    return [*parts, "The conditions, and what ± means: [What do the figures mean?](../figures.md#the-spread)"]


def views(name: str) -> list[str]:
    """The picture of the method's views, if it makes images of the kind that can be drawn."""
    if name not in pictures():
        return []
    return [
        "## What the network sees",
        "One column per digit: on top the image, below it the views that the method makes of it in the first epoch.",
        f"![Views that {title(name)} makes of eight digits]({name}.png)",
    ]


@functools.cache
def pictures() -> dict[str, bytes]:
    """A PNG of each method's views of the embedded digits, with the values of params.yaml."""
    from selfsup.data.loader import open_split
    from selfsup.data.shards import write
    from selfsup.params import load
    from selfsup.report.sheet import views_sheet
    from selfsup.training.build import build_task, method_params

    params = load(ROOT / "params.yaml")
    with tempfile.TemporaryDirectory() as folder:
        write(params.data, params.seed, Path(folder) / "shards", processes=1)
        split = open_split(Path(folder) / "shards", "train", params.data.model_copy(update={"cache": "memory"}))
        tasks = {name: build_task(params, name, method_params(params, name).backbone, split) for name in names()}
        return {name: views_sheet(task, split, params.data.image_size, params.seed) for name, task in tasks.items()}


def overview() -> str:
    """The table of all methods."""
    rows = [f"| [{title(name)}]({name}.md) | {idea(name).partition(': ')[2]} |" for name in names()]
    return "\n".join(["# The methods", "", "| method | idea |", "|---|---|", *rows, ""])
