"""Read JSON and CSV files record by record, without changing any value.

Table readers need one type per column: they turn 5 into "5" or 5.0, dates into timestamps, and
a list into its JSON text if an earlier row has a string there. Here each row is parsed on its own,
and errors name the file and line.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, NamedTuple

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.json_types import Json

JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
CSV_SUFFIXES = {".csv": ",", ".tsv": "\t"}
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
MAX_DEPTH = 100  # nesting of lists and objects: code that walks a row is recursive

_EXPECTED = "expected one JSON object per line, or one array of objects"
_BOM = b"\xef\xbb\xbf"
_MAX_CELL = 2**31 - 1  # characters; Python's own limit is 131,072
_SPACE = re.compile(r"[ \t\n\r]*")
_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)


class NumberText(str):
    """A JSON number as it is spelled in the file."""


class Record(NamedTuple):
    line: int  # line of the file on which the record starts, from 1
    row: dict[str, Json]
    text: bytes  # the row as JSON
    offset: int | None  # bytes before `text` in the file; None: the file does not contain `text`


@dataclass(frozen=True)
class DataFile:
    """A JSON or CSV file, possibly compressed. delimiter: that of CSV; None for JSON."""

    path: str  # path or URL
    shown: str  # its name in messages
    delimiter: str | None = None
    field: str | None = None  # if the file is one JSON object: the key of its array of rows

    @classmethod
    def of(cls, path: str, shown: str) -> DataFile | None:
        """The file with the reader that its suffix asks for; None for another suffix."""
        end = kind(path)
        if end in JSON_SUFFIXES:
            return cls(path, shown)
        return cls(path, shown, delimiter=CSV_SUFFIXES[end]) if end in CSV_SUFFIXES else None

    @property
    def is_compressed(self) -> bool:
        return self.path.endswith(COMPRESSED)

    def records(self, numbers_as_text: bool = False) -> Iterator[Record]:
        """Yield all records in order. numbers_as_text: numbers as `NumberText`, spelling kept.

        Raises DataFormatError with the line of whatever cannot be parsed.
        """
        try:
            with _opened(self.path) as file:
                if self.delimiter is not None:
                    yield from _csv(file, self)
                else:
                    decoder = _AS_TEXT if numbers_as_text else _AS_VALUES
                    yield from _json(file, self, decoder)
        except (DataFormatError, ConfigurationError, GeneratorExit):
            raise
        except Exception as error:  # each compression library has its own exceptions
            reason = one_line(error, 200)
            raise DataFormatError(f"{self.shown} cannot be read: {reason}") from error


_AS_VALUES = json.JSONDecoder()
_AS_TEXT = json.JSONDecoder(parse_float=NumberText, parse_int=NumberText)


def kind(path: str) -> str:
    """The suffix that tells the format, in lower case: ".jsonl" for "a.jsonl.gz"."""
    name = PurePosixPath(path)
    return (PurePosixPath(name.stem) if name.suffix in COMPRESSED else name).suffix.lower()


def _opened(path: str) -> IO[bytes]:
    if "://" not in path and not path.endswith(COMPRESSED):
        return open(path, "rb")
    import fsspec

    system, place = fsspec.url_to_fs(path) if "://" in path else (fsspec.filesystem("file"), path)
    return io.BufferedReader(system.open(place, "rb", compression="infer"), 1 << 20)


def decode_row(text: bytes, numbers_as_text: bool = False) -> dict[str, Json]:
    """Parse `Record.text` into its row."""
    return (_AS_TEXT if numbers_as_text else _AS_VALUES).decode(text.decode())


def _json(file: IO[bytes], source: DataFile, decoder: json.JSONDecoder) -> Iterator[Record]:
    """Parse one object per line; or one array, or objects that span several lines. The latter two
    are read into memory as a whole."""
    offset = 0
    is_first = True
    for line, raw in enumerate(file, start=1):
        start, offset = offset, offset + len(raw)
        if line == 1 and raw.startswith(_BOM):
            raw, start = raw[len(_BOM) :], start + len(_BOM)
        if not raw or raw.isspace():
            continue
        if is_first and (source.field is not None or raw.lstrip().startswith(b"[")):
            yield from _whole(b"\n" * (line - 1) + raw + file.read(), source, decoder, _in_array)
            return
        try:
            row = decoder.decode(_text(raw, source, line))
        except json.JSONDecodeError as error:
            rest = file.read() if is_first else b""
            if rest.strip() and not rest.lstrip(b"\r\n").startswith(b"{"):
                rest = b"\n" * (line - 1) + raw + rest
                yield from _whole(rest, source, decoder, _one_by_one)
                return
            raise _not_json(source, line, error.msg, error.colno) from error
        except DataFormatError:
            raise
        except (ValueError, RecursionError) as error:  # too many digits, or too deeply nested
            raise _not_json(source, line, _why(error)) from error
        is_first = False
        yield Record(line, _object(row, raw, source, line), raw, start)


Values = Iterator[tuple[int, Json, int]]  # start of a value, the value, its end


def _whole(
    content: bytes,
    source: DataFile,
    decoder: json.JSONDecoder,
    values: Callable[[str, DataFile, json.JSONDecoder], Values],
) -> Iterator[Record]:
    text = _text(content, source)
    line, counted = 1, 0
    try:
        for start, row, end in values(text, source, decoder):
            line, counted = line + text.count("\n", counted, start), start
            raw = text[start:end].encode()
            yield Record(line, _object(row, raw, source, line), raw, None)
    except json.JSONDecodeError as error:
        raise _not_json(source, error.lineno, error.msg, error.colno) from error
    except DataFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise _not_json(source, line, f"{_why(error)} (here or in the next row)") from error


def _one_by_one(text: str, source: DataFile, decoder: json.JSONDecoder) -> Values:
    end = 0
    while (start := _after_space(text, end)) < len(text):
        value, end = decoder.raw_decode(text, start)
        yield start, value, end


def _in_array(text: str, source: DataFile, decoder: json.JSONDecoder) -> Values:
    start = _after_space(text, _start_of_array(text, source, decoder) + 1)
    while text[start : start + 1] != "]":
        value, end = decoder.raw_decode(text, start)
        yield start, value, end
        start = _after_space(text, end)
        if text[start : start + 1] == ",":
            start = _after_space(text, start + 1)
            if text[start : start + 1] == "]":
                raise json.JSONDecodeError("Illegal trailing comma", text, start)
        elif text[start : start + 1] != "]":
            raise json.JSONDecodeError("Expecting ',' delimiter", text, start)
    end = _after_space(text, start + 1)
    if source.field is None and end != len(text):
        raise json.JSONDecodeError("Extra data", text, end)


def _start_of_array(text: str, source: DataFile, decoder: json.JSONDecoder) -> int:
    """Offset of the array of rows: the start of the text, or after the key `source.field`."""
    at = _after_space(text, 0)
    if source.field is None:
        return at
    whole = decoder.decode(text)
    if not isinstance(whole, dict) or not isinstance(whole.get(source.field), list):
        raise DataFormatError(
            f"{source.shown} has no array of rows under {source.field!r}, the field that the"
            " data set's README names"
        )
    at = _after_space(text, at + 1)
    while True:  # no need to check the syntax: the text has been parsed before
        key, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + 1)  # past the colon
        if key == source.field:
            return at
        _, end = decoder.raw_decode(text, at)
        at = _after_space(text, _after_space(text, end) + 1)  # past the comma


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    assert found is not None
    return found.end()


def _object(value: Json, text: bytes, source: DataFile, line: int) -> dict[str, Json]:
    if not isinstance(value, dict):
        shown = text.decode(errors="replace").strip()[:80]
        raise DataFormatError(f"{source.shown}:{line} is not a JSON object: {shown!r}; {_EXPECTED}")
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise _not_json(source, line, _TOO_DEEP)
    return value


_TOO_DEEP = f"lists and objects are nested more than {MAX_DEPTH} deep"


def _depth(text: bytes) -> int:
    depth = deepest = 0
    for found in _STRING_OR_BRACKET.finditer(text):
        if found[0] in (b"[", b"{"):
            depth += 1
            deepest = max(deepest, depth)
        elif found[0] in (b"]", b"}"):
            depth -= 1
    return deepest


def _text(raw: bytes, source: DataFile, line: int | None = None) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        line = line or raw.count(b"\n", 0, error.start) + 1
        reason = f"not UTF-8 text, {error.reason}: {raw[error.start : error.start + 20]!r}"
        raise _not_json(source, line, reason, None) from error


def _not_json(
    source: DataFile, line: int, reason: str, column: int | None = None
) -> DataFormatError:
    place = "" if column is None else f" at column {column}"
    return DataFormatError(
        f"{source.shown}:{line} is not JSON: {reason.removesuffix(' at')}{place}; {_EXPECTED}"
    )


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return _TOO_DEEP
    return one_line(error, 200)


def _csv(file: IO[bytes], source: DataFile) -> Iterator[Record]:
    """Cells are strings exactly as in the file; an empty one is None."""
    csv.field_size_limit(_MAX_CELL)
    assert source.delimiter is not None
    reader = csv.reader(
        io.TextIOWrapper(file, encoding="utf-8-sig", newline=""),
        delimiter=source.delimiter,
        strict=True,
    )
    line = 0
    try:
        names = next(reader, [])
        if doubled := [name for name in names if names.count(name) > 1]:
            raise DataFormatError(
                f"{source.shown}:1 has the column {doubled[0]!r} twice; rename one of them"
            )
        line = reader.line_num
        for cells in reader:
            start, line = line + 1, reader.line_num
            if not cells:  # a blank line
                continue
            if len(cells) != len(names):
                raise DataFormatError(
                    f"{source.shown}:{start} has {len(cells)} cells for {len(names)} columns;"
                    f' put "quotes" around cells that contain {source.delimiter!r} or a newline'
                )
            row: dict[str, Json] = {name: cell or None for name, cell in zip(names, cells)}
            yield Record(start, row, json.dumps(row).encode(), None)
    except csv.Error as error:
        raise DataFormatError(f"{source.shown}:{line + 1} is not CSV: {error}") from error
    except UnicodeDecodeError as error:
        raise DataFormatError(
            f"{source.shown} is not UTF-8 text, {error.reason}, at line {line + 1} or a few lines"
            " below; save it as UTF-8"
        ) from error
