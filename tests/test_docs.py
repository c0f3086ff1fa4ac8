"""The documentation: every page can be reached, no link is broken, and what pages show is what the project has."""

import re
from pathlib import Path

import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort

from tests.helpers import METHODS, ROOT


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) < 200


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", ROOT / "benchmarks" / "README.md"], ids=lambda path: path.parent.name
)
def test_links_of_pages_outside_the_site_lead_somewhere(path):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", path.read_text().replace("\n", " "))
    assert not [link for link in links if not (path.parent / link).exists()]


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
    for part in ("The paper", "Knobs", "Figures measured here", "The code"):
        assert f">{part}" in text, part
    assert f"ssl/selfsup/methods/{method}.py" in text


def test_pages_load_nothing_from_elsewhere(site):
    for page in site.rglob("*.html"):
        assert not re.findall(r'(?:src|href|srcset)="(?:https?:)?//[^"]*', page.read_text()), page.name


def copy(tmp_path: Path, page: str) -> Path:
    """A project of one page, `page`, with the settings of this one."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(page)
    text = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[0]
    text = re.sub(r"^(hooks|extra_css):.*$", "", text, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(text + "\nnav: [index.md]\n")
    return tmp_path / "mkdocs.yml"


@pytest.mark.parametrize("page", ["# A\n[b](b.md)\n", "# A\n[b](#b)\n", "# A\n![b](b.png)\n"])
def test_a_broken_link_ends_the_build(tmp_path, page):
    with pytest.raises(Abort):
        build(load_config(str(copy(tmp_path, page))))


def test_a_page_that_no_menu_lists_ends_the_build(tmp_path):
    path = copy(tmp_path, "# A\n")
    build(load_config(str(path)))
    (tmp_path / "docs" / "lost.md").write_text("# Lost\n")
    with pytest.raises(Abort):
        build(load_config(str(path)))
