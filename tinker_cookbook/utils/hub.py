"""Data sets by hub name or local path, with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tinker_cookbook.exceptions import ConfigurationError, DataError, DataFormatError
from tinker_cookbook.utils import hub_reach

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
    on the hub. `way_out`: what errors advise besides. Raises ConfigurationError for an unknown
    split or configuration, DataError where the data cannot be had.
    """
    import datasets

    local = Path(path).expanduser()
    try:
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
        _ask_hub(path, way_out)
        return datasets.load_dataset(path, name, split=split, streaming=streaming)
    except (ConfigurationError, DataError):
        raise
    except (ValueError, FileNotFoundError) as error:  # unknown split, unknown configuration
        raise ConfigurationError(f"data set {path}: {_one_line(error)}; {way_out}") from error
    except Exception as error:  # the library raises its own types for each way a hub can fail
        raise DataError(f"data set {path} cannot be had: {_why(error)}; {way_out}") from error


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

    if config.HF_HUB_OFFLINE or path.startswith(("/", ".", "~")):
        return
    folder = _plain(path.replace("/", "___"))
    caches = [Path(config.HF_DATASETS_CACHE), Path(constants.HF_HUB_CACHE)]
    kept = [each.name for cache in caches if cache.is_dir() for each in cache.iterdir()]
    if any(_plain(each) in (folder, _plain(f"datasets--{folder}")) for each in kept):
        return
    if reason := hub_reach.problem(path, "README.md", "dataset"):
        raise DataError(f"data set {path} cannot be had: {reason}; {way_out}")


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


def _why(error: Exception) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    text = _one_line(error)
    if HF_HUB_OFFLINE:
        return f"{text} (HF_HUB_OFFLINE is set and it is not in the local cache)"
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
