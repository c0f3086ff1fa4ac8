"""The documentation: every page can be reached, no link is broken, and what pages show is what the project has."""

import importlib.util
import re
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest
import torch
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, PluginError
from ruamel.yaml import YAML

from selfsup.config import parse
from selfsup.evaluation import protocols
from selfsup.features.store import Splits
from selfsup.params import Params
from tests.helpers import METHODS, ROOT


def hook():
    """The module that generates the pages of methods."""
    spec = importlib.util.spec_from_file_location("pages", ROOT / "docs" / "hooks" / "pages.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def unexplained(node: dict, lines: list[str], shared: Collection[str], where: str = "") -> list[str]:
    """Values of `params.yaml` that have no comment on their line; a knob may be explained once for all methods."""
    bare = []
    for key, value in node.items():
        line, place = node.lc.key(key)[0], f"{where}{key}"
        if isinstance(value, dict) and value.lc.key(next(iter(value)))[0] > line:  # a section
            bare += unexplained(value, lines, shared, f"{place}.")
        elif "#" not in lines[line] and not (where.startswith("methods.") and key in shared):
            bare.append(place)
    return bare


def test_every_value_is_explained():
    text = (ROOT / "params.yaml").read_text()
    assert unexplained(YAML().load(text), text.splitlines(), hook().shared(text)) == []


def test_unexplained_values_are_found():
    text = "a: 1  # why\nb:  # why\n  c: 2\n  d: {e: 3}  # why\n  f: {g: 4}\nmethods:\n  m:\n    f: 1\n    g: 2\n"
    assert unexplained(YAML().load(text), text.splitlines(), ["f"]) == ["b.c", "b.f", "methods.m.g"]


def test_a_knob_that_is_explained_for_all_methods_is_one_of_several():
    text = (ROOT / "params.yaml").read_text()
    blocks = YAML(typ="safe", pure=True).load(text)["methods"].values()
    assert [name for name in hook().shared(text) if sum(name in block for block in blocks) < 2] == []


def test_meanings_of_knobs_are_those_of_params():
    text = """
seed: 0

# Recipes.
#   tau: the temperature, by which
#     similarities are divided
#   momentum: m of the copy
methods:
  a:
    tau: 0.1
    momentum: 0.5      # here: of the bank
    b: {c: 1}          # its own
  z:
    tau: 0.2           # 0.07 in long runs
"""
    shown = {name: list(hook().explained(text, name)) for name in "az"}
    tau = "the temperature, by which similarities are divided"
    assert shown["a"] == [("tau", "0.1", tau), ("momentum", "0.5", "of the bank"), ("b", "{c: 1}", "its own")]
    assert shown["z"] == [("tau", "0.2", f"{tau}; 0.07 in long runs")]


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "benchmarks" / "README.md"], ids=lambda path: path.parent.name
)
def test_links_of_pages_outside_the_site_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text().replace("\n", " "))
    assert not [link for link in links if not (path.parent / link).exists()]


def unknown(text: str, values: dict) -> list[str]:
    """The parameters that a page names, by `-S a.b=...` or as `a.b`, and that `params.yaml` does not have."""
    named = re.findall(r"-S ['\"]?([a-z_.]+)=", text)
    named += [
        name for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:[:=][^`]*)?`", text) if name.split(".")[0] in values
    ]
    lost = []
    for name in named:
        section = values
        for key in name.split("."):
            if not isinstance(section, dict) or key not in section:
                lost.append(name)
                break
            section = section[key]
    return lost


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.stem
)
def test_parameters_that_pages_name_exist(path):
    assert unknown(path.read_text(), YAML(typ="safe", pure=True).load(ROOT / "params.yaml")) == []


def test_parameters_that_do_not_exist_are_found():
    values = {"data": {"image": {"path": None}}, "method": "a"}
    text = "`data.path: x`, `data.image.path`, `files.py`, `-S 'data.name=1'`, -S method=b, `data.image`"
    assert unknown(text, values) == ["data.name", "data.path"]


def test_the_sections_of_the_report_are_explained():
    sections = re.findall(r"<h2>(.*?)</h2>", (ROOT / "ssl" / "selfsup" / "report" / "page.html").read_text())
    text = (ROOT / "docs" / "report.md").read_text()
    assert len(sections) > 5 and [title for title in sections if f"| {title} |" not in text] == []


