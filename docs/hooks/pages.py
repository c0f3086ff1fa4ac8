"""Pages that mkdocs generates: one per method, from its file, its block in params.yaml and the result files; and one of
all protocols, from their files and blocks.

The modules are imported once: restart `make docs-serve` after you have changed a method's or a protocol's file.
"""

import functools
import importlib
import inspect
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from ruamel.yaml import YAML

from selfsup.about import ANY
from selfsup.errors import UserError
from selfsup.params import load
from selfsup.report.methods_table import markdown, measured

ROOT = Path(__file__).resolve().parent.parent.parent
SECTION = "The methods"
HERE = "here:"  # a comment in a method's block that begins with it replaces the shared meaning


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Let a mistake in params.yaml or in a method's file end the build with one line."""
    try:
        yield
    except UserError as error:
        raise PluginError(str(error)) from None


@one_line_errors()
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Fill the section of the navigation that has one page per method, by family."""
    families: dict[str, list[str]] = {}
    load(ROOT / "params.yaml")
    for name, about in declared().items():
        families.setdefault(about.family.capitalize(), []).append(f"methods/{name}.md")
    pages = ["methods/index.md", *({family: paths} for family, paths in families.items())]
    config.nav = [{SECTION: pages} if list(entry) == [SECTION] else entry for entry in config.nav or []]
    return config


@one_line_errors()
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and a picture of every method's views."""
    generated: dict[str, str | bytes] = {"methods/index.md": overview(), "protocols.md": protocols_page()}
    generated |= {f"methods/{name}.md": page(name) for name in declared()}
    generated |= {f"methods/{name}.png": picture for name, picture in pictures().items()}
    for path, content in generated.items():
        files.append(File.generated(config, path, content=content))
    return files


@functools.cache
def declared() -> dict[str, Any]:
    """The declarations of all methods, in the order of the tables."""
    from selfsup import methods

    return methods.declared()


def module(name: str) -> Any:
    return importlib.import_module(f"selfsup.methods.{name}")


def docstring(name: str) -> tuple[str, str, str, str]:
    """The parts of the module's docstring: idea, paper with equation, differences, what to expect."""
    head, *rest = (inspect.getdoc(module(name)) or "").split("\n\n")
    idea = head.partition(": ")[2].replace("\n", " ")
    differences = "\n\n".join(part for part in rest if part.startswith("Differences"))
    expect = "\n\n".join(part.removeprefix("Expect: ") for part in rest if part.startswith("Expect: "))
    others = "\n\n".join(part for part in rest if not part.startswith(("Differences", "Expect: ")))
    return idea[:1].upper() + idea[1:], others, differences.partition(": ")[2], expect[:1].upper() + expect[1:]


def page(name: str) -> str:
    """The page of a method: idea, paper, equation, knobs, figures, views, code."""
    about, (idea, paper, differences, expect) = declared()[name], docstring(name)
    file = Path(inspect.getfile(module(name)))
    place = file.relative_to(ROOT)
    cited = about.paper
    facts = {
        "use it": f"`dvc exp run -S method={name}`",
        "paper": f'[{cited.cited}, "{cited.title}"]({cited.url})' if cited else "textbook knowledge",
        "family": about.family,
        "the loss": "compares the images of a batch with each other"
        if about.couples_batch
        else "is a mean over images",
        "the code": f"[{place}](#the-code)",
    }
    parts = [
        f"# {about.title}",
        idea,
        markdown(("", ""), facts.items()),
        "## The paper and the equation",
        paper,
        *equations(name),
        "## What is different here?",
        differences[:1].upper() + differences[1:],
        "## Knobs",
        f"Defaults are those of `methods.{name}` in `params.yaml`.",
        knobs(name),
        "## Figures measured here",
        *figures(name),
        *(["## What figure to expect elsewhere?", expect] if expect else []),
        *views(name),
        "## The code",
        f'```python title="{place}"\n{file.read_text(encoding="utf-8")}```',
    ]
    return "\n\n".join(parts) + "\n"


def equations(name: str) -> list[str]:
    """The functions that the docstring names, as code."""
    space = vars(module(name))
    words = dict.fromkeys(re.findall(r"`(\w+)`", module(name).__doc__))
    functions = [space[word] for word in words if inspect.isfunction(space.get(word))]
    return [f"```python\n{inspect.getsource(function)}```" for function in functions]


def parameters() -> str:
    return (ROOT / "params.yaml").read_text(encoding="utf-8")


def shared(text: str) -> dict[str, str]:
    """Meanings of the knobs that several methods have, from the comment above `methods`: `#   name: meaning`."""
    above = text.partition("\nmethods:")[0].rsplit("\n\n", 1)[-1]
    lines = re.sub(r"\n#     +", " ", above)  # a meaning's second line
    return dict(re.findall(r"^#   (\w+): (.*)$", lines, re.MULTILINE))


@functools.cache
def blocks(text: str) -> Any:
    """The recipes of params.yaml, with the lines they stand in."""
    return YAML().load(text)["methods"]


