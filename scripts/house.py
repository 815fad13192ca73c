"""Code metrics (tests excluded): import cycles, function lengths, holes in the types.

    .venv/bin/python scripts/house.py            # lists the 40 files with the most holes
    .venv/bin/python scripts/house.py 10

tests/house_test.py enforces limits on them.
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
# Folders of scripts, whose modules import each other by bare name.
PROGRAMS = ("scripts", "scripts/bench")
HOLES = ("Any", "object", "cast")

Graph = Mapping[str, Iterable[str]]


def source_files(*folders: str, root: Path = ROOT) -> list[Path]:
    """The Python files under these folders, without tests."""
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
    """The project's modules that each module imports.

    Includes imports in functions and under TYPE_CHECKING: they make a cycle just as hard to read.
    The implicit import of a module's parent package does not count.
    """
    files = {module_name(f, root): f for f in source_files(*PACKAGES, *PROGRAMS, root=root)}
    graph = {}
    for name, file in files.items():
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        tree = ast.parse(file.read_text(), str(file))
        wanted = {
            found for node in ast.walk(tree) for found in _imported_modules(node, package, files)
        }
        graph[name] = sorted(wanted - {name})
    return graph


def _imported_modules(node: ast.AST, package: str, known: Mapping[str, Path]) -> Iterator[str]:
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


def import_cycles(graph: Graph) -> list[list[str]]:
    """Strongly connected components: groups of modules that all import each other indirectly."""
    reached = {name: _reachable_modules(graph, name) for name in graph}
    groups = {
        frozenset(other for other in reached[name] if name in reached[other]) for name in graph
    }
    return sorted(sorted(group) for group in groups if group)


def _reachable_modules(graph: Graph, start: str) -> set[str]:
    seen: set[str] = set()
    queue = list(graph[start])
    while queue:
        name = queue.pop()
        if name not in seen:
            seen.add(name)
            queue += graph[name]
    return seen


def describe_cycle(cycle: list[str], graph: Graph) -> str:
    """A cycle and its import edges."""
    edges = [f"{name} -> {other}" for name in cycle for other in graph[name] if other in cycle]
    return "\n  ".join([f"{len(cycle)} modules:", *edges])


# -- functions


class Function(NamedTuple):
    lines: int
    place: str


def functions(files: Iterable[Path]) -> list[Function]:
    """Every function and method with its length, from `def` to its last line.

    Docstrings and decorators do not count; nested functions do.
    """
    return [
        Function(_count_lines(node), f"{file.relative_to(ROOT)}:{node.lineno} {node.name}")
        for file in files
        for node in ast.walk(ast.parse(file.read_text(), str(file)))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


def _count_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
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
    """Count the places that disable type checking, and all lines.

    Holes are `type: ignore` and the names Any, object and cast outside of import statements.
    """
    holes, in_import, at_start = 0, False, True
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            holes += "type: ignore" in token.string
        elif token.type == tokenize.NEWLINE:
            at_start = True
        elif token.type == tokenize.NAME:
            in_import = token.string in ("import", "from") if at_start else in_import
            holes += token.string in HOLES and not in_import
            at_start = False
        elif token.type == tokenize.OP:
            at_start = token.string == ";"
    return Holes(holes, text.count("\n"))


def sum_holes(parts: Iterable[Holes]) -> Holes:
    pairs = list(parts)
    return Holes(sum(part.holes for part in pairs), sum(part.lines for part in pairs))


def holes_by_file() -> dict[str, Holes]:
    return {
        str(file.relative_to(ROOT)): count_holes(file.read_text())
        for file in source_files(*PACKAGES)
    }


def holes_by_package(files: Mapping[str, Holes]) -> dict[str, Holes]:
    groups: dict[str, list[Holes]] = defaultdict(list)
    for name, holes in files.items():
        groups["/".join(name.split("/")[:-1][:2])].append(holes)
    return {name: sum_holes(group) for name, group in groups.items()}


def format_table(rows: Mapping[str, Holes]) -> str:
    """Format as a table, most holes first."""
    lines = ["holes  lines  per 1,000"]
    for name, count in sorted(rows.items(), key=lambda row: -row[1].holes):
        lines.append(f"{count.holes:5}  {count.lines:5}  {count.per_thousand:9.1f}  {name}")
    return "\n".join(lines)


def main(worst: int) -> None:
    graph = import_graph()
    cycles = import_cycles(graph)
    print(f"{len(cycles)} import cycles among {len(graph)} modules")
    for cycle in cycles:
        print(describe_cycle(cycle, graph))
    all_functions = functions(source_files(*PACKAGES, *PROGRAMS))
    median_lines = median(function.lines for function in all_functions)
    print(f"\n{len(all_functions)} functions, median {median_lines} lines; the longest:")
    for function in sorted(all_functions, reverse=True)[:10]:
        print(f"{function.lines:5}  {function.place}")
    files = holes_by_file()
    total = sum_holes(files.values())
    print(f"\n{total.holes} holes in the types, {total.per_thousand:.1f} per 1,000 lines")
    print(format_table(holes_by_package(files)))
    print(f"\nthe {worst} files with the most holes")
    most = sorted(files, key=lambda name: -files[name].holes)[:worst]
    print(format_table({name: files[name] for name in most}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 40)