def test_the_design_names_every_room():
    package = ROOT / "ssl" / "selfsup"
    rooms = {
        path.parent.relative_to(package).parts[0] + "/" for path in package.rglob("*.py") if path.parent != package
    }
    text = (ROOT / "docs" / "design.md").read_text()
    assert {room for room in rooms if f"`{room}`" not in text} == set()
    files = re.findall(r"`(\w+\.py)`", text)
    assert files and not [name for name in files if not (package / name).exists()]


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """The strict build, without pictures, which take the time of an import of torch and of the shards."""
    folder = tmp_path_factory.mktemp("site")
    config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
    config.hooks["docs/hooks/pages.py"].pictures = dict
    build(config)
    return folder


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_page(site, method):
    text = (site / "methods" / f"{method}.html").read_text()
    for part in ("The paper and the equation", "What is different here?", "Knobs", "Figures measured here", "The code"):
        assert f">{part}" in text, part
    assert f"ssl/selfsup/methods/{method}.py" in text


@pytest.mark.parametrize("protocol", protocols.names())
def test_every_protocol_has_a_section(site, protocol):
    text = (site / "protocols.html").read_text()
    assert f'<h2 id="{protocol}">' in text and f'href="#{protocol}"' in text
    assert f">{protocol}:" in text or f"{protocol}</span>" in text, "its block in params.yaml"


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'<(?:link|script|img|iframe)[^>]*"(?:https?:)?//[^>]*', page.read_text()), page.name


def copy(tmp_path: Path, page: str) -> Path:
    """A project of one page, `page`, with the settings of this one."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(page)
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    text = re.sub(r"^(hooks|extra_css|watch):.*$", "", text, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(text + "\nnav: [index.md]\n")
    return tmp_path / "mkdocs.yml"


def blocks_of(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / page).read_text(), re.DOTALL | re.MULTILINE)


def test_the_protocol_of_the_documentation_is_one():
    (source,) = blocks_of("add-a-protocol.md")
    space: dict = {}
    exec(source, space)
    rng = np.random.default_rng(0)
    labels = Splits(*(rng.integers(0, 3, 60) for _ in range(3)))
    features = Splits(*(10 * np.eye(3)[part] + rng.normal(size=(60, 3)) for part in labels))
    (metric,) = space["run"](features, labels, space["Params"](clusters=3), 0).metrics.values()
    assert metric.value == pytest.approx(1) and metric.unit == "none"
    assert space["NEEDS"] == {"features", "labels"}


def test_the_tutorial_runs_as_it_stands(tmp_path, monkeypatch):
    """Its blocks in turn, in a folder without parameters or shards."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    blocks = blocks_of("tutorial.md")
    space: dict = {}
    for block in blocks:
        exec(block, space)
        assert sum(space["losses"][-3:]) / 3 < space["losses"][0] - 0.5
    assert len(blocks) == 2 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("page", ["# A\n[b](b.md)\n", "# A\n[b](#b)\n", "# A\n![b](b.png)\n"])
def test_a_broken_link_ends_the_build(tmp_path, page):
    with pytest.raises(Abort):
        build(load_config(str(copy(tmp_path, page))))


def test_make_docs_fails_for_a_broken_link(tmp_path):
    """With the flags of the Makefile, some of which hide warnings from mkdocs itself."""
    (flags,) = re.findall(r"mkdocs build (.*)", (ROOT / "Makefile").read_text())
    command = [sys.executable, "-m", "mkdocs", "build", *flags.split(), "--config-file"]
    path = copy(tmp_path, "# A\n[b](b.md)\n")
    assert subprocess.run([*command, str(path)], capture_output=True).returncode == 1
    (tmp_path / "docs" / "index.md").write_text("# A\n")
    assert subprocess.run([*command, str(path)], capture_output=True).returncode == 0


def test_a_page_that_no_menu_lists_ends_the_build(tmp_path):
    path = copy(tmp_path, "# A\n")
    build(load_config(str(path)))
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    with pytest.raises(Abort):
        build(load_config(str(path)))


def test_a_mistake_in_the_parameters_ends_the_build_in_one_line(monkeypatch):
    pages = hook()
    monkeypatch.setattr(pages, "load", lambda path: parse(Params, {}, file=path.name))
    with pytest.raises(PluginError, match=r"^params\.yaml: [^\n]*missing parameter"):
        pages.on_config(None)
