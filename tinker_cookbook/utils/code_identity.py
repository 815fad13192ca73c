"""Digests of the user code that a configuration refers to.

A run with `data=my_env:GuessNumber` executes my_env.py. Module and name are part of the plain
configuration (`plain_data.plain`); the digest of the file is kept separately, because only the user
can judge an edit: with a corrected typo it is the same run, with another reward it is not.

User code is everything outside Python and this package with its recipes (code.diff covers those).
An installed package counts by its version, any other module by its file and the files that it
imports from below the same import directory.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import re
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path

from tinker_cookbook.utils.json_types import Json, Plain
from tinker_cookbook.utils.plain_data import CLASS, PACKAGE, REPR, module_name

_OURS = {PACKAGE, "recipes"}
_REFERENCE = re.compile(r"([A-Za-z_][\w.]*):[A-Za-z_<][\w.<>]*")
_INSTALLED = {Path(sysconfig.get_path(key)).resolve() for key in ("purelib", "platlib")}

Code = dict[str, dict[str, str]]
"""Module -> file below the folder it is imported from (or "version") -> sha256 (or the version)."""


def user_code(config: Plain) -> Code:
    """The code that a plain configuration refers to, by class tags and module:Name values."""
    return {name: _content(name) for name in sorted(modules(config))}


def modules(config: Plain) -> set[str]:
    """The user modules that a plain configuration refers to."""
    return set(_modules(config))


def edited(there: Mapping[str, Mapping[str, str]], here: Code) -> list[str]:
    """The names of files or packages that differ, among modules that both sides have."""
    found = []
    for module in sorted(there.keys() & here.keys()):
        was, now = there[module], here[module]
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name):
                versions = f"{was.get(name)} -> {now.get(name)}"
                found.append(f"{module} ({versions})" if name == _VERSION else name)
    return list(dict.fromkeys(found))


def without_modules(config: Mapping[str, Json]) -> dict[str, Json]:
    """Replace module:Name by Name, the form in which older runs stored classes."""
    kept = {key: _without_modules(value) for key, value in config.items()}
    if CLASS in kept:
        kept[CLASS] = str(kept[CLASS]).rpartition(":")[2]
    return kept


def _without_modules(value: Json) -> Json:
    if isinstance(value, dict):
        known_by_repr = REPR in value and CLASS in value
        return value[REPR] if known_by_repr else without_modules(value)
    return [_without_modules(each) for each in value] if isinstance(value, list) else value


_VERSION = "version"


def _modules(config: Plain) -> Iterator[str]:
    if isinstance(config, Mapping):
        for value in config.values():
            yield from _modules(value)
    elif isinstance(config, list):
        for value in config:
            yield from _modules(value)
    elif isinstance(config, str) and (match := _REFERENCE.fullmatch(config)):
        root = match[1].partition(".")[0]
        if root in _OURS or (root in sys.stdlib_module_names and root != "__main__"):
            return
        if _file(match[1]) is not None or match[1] == module_name("__main__"):
            yield match[1]


def _file(module: str) -> Path | None:
    """The source file of an imported module or of the program."""
    loaded = sys.modules.get(module)
    if loaded is None and module == module_name("__main__"):
        loaded = sys.modules.get("__main__")
    file = getattr(loaded, "__file__", None)
    return Path(file).resolve() if file else None


def _content(module: str) -> dict[str, str]:
    file = _file(module)
    if file is None or not file.is_file():  # defined in an interactive session
        return {}
    if any(file.is_relative_to(folder) for folder in _INSTALLED):
        root = module.partition(".")[0]
        for name in importlib.metadata.packages_distributions().get(root, []):
            return {_VERSION: importlib.metadata.version(name)}
    depth = module.count(".") + (file.name == "__init__.py")
    folder = file.parents[depth] if depth < len(file.parents) else file.parent
    digests: dict[str, str] = {}
    _add(file, module, folder, digests)
    return dict(sorted(digests.items()))


def _add(file: Path, module: str, folder: Path, digests: dict[str, str]) -> None:
    """Add the digest of a file and of the files that it imports from below `folder`."""
    name = file.relative_to(folder).as_posix()
    if name in digests:
        return
    content = file.read_bytes()
    digests[name] = hashlib.sha256(content).hexdigest()
    if file.suffix != ".py":
        return
    package = module if file.name == "__init__.py" else module.rpartition(".")[0]
    for imported in _imports(content, package):
        parts = imported.split(".")
        # importing a submodule runs the __init__.py of its packages first
        for end in range(1, len(parts) + 1):
            path = folder.joinpath(*parts[:end])
            for each in (path.with_name(f"{path.name}.py"), path / "__init__.py"):
                if parts[0] not in _OURS and each.is_file():
                    _add(each, ".".join(parts[:end]), folder, digests)


def _imports(source: bytes, package: str) -> Iterator[str]:
    """Absolute names of everything that the file may import as a module, at any place in it."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):  # edited since it was imported, and broken now
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            name = node.module or ""
            if node.level:
                parts = package.split(".")
                name = ".".join([*parts[: len(parts) - node.level + 1], *name.split(".")])
            yield from (f"{name}.{alias.name}".strip(".") for alias in node.names)
