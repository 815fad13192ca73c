"""Data sets by hub name or local path, with one-line errors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tinker_cookbook.exceptions import ConfigurationError, DataError, DataFormatError
from tinker_cookbook.utils import hub_reach
from tinker_cookbook.utils.files import existing_file

_FILE_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
_WAY_OUT = "dataset_path=FILE.jsonl trains on a file of your own"


def load(
    path: str,
    name: str | None = None,
    split: str = "train",
    streaming: bool = False,
    way_out: str = _WAY_OUT,
) -> Any:
    """A `datasets.Dataset` (streaming: `IterableDataset`) of one split.

    `path`: a data file, a directory of data files, a directory written by `save_to_disk`, or a name
    on the hub. `way_out`: what errors advise besides, where a hub is in question. Raises
    ConfigurationError for an unknown split or configuration, DataFormatError for a local file that
    cannot be read (with its line) or has no rows, DataError where the data cannot be had.
    """
    local = Path(path).expanduser()
    if not local.exists():
        if local.suffix in _FILE_FORMATS:  # no name on a hub ends so
            existing_file(path, "path")
        return _from_hub(path, name, split, streaming, way_out)
    try:
        with _quietly():
            return _from_disk(local, path, name, split, streaming)
    except (ConfigurationError, DataError):
        raise
    except Exception as error:  # each reader of files raises types of its own
        if wrong := _wrong_in_files(local):
            raise DataFormatError(wrong) from error
        if "corresponds to no data" in str(error):
            raise DataFormatError(f"data set {path}: split {split!r} has no rows") from error
        if isinstance(error, ValueError | FileNotFoundError):  # an unknown split, no data files
            raise ConfigurationError(f"data set {path}: {_one_line(error)}") from error
        reason = _one_line(error.__cause__ or error)
        raise DataFormatError(f"data set {path} cannot be read: {reason}") from error


def _from_disk(local: Path, path: str, name: str | None, split: str, streaming: bool) -> Any:
    import datasets

    if local.is_file():
        kind = _FILE_FORMATS.get(local.suffix)
        if kind is None:
            raise ConfigurationError(
                f"{path}: cannot read {local.suffix or 'this'} files; "
                f"expected one of {', '.join(_FILE_FORMATS)}"
            )
        return datasets.load_dataset(
            kind, data_files={"train": str(local)}, split=split, streaming=streaming
        )
    if (local / "state.json").is_file() or (local / "dataset_dict.json").is_file():
        return _saved(datasets.load_from_disk(str(local)), path, split, streaming)
    return datasets.load_dataset(str(local), name, split=split, streaming=streaming)


@contextmanager
def _quietly() -> Iterator[None]:
    """Without bars for files that are read in a moment, and without the readers' own errors, which
    are raised besides."""
    import datasets

    bars, level = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if not bars:
            datasets.enable_progress_bars()


def _wrong_in_files(local: Path) -> str | None:
    """What is wrong with the first file of JSON that cannot be read, or with an empty file."""
    files = sorted(local.rglob("*")) if local.is_dir() else [local]
    for file in files:
        if file.suffix not in _FILE_FORMATS or not file.is_file():
            continue
        if file.stat().st_size < 1_000_000 and file.read_bytes().strip() in (b"", b"[]"):
            return f"{file} has no rows"
        if _FILE_FORMATS[file.suffix] == "json" and (wrong := _wrong_in_json(file)):
            return wrong
    return None


def _wrong_in_json(file: Path) -> str | None:
    if file.suffix == ".json":  # one value, or one a line
        content = file.read_bytes()
        try:
            json.loads(content)
            return None
        except ValueError as error:
            if isinstance(error, json.JSONDecodeError) and content.lstrip().startswith(b"["):
                return f"{file}:{error.lineno} is not JSON: {error.msg} at column {error.colno}"
    with file.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if wrong := line.strip() and _wrong_in_line(line):
                return f"{file}:{number} {wrong}"
    return None


def _wrong_in_line(line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        return f"is not JSON: {error.msg} at column {error.colno}"
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {_one_line(error)}"
    if not isinstance(value, dict):
        return f"is not a JSON object: {line.decode(errors='replace').strip()[:80]!r}"
    return None


def _from_hub(path: str, name: str | None, split: str, streaming: bool, way_out: str) -> Any:
    import datasets

    try:
        _ask_hub(path, way_out)
        return datasets.load_dataset(path, name, split=split, streaming=streaming)
    except (ConfigurationError, DataError):
        raise
    except (ValueError, FileNotFoundError) as error:  # unknown split, unknown configuration
        raise ConfigurationError(f"data set {path}: {_one_line(error)}; {way_out}") from error
    except Exception as error:  # the library raises its own types for each way a hub can fail
        raise DataError(f"data set {path} cannot be had: {_why(path, error)}; {way_out}") from error


def require_column(dataset: Any, column: str, path: str) -> None:
    """Raise DataFormatError, naming the columns found, where `column` is missing."""
    found = dataset.column_names
    if found is not None and column not in found:  # a stream may not know its columns beforehand
        raise DataFormatError(
            f"data set {path}: no column {column!r}; found {', '.join(map(repr, found))}: "
            "name the one with the list of messages with message_field="
        )


def _ask_hub(path: str, way_out: str) -> None:
    """DataError, at once, where the hub cannot be reached and `datasets` has no copy."""
    from datasets import config
    from huggingface_hub import constants

    if config.HF_HUB_OFFLINE or _is_no_hub_name(path):
        return
    folder = _plain(path.replace("/", "___"))
    caches = [Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
    kept = [each.name for cache in caches if cache.is_dir() for each in cache.iterdir()]
    if any(_plain(each) in (folder, _plain(f"datasets--{folder}")) for each in kept):
        return
    if reason := hub_reach.problem(path, "README.md", "dataset"):
        raise DataError(f"data set {path} cannot be had: {reason}; {way_out}")


def _is_no_hub_name(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _plain(name: str) -> str:
    """Names of folders are made from those of data sets in several ways."""
    return name.replace("_", "").replace("-", "").lower()


def _saved(loaded: Any, path: str, split: str, streaming: bool) -> Any:
    if isinstance(loaded, dict):
        if split not in loaded:
            raise ConfigurationError(
                f"data set {path}: no split {split!r}; found {', '.join(loaded)}"
            )
        loaded = loaded[split]
    return loaded.to_iterable_dataset() if streaming else loaded


def _why(path: str, error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    text = _one_line(error)
    if HF_HUB_OFFLINE and not _is_no_hub_name(path):
        return f"{text} (HF_HUB_OFFLINE is set and it is not in the local cache)"
    return text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
