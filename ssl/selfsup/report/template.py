"""Pages from templates: what is put into one is escaped, but for drawings, whose text charts.py has escaped already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]


def render(template: str, /, **contents: Any) -> str:
    """A template of `report` or `compare`, filled in. Every name in it must be given."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader([PACKAGE / room for room in ("report", "compare")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["svg"] = Markup
    return environment.get_template(template).render(**contents)
