"""Structured logging: a tree of sections with texts and tables, as an HTML page or JSON.

    with init_trace("Evaluation", path="eval.html") as tree:
        with scope_header("Problem 3"):
            log_text(f"expected {answer}")
            table([{"try": 1, "reward": 0.5}, {"try": 2, "reward": 1.0}])
    write_trace_json(tree, "eval_logtree.json")

Log functions may be called anywhere below `init_trace`, also in tasks started from there; elsewhere
they do nothing. What an environment logs in its `step` appears in the run's transcripts, in the
`logs` of that step.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar, overload

from tinker_cookbook.utils import jsonl, report
from tinker_cookbook.utils.files import replace_file
from tinker_cookbook.utils.misc_utils import each_call_in
from tinker_cookbook.utils.plain_data import plain
from tinker_cookbook.utils.report import Html, element

P = ParamSpec("P")
R = TypeVar("R")
Cell = str | float | None


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class Details:
    """A long text, collapsed under its summary."""

    summary: str
    text: str


@dataclass(frozen=True)
class Table:
    """A table: column names and rows of cells."""

    columns: list[str]
    rows: list[list[Cell]]
    caption: str | None = None


@dataclass
class Scope:
    """A section with its items in the order in which they were logged."""

    title: str
    children: list[Text | Details | Table | Scope] = field(default_factory=list)


_scope: ContextVar[Scope | None] = ContextVar("scope", default=None)
_disabled: ContextVar[bool] = ContextVar("disabled", default=False)


@contextmanager
def init_trace(
    title: str, path: str | os.PathLike[str] | None = None, write_on_error: bool = True
) -> Iterator[Scope]:
    """Start a new tree for the block. path: the HTML page to write at its end; None: no page.

    write_on_error: write the page even if the block raises.
    """
    tree = Scope(title)
    try:
        with _within(tree):
            yield tree
    except BaseException:
        if write_on_error and path is not None:
            _write_page(tree, path)
        raise
    if path is not None:
        _write_page(tree, path)


@contextmanager
def scope_header(title: str) -> Iterator[None]:
    """Make the block a subsection of the current section."""
    section = Scope(title)
    _add(section)
    with _within(section) if _scope.get() is not None else nullcontext():
        yield


@overload
def scope_header_decorator(title: Callable[P, R]) -> Callable[P, R]: ...
@overload
def scope_header_decorator(
    title: str | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...
def scope_header_decorator(
    title: Callable[P, R] | str | None = None,
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Make every call of a function, sync or async, a section (default title: its name)."""
    if title is None or isinstance(title, str):
        return lambda function: _in_section(function, title or function.__name__)
    return _in_section(title, title.__name__)


def _in_section(function: Callable[P, R], title: str) -> Callable[P, R]:
    return each_call_in(function, lambda: scope_header(title))


@contextmanager
def scope_disable() -> Iterator[None]:
    """Discard everything that the block logs."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def optional_enable_logging(enable: bool) -> AbstractContextManager[None]:
    return nullcontext() if enable else scope_disable()


@contextmanager
def collecting(title: str) -> Iterator[Scope]:
    """Collect what the block logs in a tree of its own, and in the enclosing tree, if any."""
    tree = Scope(title)
    with _within(tree):
        yield tree
    if tree.children:
        _add(tree)


def log_text(text: str) -> None:
    """Log a paragraph."""
    _add(Text(str(text)))


def details(text: str, summary: str = "details") -> None:
    """A long text, collapsed under its summary."""
    _add(Details(str(summary), str(text)))


def table(rows: Sequence[Mapping[str, Cell]], caption: str | None = None) -> None:
    """Log a table with one row per mapping; columns are the keys in order of first appearance."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    _add(Table(columns, [[row.get(key) for key in columns] for row in rows], caption))


def table_from_dict(data: Mapping[str, Cell], caption: str | None = None) -> None:
    """Log a table with one row per key and value."""
    _add(Table(["key", "value"], [[key, value] for key, value in data.items()], caption))


def write_trace_json(tree: Scope, path: str | os.PathLike[str]) -> None:
    """Write the tree as JSON: sections {"title", "children"}, texts {"text"}, details {"summary",
    "text"} and tables {"columns", "rows", "caption"}."""
    replace_file(Path(path), jsonl.encode(plain(dataclasses.asdict(tree)), indent=2) + "\n")


def as_text(tree: Scope) -> str:
    """The items of a section as text, one per line, subsections indented."""
    return "\n".join(_lines(tree))


@contextmanager
def _within(section: Scope) -> Iterator[None]:
    token = _scope.set(section)
    try:
        yield
    finally:
        _scope.reset(token)


def _add(item: Text | Details | Table | Scope) -> None:
    section = _scope.get()
    if section is not None and not _disabled.get():
        section.children.append(item)


def _write_page(tree: Scope, path: str | os.PathLike[str]) -> None:
    body = [element("h1", tree.title), *(_html(child, 2) for child in tree.children)]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    replace_file(Path(path), report.page(tree.title, body))


def _html(item: Text | Details | Table | Scope, level: int) -> Html:
    match item:
        case Text(text):
            return element("p", text, style="white-space: pre-wrap")
        case Details(summary, text):
            return report.fold(summary, element("pre", text, style="white-space: pre-wrap"))
        case Table(columns, rows, caption):
            title = None if caption is None else element("p", caption)
            return element("div", title, report.table(rows, header=columns))
        case Scope(title, children):
            heading = element(f"h{min(level, 6)}", title)
            return element("section", heading, [_html(each, level + 1) for each in children])


def _lines(tree: Scope) -> Iterator[str]:
    for child in tree.children:
        match child:
            case Text(text):
                yield text
            case Details(summary, text):
                yield f"{summary}: {text}"
            case Table(columns, rows, caption):
                yield from [] if caption is None else [caption]
                for row in rows:
                    yield ", ".join(f"{name} {value}" for name, value in zip(columns, row))
            case Scope(title):
                yield f"{title}:"
                yield from (f"  {line}" for line in _lines(child))
