"""The rows of any data set, with one-line errors: files, directories and names on the hub.

| data | rows |
|---|---|
| JSON (.jsonl, .json, .ndjson): one object a line, or one array | as the file says |
| CSV and TSV | strings, as the file says; an empty cell is None |
| Parquet, Arrow, a directory of `save_to_disk` | as stored; a key that other rows have is None |

JSON and CSV may be compressed (.gz, .bz2, .xz, .zst). Which files of a directory or of a data set
on the hub belong to which split, and in which order, is for `datasets` to say (names of files, or
the configurations in README.md); so is the reading of tables. JSON and CSV are read by ourselves
(`records`), for `datasets` would fit them into a table.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, overload, runtime_checkable

import numpy as np

from tinker_cookbook.exceptions import ConfigurationError, DataError, DataFormatError
from tinker_cookbook.utils import hub
from tinker_cookbook.utils.error_text import one_line
from tinker_cookbook.utils.file_rows import FileRows, Placed, placed_rows
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.records import COMPRESSED, CSV_SUFFIXES, JSON_SUFFIXES, DataFile, kind

if TYPE_CHECKING:
    import datasets

_TABLES = {".parquet": "parquet", ".arrow": "arrow"}
_WAY_OUT = "dataset_path=FILE.jsonl trains on a file of your own"
_NAME_OF_SPLIT = re.compile(r"\w+(\.\w+)*")

Row = dict[str, Any]
Splits = dict[str, list[DataFile]]


@runtime_checkable
class HasPlaces(Protocol):
    """Rows that know where each of them stands."""

    def where(self, row: int) -> str: ...


class Rows(Sequence[Row]):
    """Rows by number, as plain values, and where each stands."""

    def __init__(self, source: FileRows | _Stored, order: np.ndarray | None = None) -> None:
        self._source = source
        self._order = np.arange(len(source)) if order is None else order

    @property
    def from_files(self) -> bool:
        """Whether `where` names a file and a line."""
        return isinstance(self._source, FileRows)

    @property
    def column_names(self) -> list[str]:
        """The keys that any of the rows has."""
        return self._source.column_names

    def __len__(self) -> int:
        return len(self._order)

    @overload
    def __getitem__(self, row: int) -> Row: ...
    @overload
    def __getitem__(self, row: slice) -> Rows: ...
    def __getitem__(self, row: int | slice) -> Row | Rows:
        if isinstance(row, slice):
            return Rows(self._source, self._order[row])
        return self._source[int(self._order[row])]

    def where(self, row: int) -> str:
        """For messages: "chats.jsonl:17", or "row 17" of a table."""
        return self._source.where(int(self._order[row]))

    def select(self, rows: Sequence[int] | np.ndarray) -> Rows:
        return Rows(self._source, self._order[np.asarray(rows, dtype=np.int64)])

    def shuffle(self, seed: int) -> Rows:
        """The order that `datasets.Dataset.shuffle` gives."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def only(self, *columns: str) -> Rows:
        """Without other columns, where to leave them out saves time."""
        return Rows(self._source.only(columns), self._order)


class _Table(Protocol):
    """What is used of a `datasets.Dataset`."""

    column_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...
    def select_columns(self, column_names: list[str]) -> _Table: ...


class Streamed(Protocol):
    """What is used of a `datasets.IterableDataset`."""

    def __iter__(self) -> Iterator[Row]: ...
    def shuffle(self, *, seed: int, buffer_size: int) -> Streamed: ...
    def set_epoch(self, epoch: int) -> None: ...


class _Stored:
    """A `datasets.Dataset`."""

    def __init__(self, dataset: _Table) -> None:
        self._dataset = dataset
        self.column_names: list[str] = dataset.column_names

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, row: int) -> Row:
        return self._dataset[row]

    def where(self, row: int) -> str:
        return f"row {row}"

    def only(self, columns: Sequence[str]) -> _Stored:
        return _Stored(self._dataset.select_columns(list(columns)))


