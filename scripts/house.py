"""Figures of the code that is not tests: import circles, lengths of functions, holes in its types.

    .venv/bin/python scripts/house.py            # 40 files with the most holes
    .venv/bin/python scripts/house.py 10

tests/house_test.py holds the code to bounds on them.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tinker_cookbook", "recipes")
# folders whose modules import each other by their bare names
PROGRAMS = ("scripts", "scripts/bench")
HOLES = ("Any", "object", "cast")

Graph = Mapping[str, Iterable[str]]


def sources(*folders: str, root: Path = ROOT) -> list[Path]:
    """Modules under these folders, without tests and what only tests import."""
    files = {file for folder in folders for file in (root / folder).rglob("*.py")}
    return sorted(f for f in files if not is_of_tests(f))


def is_of_tests(file: Path) -> bool:
    """A test, its fixtures or its helpers. tinker_cookbook/testing.py is for users, too."""
    helpers = file.name == "testing.py" and file.parent.name != "tinker_cookbook"
    return helpers or file.name == "conftest.py" or file.name.endswith("_test.py")


# -- imports


def module_name(file: Path, root: Path) -> str:
    path = file.relative_to(root)
    if path.parts[0] not in PACKAGES:
        return path.stem
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path = ROOT) -> Graph:
    """What each module imports of the others, wherever the statement stands: in a function and
    under TYPE_CHECKING, too. That a module's package is imported before it does not count."""
    files = {module_name(f, root): f for f in sources(*PACKAGES, *PROGRAMS, root=root)}
    graph = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(file.read_text(), str(file))
        wanted = {each for node in ast.walk(tree) for each in _imported(node, package, files)}
        graph[name] = sorted(wanted - {name})
    return graph


def _imported(node: ast.AST, package: str, known: Mapping[str, Path]) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if alias.name in known)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*above, *filter(None, [node.module])])
        for alias in node.names:
            inner = f"{base}.{alias.name}"
            yield from [inner] if inner in known else [base] if base in known else []


def circles(graph: Graph) -> list[list[str]]:
    """Groups of modules each of which reaches every other one: strongly connected components."""
    reached = {name: _reachable(graph, name) for name in graph}
    found = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in graph
    }
    return sorted(sorted(group) for group in found if group)


def _reachable(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += graph[name]
    return seen


def explain(circle: list[str], graph: Graph) -> str:
    """A circle and the imports it is made of."""
    edges = [f"{name} -> {other}" for name in circle for other in graph[name] if other in circle]
    return "\n  ".join([f"{len(circle)} modules:", *edges])


# -- functions


class Function(NamedTuple):
    lines: int
    place: str


def functions(files: Iterable[Path]) -> list[Function]:
    """Every function and method with its lines from `def` to its last, without its docstring;
    decorators do not count, functions inside it do."""
    return [
        Function(_lines(node), f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
        for file in files
        for node in ast.walk(ast.parse(file.read_text(), str(file)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert node.end_lineno is not None
    lines, first = node.end_lineno - node.lineno + 1, node.body[0]
    if ast.get_docstring(node, clean=False) is not None:
        assert first.end_lineno is not None
        lines -= first.end_lineno - first.lineno + 1
    return lines


# -- types


class Holes(NamedTuple):
    holes: int
    lines: int

    @property
    def per_thousand(self) -> float:
        return 1000 * self.holes / max(self.lines, 1)


def count_holes(text: str) -> Holes:
    """Where the type checker is told to look away: the names Any, object and cast outside import
    statements, and `type: ignore`; with the number of lines, empty ones too."""
    holes, importing, beginning = 0, False, True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            holes += "type: ignore" in token.string
        elif token.type == tokenize.NEWLINE:
            beginning = True
        elif token.type == tokenize.NAME:
            importing = token.string in ("import", "from") if beginning else importing
            holes += token.string in HOLES and not importing
            beginning = False
        elif token.type == tokenize.OP:
            beginning = token.string == ";"
    return Holes(holes, text.count("\n"))


def added(parts: Iterable[Holes]) -> Holes:
    pairs = list(parts)
    return Holes(sum(each.holes for each in pairs), sum(each.lines for each in pairs))


def holes_by_file() -> dict[str, Holes]:
    return {
        str(file.relative_to(ROOT)): count_holes(file.read_text()) for file in sources(*PACKAGES)
    }


def holes_by_package(files: Mapping[str, Holes]) -> dict[str, Holes]:
    groups: dict[str, list[Holes]] = defaultdict(list)
    for name, holes in files.items():
        groups["/".join(name.split("/")[:-1][:2])].append(holes)
    return {name: added(group) for name, group in groups.items()}


def table(rows: Mapping[str, Holes]) -> str:
    """By number of holes."""
    lines = ["holes  lines  per 1,000"]
    for name, each in sorted(rows.items(), key=lambda row: -row[1].holes):
        lines.append(f"{each.holes:5}  {each.lines:5}  {each.per_thousand:9.1f}  {name}")
    return "\n".join(lines)


def main(worst: int) -> None:
    graph = import_graph()
    found = circles(graph)
    print(f"{len(found)} import circles among {len(graph)} modules")
    for circle in found:
        print(explain(circle, graph))
    every = functions(sources(*PACKAGES, *PROGRAMS))
    middle = median(each.lines for each in every)
    print(f"\n{len(every)} functions, median {middle} lines; the longest:")
    for each in sorted(every, reverse=True)[:10]:
        print(f"{each.lines:5}  {each.place}")
    files = holes_by_file()
    total = added(files.values())
    print(f"\n{total.holes} holes in the types, {total.per_thousand:.1f} per 1,000 lines")
    print(table(holes_by_package(files)))
    print(f"\n{worst} files with the most")
    most = sorted(files, key=lambda name: -files[name].holes)[:worst]
    print(table({name: files[name] for name in most}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
