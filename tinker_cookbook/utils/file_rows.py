"""Rows of JSON and CSV files as a sequence that keeps only file offsets in memory."""

from __future__ import annotations

import os
import tempfile
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, TypedDict

from tinker_cookbook.exceptions import DataError, DataFormatError
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.records import DataFile, Record, decode_row

_BUFFER = 1 << 20


class FileRows:
    """The rows of several files in order, as plain values.

    All rows are parsed once at the start, so that no format error can appear in the middle of
    training. Afterwards a row of a plain JSONL file is read from that file each time, and a row of
    any other file (compressed, an array, CSV) from a temporary file of JSON lines. Memory: 32 bytes
    per row.
    """

    def __init__(self, files: Sequence[DataFile], numbers_as_text: bool = False) -> None:
        self._files, self._numbers_as_text = list(files), numbers_as_text
        self._copies: IO[bytes] | None = None  # rows that are not a line of a plain JSONL file
        self._file, self._size, self._sum = array("i"), array("q"), array("I")
        self._start, self._line = array("q"), array("q")
        self.ends: list[int] = []  # for each file, the number of rows up to its end
        columns: dict[str, None] = {}
        for number, file in enumerate(self._files):
            for record in file.records(numbers_as_text):
                self._add(number, file, record)
                if not record.row.keys() <= columns.keys():
                    columns.update(dict.fromkeys(record.row))
            self.ends.append(len(self._file))
        self.column_names = list(columns)
        if self._copies is not None:
            self._copies.flush()

    def _add(self, number: int, file: DataFile, record: Record) -> None:
        start = record.offset
        if start is None or file.is_compressed:
            start = -1 - self._copy(record.text)
        self._file.append(number)
        self._start.append(start)
        self._size.append(len(record.text))
        self._sum.append(zlib.crc32(record.text))
        self._line.append(record.line)

    def _copy(self, text: bytes) -> int:
        """Append `text` to the temporary file; returns its offset there."""
        try:
            if self._copies is None:
                self._copies = tempfile.TemporaryFile(buffering=_BUFFER)  # noqa: SIM115
            at = self._copies.tell()
            self._copies.write(text)
            return at
        except OSError as error:
            raise DataError(
                f"the rows of {self._files[0].shown} cannot be copied to {tempfile.gettempdir()}"
                f" ({error.strerror}): set TMPDIR= to a directory with free space"
            ) from error

    def __len__(self) -> int:
        return len(self._file)

    def __getitem__(self, row: int) -> dict[str, Json]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        return decode_row(self._text(row), self._numbers_as_text)

    def _text(self, row: int) -> bytes:
        start, size = self._start[row], self._size[row]
        if start < 0:
            assert self._copies is not None
            return os.pread(self._copies.fileno(), size, -1 - start)
        path = self._files[self._file[row]].path
        try:
            with open(path, "rb") as file:
                text = os.pread(file.fileno(), size, start)
        except OSError as error:
            raise DataError(f"{self.where(row)} cannot be read again: {error.strerror}") from error
        if zlib.crc32(text) != self._sum[row]:
            raise DataFormatError(
                f"{self.where(row)} is not the line that was read at the start: the file was"
                " changed during the run; restart with a file that does not change"
            )
        return text

    def where(self, row: int) -> str:
        """ "chats.jsonl:17"."""
        return f"{self._files[self._file[row]].shown}:{self._line[row]}"

    def only(self, columns: Sequence[str]) -> FileRows:
        """Keep all columns: leaving some out would save nothing in JSON lines."""
        return self


class Placed(TypedDict):
    where: str | None  # file and line; None: unknown
    row: Mapping[str, Json]


def placed_rows(files: list[DataFile]) -> Iterator[Placed]:
    """Yield rows with their locations, for streams: `{"where": "chats.jsonl:17", "row": {...}}`."""
    for file in files:
        for record in file.records():
            yield {"where": f"{file.shown}:{record.line}", "row": record.row}
