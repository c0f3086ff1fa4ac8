"""A page as a tree, so that tests ask what it shows and not how it is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser

VOID = {"meta", "img", "br", "link", "input", "hr"}


@dataclass
class Node:
    tag: str
    attributes: dict[str, str] = field(default_factory=dict)
    parts: list[Node | str] = field(default_factory=list)

    def __iter__(self) -> Iterator[Node]:
        """This node and all below it, in the order of the page."""
        yield self
        for part in self.parts:
            if isinstance(part, Node):
                yield from part

    def all(self, *tags: str, **attributes: str) -> list[Node]:
        """Nodes below with one of these tags, and with each of these values among an attribute's words."""
        return [
            node
            for node in self
            if (not tags or node.tag in tags)
            and all(value in node.attributes.get(name.rstrip("_"), "").split() for name, value in attributes.items())
        ]

    @property
    def text(self) -> str:
        """Its text, with single blanks."""
        return " ".join(self._text().split())

    def _text(self) -> str:
        if self.tag in ("script", "style"):
            return ""
        inner = "".join(part if isinstance(part, str) else part._text() for part in self.parts)
        return inner if self.tag in ("a", "strong", "small", "sup", "code", "abbr") else f" {inner} "


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("page")]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].parts.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].parts.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag, f"{tag} closes another tag"

    def handle_data(self, data: str) -> None:
        self.open[-1].parts.append(data)


def read(text: str) -> Node:
    """The tree of a page. Fails on tags that are not closed in order."""
    reader = _Reader()
    reader.feed(text)
    reader.close()
    assert [node.tag for node in reader.open] == ["page"]
    return reader.open[0]


def rows(table: Node) -> dict[str, list[str]]:
    """The texts of a table's data cells by the text of the row's header."""
    lines = [line for body in table.all("tbody") for line in body.all("tr")]
    return {line.all("th")[0].text: [cell.text for cell in line.all("td")] for line in lines}
