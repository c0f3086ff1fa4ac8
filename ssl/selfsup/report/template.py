"""Pages from templates: what is put into one is escaped, but for drawings, whose text charts.py has escaped already."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def render(template: str, /, **contents: Any) -> str:
    """A template of this folder, filled in. Every name in it must be given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(template).render(**contents)
