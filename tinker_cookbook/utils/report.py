"""Build self-contained HTML pages: one file, no network, light and dark, safe with any text.

    body = [element("h1", "Rollouts"), table(rows, header=("metric", "value"))]
    replace_file(path, page("Rollouts", body, script=SCRIPT, data=rollouts))

Markup has the type `Html`; everything else is text and is escaped, so that nothing written by a
model or an environment can become markup. Each page has a content security policy: the browser
itself blocks other scripts than the page's own, and all network requests.
"""

from __future__ import annotations

import base64
import hashlib
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.display import short
from tinker_cookbook.utils.json_types import Plain

DATA_ID = "data"  # id of the element with the page's data

_STYLE = Path(__file__).with_suffix(".css")
_VOID = frozenset({"br", "input", "meta"})  # elements without content or end tag
_NO_CHARACTER = re.compile("[\x00\ud800-\udfff]")  # not allowed in HTML or UTF-8


class Html(str):
    """Markup that is inserted into a page unescaped."""


Text: TypeAlias = str | int | float | bool | None
Content: TypeAlias = "Text | Sequence[Content]"  # None is skipped


def escape(text: Text) -> Html:
    """Escape a text for content and quoted attributes; `Html` is returned unchanged."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(_NO_CHARACTER.sub("\ufffd", str(text))))


def element(tag: str, *children: Content, **attributes: Text) -> Html:
    """`<tag name="value">children</tag>`.

    children: markup, text, numbers, or lists of them; None is skipped. attributes: `class_` becomes
    class and `data_x` data-x; True gives an attribute without value, False and None are skipped.
    """
    names = {name.rstrip("_").replace("_", "-"): value for name, value in attributes.items()}
    head = "".join(
        f" {name}" if value is True else f' {name}="{escape(value)}"'
        for name, value in names.items()
        if value is not None and value is not False
    )
    if tag in _VOID:
        return Html(f"<{tag}{head}>")
    return Html(f"<{tag}{head}>{_joined(children)}</{tag}>")


def _joined(children: Sequence[Content]) -> Html:
    return Html(
        "".join(
            escape(child) if isinstance(child, str | int | float) else _joined(child)
            for child in children
            if child is not None
        )
    )


def table(rows: Iterable[Sequence[Text]], header: Sequence[str] = ()) -> Html:
    """A table; numbers are shortened and right-aligned."""
    head = [element("tr", [element("th", name) for name in header])] if header else []
    return element("table", head, [element("tr", [_cell(cell) for cell in row]) for row in rows])


def _cell(value: Text) -> Html:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return element("td", short(value), class_="number", title=repr(value))
    return element("td", value)


def metrics_table(metrics: Mapping[str, Text]) -> Html:
    """Names and values in the order of the mapping, in as many columns as fit."""
    return element("div", table(metrics.items()), class_="columns")


def fold(summary: Content, *children: Content, **attributes: Text) -> Html:
    """Children that are collapsed until the reader clicks on the summary."""
    return element("details", element("summary", summary), *children, **attributes)


def page(
    title: str,
    body: Sequence[Content],
    *,
    style: str = "",
    script: str = "",
    data: Plain = None,
) -> str:
    """A whole page. style, script: source text of the program itself, never data.

    data: plain data, which the script reads with
    `JSON.parse(document.getElementById("data").textContent)`.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(_STYLE.read_text(encoding="utf-8") + style)),
    )
    scripts = [data_element(data), element("script", Html(script))] if script else []
    return f'<!doctype html>\n<html lang="en">{head}{element("body", list(body), scripts)}</html>\n'


def data_element(value: Plain) -> Html:
    """Embed plain data for the page's script; NaN and infinity become strings (see `jsonl`)."""
    # an unescaped "<" could end the element, or open a comment that swallows its end tag
    text = jsonl.encode(value, compact=True).replace("<", "\\u003c")
    return element("script", Html(text), id=DATA_ID, type="application/json")
