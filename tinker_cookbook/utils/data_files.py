"""Read the rows of a data set: a file, a directory or a name on the hub; errors are one line.

| data | rows |
|---|---|
| JSON (.jsonl, .json, .ndjson): one object per line, or one array | exactly as in the file |
| CSV and TSV | strings, exactly as in the file; an empty cell is None |
| Parquet, Arrow, a `save_to_disk` directory | as stored; a column that a row lacks is None |

JSON and CSV may be compressed (.gz, .bz2, .xz, .zst). `datasets` decides which files of a directory
or a hub data set form which split, and in which order (from file names or the configurations in
README.md), and it reads the tables. We read JSON and CSV ourselves (`records`), because `datasets`
would coerce them into a table with one type per column.
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
    """Rows that can tell the file and line of each."""

    def where(self, row: int) -> str: ...


class Rows(Sequence[Row]):
    """Random access to rows as plain values, with the location of each for messages."""

    def __init__(self, source: FileRows | _Stored, order: np.ndarray | None = None) -> None:
        self._source = source
        self._order = np.arange(len(source)) if order is None else order

    @property
    def from_files(self) -> bool:
        """Whether `where` names a file and a line."""
        return isinstance(self._source, FileRows)

    @property
    def column_names(self) -> list[str]:
        """The union of the keys of all rows."""
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
        """The location of a row for messages: "chats.jsonl:17", or "row 17" for a table."""
        return self._source.where(int(self._order[row]))

    def select(self, rows: Sequence[int] | np.ndarray) -> Rows:
        return Rows(self._source, self._order[np.asarray(rows, dtype=np.int64)])

    def shuffle(self, seed: int) -> Rows:
        """Shuffle as `datasets.Dataset.shuffle` does: the same permutation for the same seed."""
        return self.select(np.random.default_rng(seed).permutation(len(self)))

    def only(self, *columns: str) -> Rows:
        """Drop the other columns if the format makes that cheaper (tables, not JSON lines)."""
        return Rows(self._source.only(columns), self._order)


class _Table(Protocol):
    """The part of `datasets.Dataset` that we use."""

    column_names: list[str]

    def __len__(self) -> int: ...
    def __getitem__(self, row: int) -> Row: ...
    def select_columns(self, column_names: list[str]) -> _Table: ...


class Streamed(Protocol):
    """The part of `datasets.IterableDataset` that we use."""

    def __iter__(self) -> Iterator[Row]: ...
    def shuffle(self, *, seed: int, buffer_size: int) -> Streamed: ...
    def set_epoch(self, epoch: int) -> None: ...


class _Stored:
    """Rows of a `datasets.Dataset`."""

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
    where: str | None  # file and line; None: the stream does not tell


class Stream:
    """Rows of a `datasets.IterableDataset`, one by one. from_files: its items are `Placed`."""

    def __init__(self, source: Streamed, from_files: bool = False) -> None:
        self._source, self._from_files = source, from_files

    def shuffle(self, seed: int, buffer_size: int) -> Stream:
        """Shuffle the order of files, and rows within a buffer; each epoch has its own order."""
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
    """Open one split, or a slice of it such as `train[:100]`.

    path: a data file (its split is "train"), a directory, or a name on the hub. name: the
    configuration of a hub data set. way_out: advice that hub errors end with. numbers_as_text: keep
    JSON numbers as `records.NumberText`. Raises ConfigurationError for an unknown split or
    configuration, DataFormatError for a file that cannot be read (with the line) or has no rows,
    DataError if the data could not be downloaded.
    """
    with _one_line_errors(path, way_out), _quietly(path):
        found = _find(path, name, way_out)
        if isinstance(found, dict):
            return _rows_of(found, path, split, numbers_as_text)
        return Rows(_Stored(_stored(found, path, name, split)))


def open_stream(
    path: str, name: str | None = None, split: str = "train", way_out: str = _WAY_OUT
) -> Stream:
    """Open one split as a stream. Parameters and errors are those of `open_rows`, but an error
    beyond the first row is raised only when that row is reached. A slice such as `train[:100]`
    reads all rows first, because they must be counted."""
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
    """The rows as `placed_rows` yields them."""
    for number in range(len(rows)):
        yield {"where": rows.where(number) if rows.from_files else None, "row": rows[number]}


def is_file_name(path: str) -> bool:
    """Whether `path` looks like a data file rather than a name on the hub."""
    return kind(path) in (*JSON_SUFFIXES, *CSV_SUFFIXES, *_TABLES) or path.endswith(COMPRESSED)


def where(rows: Sized | HasPlaces, row: int) -> str:
    """The location of a row for messages, for any kind of rows."""
    return rows.where(row) if isinstance(rows, HasPlaces) else f"row {row}"


def _find(path: str, name: str | None, way_out: str, streaming: bool = False) -> Splits | str:
    """The files of each split; for tables, the path that `_stored` opens."""
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
        directory = str(local.absolute())  # `datasets` takes a bare "json" for its JSON reader
        return directory if _is_saved(local) else _text_files(directory, path, name) or directory
    if is_file_name(path):  # a hub name has no such suffix
        existing_file(path, "path")
    return _files_on_hub(path, name, way_out, streaming) or path


def _is_saved(local: Path) -> bool:
    return (local / "state.json").is_file() or (local / "dataset_dict.json").is_file()


def _text_files(directory: str, shown: str, name: str | None) -> Splits | None:
    """The JSON or CSV files of each split; None if the data set has another format.

    directory: local, or a name on the hub. shown: its name in messages.
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
        return None  # hosted elsewhere: `datasets` knows how to download it
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
                    f"data set {shown} is read as {'CSV' if is_csv else 'JSON'}, but contains"
                    f" {path}; unpack that file, or move it to a data set of its own"
                )
            if isinstance(config, CsvConfig):
                file = replace(file, delimiter=config.delimiter or config.sep)
            else:
                file = replace(file, field=config.field)
            files.append(file)
    return splits


