"""For tests of pages: texts that break HTML that is not escaped, and what a browser reads."""

from __future__ import annotations

import re
from html.parser import HTMLParser

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    "</style></title></pre><img src=x onerror=alert(1)>",
    "\"' onmouseover='alert(1)' &lt; & &amp;",
    "a\x00b\ud800c\udfff",
    "]]> \u2028 \u202e \x1b[31m \r\n\t é 字 🙂",
]


class Elements(HTMLParser):
    """Every element as (tag, attributes), and the text inside each tag."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], "every element is closed, in order"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "input", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def tags(self) -> list[str]:
        return [tag for tag, _ in self.found]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def shown(text: str) -> str:
    return re.sub("[\x00\ud800-\udfff]", "\ufffd", text)
