"""JSON Lines files that survive `kill -9`.

A process that dies while it appends can leave a partial last line. Readers skip it with a
warning, and the next append removes it first, so that it never ends up in the middle of the file.
JSON has no NaN or infinity: they are written as the strings "NaN", "Infinity" and "-Infinity", and
`restore_floats` converts them back.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.utils.files import disk_errors, replace_file, replacing
from tinker_cookbook.utils.json_types import Json, Plain

logger = logging.getLogger(__name__)

_SURROGATE = re.compile("[\ud800-\udfff]")
_NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Line(NamedTuple):
    raw: bytes  # as in the file, with its newline
    value: dict[str, Any]


def encode(value: Plain, *, indent: int | None = None, compact: bool = False) -> str:
    """Encode plain data as strict JSON; floats round-trip exactly. compact: without spaces."""
    text = json.dumps(
        _finite(value),
        ensure_ascii=False,
        allow_nan=False,
        indent=indent,
        separators=(",", ":") if compact else None,
    )
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate has no UTF-8 bytes, but it has a JSON escape
        text = _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    return text


def _finite(value: Plain) -> Plain:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return value


def restore_floats(record: Mapping[str, Json]) -> dict[str, Json]:
    """The record with the strings "NaN", "Infinity" and "-Infinity" as floats again."""
    return {k: _NON_FINITE.get(v, v) if isinstance(v, str) else v for k, v in record.items()}


def read_lines(path: str | os.PathLike[str]) -> list[Line]:
    """All objects of the file in order; [] if there is no such file.

    A partial last line is skipped with a warning. Raises DataFormatError with file and line number
    for any other line that is not a JSON object.
    """
    try:
        return list(iter_lines(path))
    except FileNotFoundError:
        return []


def iter_lines(path: str | os.PathLike[str]) -> Iterator[Line]:
    """Like `read_lines`, one at a time; the file must exist."""
    with open(path, "rb") as file:
        for number, raw in enumerate(file, start=1):
            value, whole = _parse(raw), raw.endswith(b"\n")
            if value is not None:
                yield Line(raw if whole else raw + b"\n", value)
            elif not whole:  # only the last line can lack its newline
                logger.warning("%s:%d is a partial line; it is skipped", path, number)
            elif raw.strip():
                shown = raw.decode(errors="replace").strip()[:80]
                raise DataFormatError(f"{path}:{number} is not a JSON object: {shown!r}")


def _parse(raw: bytes) -> dict[str, Json] | None:
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):  # RecursionError: nested too deeply
        return None
    return value if isinstance(value, dict) else None


def append_line(path: str | os.PathLike[str], record: Mapping[str, Plain]) -> None:
    """Append one line and fsync. Raises StorageError and leaves the file as it was on failure."""
    line = encode(record).encode() + b"\n"
    with disk_errors(path), open(path, "ab+", buffering=0) as file:
        _repair_tail(file, path)
        size = file.seek(0, os.SEEK_END)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(size)
            raise


def write_lines(path: str | os.PathLike[str], records: Iterable[Mapping[str, Plain]]) -> None:
    """Replace the file atomically by these records, without holding all of them in memory."""
    with replacing(path) as file:
        for record in records:
            file.write(encode(record, compact=True).encode() + b"\n")


def _repair_tail(file: FileIO, path: str | os.PathLike[str]) -> None:
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return
    file.seek(0)
    data = file.read()
    start = data.rfind(b"\n") + 1
    if _parse(data[start:]) is not None:
        file.write(b"\n")
    else:
        logger.warning("%s ended in a partial line; it is removed", path)
        file.truncate(start)
    file.seek(0, os.SEEK_END)


def keep_lines(path: str | os.PathLike[str], keep: Callable[[dict[str, Any]], bool]) -> int:
    """Keep only the lines that `keep` accepts, byte for byte; returns how many were removed."""
    lines = read_lines(path)
    kept = [line for line in lines if keep(line.value)]
    if Path(path).exists():
        replace_file(path, b"".join(line.raw for line in kept))
    return len(lines) - len(kept)