def _name_in_data_set(path: str, directory: str) -> str:
    """The path within the data set: `data/a.jsonl` for `/home/me/set/data/a.jsonl` or
    `hf://datasets/me/some@0123abc/data/a.jsonl`."""
    if "://" in path:
        return path.partition("@")[2].partition("/")[2]
    root = Path(directory).resolve()
    return str(Path(path).relative_to(root)) if Path(path).is_relative_to(root) else path


_KNOWN_OPTIONS = {"name", "version", "data_dir", "data_files", "description", "features"}
_KNOWN_OPTIONS |= {"sep", "delimiter", "field", "chunksize", "block_size", "use_threads"}


def _check_options(config: datasets.BuilderConfig, shown: str) -> None:
    """Raise ConfigurationError if the data set's README sets a reader option that we ignore."""
    usual = type(config)()
    for option, value in vars(config).items():
        known = option in _KNOWN_OPTIONS or (option == "encoding" and value in ("utf-8", "utf8"))
        if not known and value != getattr(usual, option):
            raise ConfigurationError(
                f"data set {shown}: its README sets {option}={value!r}, which is not"
                " supported; save the rows as JSONL"
            )


def _files_on_hub(path: str, name: str | None, way_out: str, streaming: bool) -> Splits | None:
    """The JSON or CSV files of a hub data set: their URLs if streaming, else downloaded copies."""
    hub.ask(path, way_out)
    try:
        found = _text_files(path, path, name)
    except Exception:
        found = _downloaded_before(path, name)
        if found is None:
            raise
    else:  # offline, `datasets` may have only the table that it once converted the JSON to
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
    """A `datasets.Dataset`, or with `streaming` a `datasets.IterableDataset`."""
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
    """A split expression such as `train[:100]` or `train+test`, parsed by `datasets`."""
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
        raise DataFormatError(f"split={split} selects none of {sum(sizes.values()):,} rows")
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
    except Exception as error:  # `datasets` has an exception type of its own for each failure
        if not Path(path).expanduser().exists():
            raise hub.refusal(path, error, way_out) from error
        reason = one_line(error, 200).rstrip(".")
        if "corresponds to no data" in reason:
            raise DataFormatError(f"data set {path} has no rows") from error
        if isinstance(error, ValueError | FileNotFoundError):  # unknown split, or no data files
            raise ConfigurationError(f"data set {path}: {reason}") from error
        reason = one_line(error.__cause__ or error, 200).rstrip(".")
        raise DataFormatError(f"data set {path} cannot be read: {reason}") from error


@contextmanager
def _quietly(path: str) -> Iterator[None]:
    """Silence `datasets` for local files: no progress bars, since reading takes a moment, and no
    logged errors, since they are also raised."""
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
