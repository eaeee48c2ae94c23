"""A report read again: its sections, texts, tables and charts."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

SECTIONS = [
    "summary",
    "loss-and-perplexity-per-codebook-training-",
    "codebook-usage",
    "validation",
    "unit-quality-over-steps-and-layers",
    "evaluation-over-layers-abx-pnmi-",
    "phones-and-units",
    "utterances",
    "optimisation",
    "speed",
    "config",
    "environment",
]
TRAINING = SECTIONS[1]
ALLOWED = re.findall(
    r"\w+",
    "html head meta title style body h1 h2 h3 p ul li b small section div table tr th td figure "
    "figcaption details summary svg desc path g text script",
)
VOID = {"meta"}


class Page(HTMLParser):
    """A parsed report: text, rows of tables and charts of each section.

    Raises AssertionError where tags do not close in order, or where one has no business there.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.sections: list[str] = []
        self.text: dict[str, str] = {"": ""}
        self.rows: dict[str, list[list[str]]] = {"": []}
        self.charts: dict[str, dict[str, dict[str, Any]]] = {"": {}}
        self.described: list[tuple[str, str]] = []
        self.scripts = 0
        self._open: list[str] = []
        self._in = ""
        self._hover: str | None = None
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        assert tag in ALLOWED, tag
        assert not [name for name in given if name.startswith("on") or name in ("src", "href")]
        self.scripts += tag == "script"
        if tag not in VOID and not (tag == "path" and "/>" in self.get_starttag_text()):
            self._open.append(tag)
        if tag == "section":
            self._in = str(given["id"])
            self.sections.append(self._in)
            self.text[self._in], self.rows[self._in], self.charts[self._in] = "", [], {}
        elif tag == "tr":
            self.rows[self._in].append([])
        elif tag in ("td", "th"):
            self.rows[self._in][-1].append("")
        elif tag == "svg":
            self._hover = given.get("data-hover")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        self._in = "" if tag == "section" else self._in

    def handle_data(self, data: str) -> None:
        self.text[self._in] += data
        within = self._open[-1] if self._open else ""
        if within in ("td", "th"):
            self.rows[self._in][-1][-1] += data
        elif within == "title" and self._hover:
            self.charts[self._in][data] = json.loads(self._hover)
        elif within == "desc":
            self.described.append((self._in, data))

    def cell(self, section: str, row: str, column: int = 1) -> str:
        """The cell of the first row of that name."""
        return next(cells[column] for cells in self.rows[section] if cells[0] == row)

    def drawn(self, section: str, title: str, line: int = 0) -> dict[float, float]:
        """Value by step of a line of a chart."""
        _, xs, ys, *_ = self.charts[section][title]["lines"][line]
        return dict(zip(xs, ys, strict=True))


def read(path: Path) -> Page:
    return Page(path.read_text())