class PlacedRow(NamedTuple):
    row: Row
    where: str | None  # None: the stream does not know


class Stream:
    """Rows one by one, of a `datasets.IterableDataset`. from_files: it is that of `placed_rows`."""

    def __init__(self, source: Streamed, from_files: bool = False) -> None:
        self._source, self._from_files = source, from_files

    def shuffle(self, seed: int, buffer_size: int) -> Stream:
        """The files among each other, and rows within a buffer, in an order for each epoch."""
        shuffled = self._source.shuffle(seed=seed, buffer_size=buffer_size)
        return Stream(shuffled, self._from_files)

    def set_epoch(self, epoch: int) -> None:
        self._source.set_epoch(epoch)

    def __iter__(self) -> Iterator[PlacedRow]:
        for found in self._source:
            if self._from_files:
                yield PlacedRow(found["row"], found["where"])
            else:
                yield PlacedRow(found, None)


def open_rows(
    path: str,
    name: str | None = None,
    split: str = "train",
    way_out: str = _WAY_OUT,
    numbers_as_text: bool = False,
) -> Rows:
    """The rows of one split, also of a part such as `train[:100]`.

    `path`: a data file (its split is "train"), a directory, or a name on the hub. `name`: the
    configuration. `way_out`: what errors advise besides, where a hub is in question.
    numbers_as_text: those of JSON as `records.NumberText`. Raises ConfigurationError for an unknown
    split or configuration, DataFormatError for a file that cannot be read (with its line) or has no
    rows, DataError where the data cannot be had.
    """
    with _one_line_errors(path, way_out), _quietly(path):
        found = _find(path, name, way_out)
        if isinstance(found, dict):
            return _rows_of(found, path, split, numbers_as_text)
        return Rows(_Stored(_stored(found, path, name, split)))


def open_stream(
    path: str, name: str | None = None, split: str = "train", way_out: str = _WAY_OUT
) -> Stream:
    """The rows of one split, read when they are asked for. Parameters and errors are those of
    `open_rows`; what is wrong behind the first rows is raised when it is reached. Of a part such as
    `train[:100]` all rows are read first, as they must be counted."""
    import datasets

    with _one_line_errors(path, way_out), _quietly(path):
        if not _NAME_OF_SPLIT.fullmatch(split):
            rows = open_rows(path, name, split, way_out)
            stream = datasets.IterableDataset.from_generator(_placed, gen_kwargs={"rows": rows})
            return Stream(stream, from_files=True)
        found = _find(path, name, way_out, streaming=True)
        if not isinstance(found, dict):
            return Stream(_stored(found, path, name, split, streaming=True))
        files = _files_of_split(found, path, split)
        if next(iter(placed_rows(files)), None) is None:
            raise _no_rows(files)
        stream = datasets.IterableDataset.from_generator(placed_rows, gen_kwargs={"files": files})
        return Stream(stream, from_files=True)


def _placed(rows: Rows) -> Iterator[Placed]:
    """As `placed_rows`."""
    for number in range(len(rows)):
        yield {"where": rows.where(number) if rows.from_files else None, "row": rows[number]}


def is_file_name(path: str) -> bool:
    """Whether it looks like a data file rather than like a name on the hub."""
    return kind(path) in (*JSON_SUFFIXES, *CSV_SUFFIXES, *_TABLES) or path.endswith(COMPRESSED)


def where(rows: Sized | HasPlaces, row: int) -> str:
    """The place of a row for messages, whatever the rows are."""
    return rows.where(row) if isinstance(rows, HasPlaces) else f"row {row}"


