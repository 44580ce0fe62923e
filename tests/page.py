"""Reads the report's pages as a browser would: is everything closed, what is loaded, what is said."""

from __future__ import annotations

import re
from html.parser import HTMLParser


class Page(HTMLParser):
    """Collects tags that are open, attributes that load something, ids and what refers to them, and the text."""

    VOID = frozenset({"meta", "link", "br", "img", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.words: list[str] = []
        self.ids: list[str] = []
        self.used: set[str] = set()
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        """What is said, with single spaces."""
        return re.sub("[ \n]+", " ", " ".join(self.words))

    def handle_starttag(self, tag, attributes):
        if tag not in self.VOID:
            self.open.append(tag)
        self._look(attributes)

    def handle_startendtag(self, tag, attributes):
        self._look(attributes)

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.words.append(data)

    def _look(self, attributes):
        for key, value in attributes:
            if key in ("src", "href", "xlink:href", "srcset", "data", "action"):
                self.loads.append(value)
            if key == "id":
                self.ids.append(value)
            elif key in ("href", "xlink:href") and value.startswith("#"):
                self.used.add(value[1:])
            elif "url(#" in (value or ""):
                self.used.add(value.split("url(#")[1].split(")")[0])


def check_alone(text: str) -> Page:
    """The page is whole, needs nothing from elsewhere, has a dark side; what refers to something finds one thing."""
    page = Page(text)
    assert page.open == []
    assert page.loads and all(target.startswith(("#", "data:")) for target in page.loads)
    for loading in ("<script", "<link", "@import", "<iframe", "url(http", "@font-face"):
        assert loading not in text
    assert "prefers-color-scheme: dark" in text
    assert page.used and page.used <= set(page.ids)
    targets = [name for name in page.ids if name in page.used]
    assert len(targets) == len(set(targets))  # two pictures must not share a marker or a clip path
    return page