def explained(text: str, name: str) -> Iterator[tuple[str, str, str]]:
    """Name, value as it stands, and meaning of every knob of the method's block."""
    block, lines, common = blocks(text)[name], text.splitlines(), shared(text)
    for key in block:
        value, _, comment = (part.strip() for part in lines[block.lc.key(key)[0]].partition(": ")[2].partition("#"))
        meaning = (
            comment.removeprefix(HERE).strip() if comment.startswith(HERE) else f"{common.get(key, '')}; {comment}"
        )
        yield key, value, meaning.strip("; ")


def knobs(name: str) -> str:
    rows = [(f"`{key}`", f"`{value}`", meaning) for key, value, meaning in explained(parameters(), name)]
    return markdown(("knob", "default", "meaning"), rows)


RESULTS = {"digits": "Digits, 16 px", "fashion-mnist-10k": "Fashion-MNIST-10k, 28 px"}
COLUMNS = ["kNN", "linear", "1 label per class", "1 % of labels", "10 % of labels", "kNN over random weights"]


def figures(name: str) -> list[str]:
    """Tables of the figures measured here, with the baselines of the same architecture."""
    about, parts = declared()[name], []
    for results, heading in RESULTS.items():
        rows = measured(results)
        if name not in rows:
            continue
        backbone = rows[name]["backbone"]
        shown = {f"**{about.title}**": name, "random weights": f"random, {backbone}", "raw pixels": "pixels"}
        shown |= {} if name == "supervised" else {"supervised": f"supervised, {backbone}"}
        head = ["", *COLUMNS]
        lines = [[label, *(rows[row][column] for column in COLUMNS)] for label, row in shown.items()]
        parts += [f"{heading}: test accuracy in %.", markdown(head, lines).replace(" ± ", "&nbsp;±&nbsp;")]
    if not parts:
        return ["Not measured yet."]
    return [*parts, "The conditions, and what ± means: [What do the figures mean?](../figures.md#the-spread)"]


def views(name: str) -> list[str]:
    """The picture of the method's views, if it makes images of the kind that can be drawn."""
    if name not in pictures():
        return []
    return [
        "## What the network sees",
        "One column per digit: on top the image, below it the views that the method makes of it in the first epoch.",
        f"![Views that {declared()[name].title} makes of eight digits]({name}.png)",
    ]


@functools.cache
def pictures() -> dict[str, bytes]:
    """A PNG of each method's views of the embedded digits, with the values of params.yaml."""
    from selfsup.data.loader import open_split
    from selfsup.data.shards import write
    from selfsup.report.sheet import views_sheet
    from selfsup.training.build import build_task, method_params

    params = load(ROOT / "params.yaml")
    data = params.data.of("image")
    data = data.model_copy(update={"source": "digits", "path": None, "name": None, "group": None, "cache": "memory"})
    with tempfile.TemporaryDirectory() as folder:
        write(data, params.seed, Path(folder) / "shards", processes=1)
        split = open_split(Path(folder) / "shards", "train", data)
        names = [name for name, about in declared().items() if about.kind in ("image", ANY)]
        tasks = {name: build_task(params, name, method_params(params, name), split) for name in names}
        return {name: views_sheet(task, split, params.seed) for name, task in tasks.items()}


def protocols_page() -> str:
    """The page of all protocols: a table, then a section for each, from its docstrings and its block in params.yaml."""
    from selfsup.evaluation import protocols

    usual = load(ROOT / "params.yaml").evaluation.protocols
    rows, sections = [], []
    for name in [*usual, *(name for name in protocols.names() if name not in usual)]:
        one = protocols.find(name)
        head, _, rest = (
            inspect.getdoc(importlib.import_module(f"selfsup.evaluation.protocols.{name}")) or ""
        ).partition("\n\n")
        rows.append((f"[{one.title}](#{name})", f"`{name}`", head.replace("\n", " "), ", ".join(sorted(one.needs))))
        returns = inspect.getdoc(one.run) or ""
        sections += [f"## {one.title} {{ #{name} }}", head, rest, f"**Returned.** {returns}", block(parameters(), name)]
    intro = (
        f"By default {', '.join(f'`{name}`' for name in usual)} are run. Others go into `evaluation.protocols`, or "
        "into `evaluation.encoder_protocols` where they need the encoder: `dvc exp run -S "
        "'evaluation.protocols=[linear,knn,retrieval]'`. In-domain linear and kNN probes predict other uses of a "
        "representation best (26 models, 11 data sets: [arXiv:2407.12210](https://arxiv.org/abs/2407.12210)), so they "
        "stay the headline."
    )
    table = markdown(("protocol", "name", "what it is", "needs"), rows)
    return "\n\n".join(["# How is a representation judged?", intro, table, *sections]) + "\n"


def block(text: str, name: str) -> str:
    """A protocol's lines of params.yaml, with their comments."""
    lines, first = text.splitlines(), YAML().load(text)["evaluation"].lc.key(name)[0]
    last = next(i for i in range(first + 1, len(lines)) if not lines[i].startswith("   "))
    return "\n".join(["```yaml", *(line[2:] for line in lines[first:last]), "```"])


def overview() -> str:
    """The page with the table of all methods."""
    rows = [
        (f"[{about.title}]({name}.md)", about.family, about.paper.cited if about.paper else "", about.idea)
        for name, about in declared().items()
    ]
    return f"# The methods\n\n{markdown(('method', 'family', 'paper', 'idea'), rows)}\n"