def _find(path: str, name: str | None, way_out: str, streaming: bool = False) -> Splits | str:
    """The files of each split, or of a table what `_stored` opens."""
    local = Path(path).expanduser()
    if local.is_file():
        if kind(path) in _TABLES and not path.endswith(COMPRESSED):
            return str(local)
        file = DataFile.of(str(local), path)
        if file is None:
            raise ConfigurationError(
                f"{path}: cannot read {local.suffix or 'this'} files; expected one of "
                + ", ".join([*JSON_SUFFIXES, *CSV_SUFFIXES, *_TABLES])
            )
        return {"train": [file]}
    if local.is_dir():
        directory = str(local.absolute())  # a mere "json" is the name of a reader for `datasets`
        return directory if _is_saved(local) else _text_files(directory, path, name) or directory
    if is_file_name(path):  # no name on the hub ends so
        existing_file(path, "path")
    return _files_on_hub(path, name, way_out, streaming) or path


def _is_saved(local: Path) -> bool:
    return (local / "state.json").is_file() or (local / "dataset_dict.json").is_file()


def _text_files(directory: str, shown: str, name: str | None) -> Splits | None:
    """The files of JSON or CSV that each split has; None where they are something else.

    directory: local, or a name on the hub. shown: what messages call it.
    """
    import datasets
    from datasets.packaged_modules.csv.csv import CsvConfig
    from datasets.packaged_modules.json.json import JsonConfig

    builder = datasets.load_dataset_builder(directory, name)
    config = builder.config
    if not isinstance(config, JsonConfig | CsvConfig) or not config.data_files:
        return None
    paths = [path for files in config.data_files.values() for path in files]
    if any("://" in path and not path.startswith(f"hf://datasets/{directory}@") for path in paths):
        return None  # from somewhere else, which `datasets` knows how to reach
    _check_options(config, shown)
    splits: Splits = {}
    for split, paths in config.data_files.items():
        splits[str(split)] = files = []
        for path in paths:
            name_there = _name_in_data_set(path, directory)
            file = DataFile.of(path, str(PurePosixPath(shown) / name_there))
            is_csv = isinstance(config, CsvConfig)
            if file is None or (file.delimiter is not None) != is_csv:
                raise ConfigurationError(
                    f"data set {shown} is taken for one of {'CSV' if is_csv else 'JSON'}: it"
                    f" cannot have {path}; unpack that, or put it into a data set of its own"
                )
            if isinstance(config, CsvConfig):
                file = replace(file, delimiter=config.delimiter or config.sep)
            else:
                file = replace(file, field=config.field)
            files.append(file)
    return splits


def _name_in_data_set(path: str, directory: str) -> str:
    """`data/a.jsonl` of `/home/me/set/data/a.jsonl` or `hf://datasets/me/some@0123abc/data/a.jsonl`."""
    if "://" in path:
        return path.partition("@")[2].partition("/")[2]
    root = Path(directory).resolve()
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


_KNOWN_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features"}
_KNOWN_OPTIONS |= {"sep", "delimiter", "field", "chunksize", "block_size", "use_threads"}


def _check_options(config: datasets.BuilderConfig, shown: str) -> None:
    """The README of a data set may ask for another reading of its files."""
    usual = type(config)()
    for option, value in vars(config).items():
        known = option in _KNOWN_OPTIONS or (option == "encoding" and value in ("utf-8", "utf8"))
        if not known and value != getattr(usual, option):
            raise ConfigurationError(
                f"data set {shown}: its README asks for {option}={value!r}, which is not read:"
                " save the rows as JSONL"
            )


def _files_on_hub(path: str, name: str | None, way_out: str, streaming: bool) -> Splits | None:
    """JSON and CSV of a data set on the hub: their addresses, or downloaded copies."""
    hub.ask(path, way_out)
    try:
        found = _text_files(path, path, name)
    except Exception:
        found = _downloaded_before(path, name)
        if found is None:
            raise
    else:  # without a network, `datasets` may still have a table that was made of JSON
        found = found or _downloaded_before(path, name)
    if found is None or (streaming and "://" in _all_files(found)[0].path):
        return found
    names = {file: file.shown.removeprefix(f"{path}/") for file in _all_files(found)}
    copies = hub.download(path, list(names.values()))
    return {
        split: [replace(file, path=f"{copies}/{names[file]}") for file in files]
        for split, files in found.items()
    }


