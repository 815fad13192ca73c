"""Read a YAML file of keys, nested or dotted, as command-line words."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from pathlib import Path
from typing import Any

import yaml

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.json_types import Plain


class _YamlLoader(yaml.SafeLoader):
    """Scalars stay as written, except null: 1e-4 means the same as on the command line.

    (YAML 1.1 would read 1e-4 as a string, `no` as false and 012 as ten.)
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = str(key_node.value)
            if key != "<<" and key in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"key {key!r} twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.endswith((":null", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def read_yaml(name: str) -> Iterator[tuple[str, str]]:
    """Yield the leaves as (dotted key, command-line text). Raises ConfigurationError."""
    if not name:
        raise ConfigurationError("config= is empty; give a YAML file of keys")
    try:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        reason = e.strerror if isinstance(e, OSError) else "not UTF-8 text"
        raise ConfigurationError(f"config={name} cannot be read: {reason}") from None
    try:
        content = yaml.load(text, _YamlLoader)
    except yaml.MarkedYAMLError as e:
        line = f":{e.problem_mark.line + 1}" if e.problem_mark else ""
        reasons = [e.context, e.problem] if str(e.problem).startswith("but") else [e.problem]
        reason = " ".join(filter(None, reasons)) or e.context
        raise ConfigurationError(f"{name}{line} is not YAML: {reason}") from None
    except yaml.YAMLError as e:
        raise ConfigurationError(f"{name} is not YAML: {one_line(e)}") from None
    if content is None:
        content = {}
    if not isinstance(content, dict):
        found = type(content).__name__
        raise ConfigurationError(f"{name} must hold keys and values, but holds a {found}")
    return dotted(content, "")


def dotted(value: Plain, path: str) -> Iterator[tuple[str, str]]:
    """Yield leaves of nested mappings and lists as (dotted key, command-line text)."""
    if isinstance(value, dict) and (value or not path):
        for key, inner in value.items():
            yield from dotted(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list) and value:
        for i, inner in enumerate(value):
            yield from dotted(inner, f"{path}.{i}")
    elif isinstance(value, dict | list):
        yield path, ""  # chz parses an empty text as an empty list or dict
    else:
        yield path, "None" if value is None else str(value)