def _downloaded_before(path: str, name: str | None) -> Splits | None:
    with hub.outline(path) as directory:
        return None if directory is None else _text_files(directory, path, name)


def _stored(path: str, shown: str, name: str | None, split: str, streaming: bool = False) -> Any:
    """A `datasets.Dataset`, or an `IterableDataset`."""
    import datasets

    local = Path(path)
    if local.is_file():
        files = {"train": path}
        return datasets.load_dataset(
            _TABLES[kind(path)], data_files=files, split=split, streaming=streaming
        )
    if local.is_dir() and _is_saved(local):
        loaded = datasets.load_from_disk(path)
        if isinstance(loaded, dict):
            if split not in loaded:
                raise _no_split(shown, split, map(str, loaded))
            loaded = loaded[split]
        return loaded.to_iterable_dataset() if streaming else loaded
    return datasets.load_dataset(path, name, split=split, streaming=streaming)


def _rows_of(splits: Splits, path: str, split: str, numbers_as_text: bool) -> Rows:
    if not _NAME_OF_SPLIT.fullmatch(split):
        return _part(splits, split, numbers_as_text)
    files = _files_of_split(splits, path, split)
    rows = Rows(FileRows(files, numbers_as_text))
    if not len(rows):
        raise _no_rows(files)
    return rows


def _files_of_split(splits: Splits, path: str, split: str) -> list[DataFile]:
    if split == "all" and split not in splits:
        return _all_files(splits)
    if split not in splits:
        raise _no_split(path, split, splits)
    return splits[split]


def _all_files(splits: Splits) -> list[DataFile]:
    return [file for files in splits.values() for file in files]


def _part(splits: Splits, split: str, numbers_as_text: bool) -> Rows:
    """`train[:100]`, `train+test`: the spelling of `datasets`, which says what it means."""
    import datasets

    source = FileRows(_all_files(splits), numbers_as_text)
    ends = np.cumsum([len(files) for files in splits.values()])
    stops = [source.ends[end - 1] for end in ends]
    starts = dict(zip(splits, [0, *stops]))
    sizes = {name: stop - starts[name] for name, stop in zip(splits, stops)}
    parts = datasets.ReadInstruction.from_spec(split).to_absolute(sizes)
    ranges = [
        starts[part.splitname] + np.arange(sizes[part.splitname])[part.from_ : part.to]
        for part in parts
    ]
    order = np.concatenate(ranges)
    if not len(order):
        raise DataFormatError(f"split={split}: it has no rows of {sum(sizes.values()):,}")
    return Rows(source, order)


def _no_split(path: str, split: str, found: Iterable[str]) -> ConfigurationError:
    return ConfigurationError(f"data set {path}: no split {split!r}; found {', '.join(found)}")


def _no_rows(files: list[DataFile]) -> DataFormatError:
    others = f", nor have the {len(files) - 1} others" if len(files) > 1 else ""
    return DataFormatError(f"{files[0].shown} has no rows{others}")


@contextmanager
def _one_line_errors(path: str, way_out: str) -> Iterator[None]:
    try:
        yield
    except (ConfigurationError, DataError):
        raise
    except Exception as error:  # the library raises types of its own for each way to fail
        if not Path(path).expanduser().exists():
            raise hub.refusal(path, error, way_out) from error
        reason = one_line(error, 200).rstrip(".")
        if "corresponds to no data" in reason:
            raise DataFormatError(f"data set {path} has no rows") from error
        if isinstance(error, ValueError | FileNotFoundError):  # an unknown split, no data files
            raise ConfigurationError(f"data set {path}: {reason}") from error
        reason = one_line(error.__cause__ or error, 200).rstrip(".")
        raise DataFormatError(f"data set {path} cannot be read: {reason}") from error


@contextmanager
def _quietly(path: str) -> Iterator[None]:
    """Without bars for local files, which are read in a moment, and without the readers' own
    errors, which are raised besides."""
    import datasets

    if not Path(path).expanduser().exists():
        yield
        return
    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()
