"""Data sets on the hub: whether they can be had, and copies of their files."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

from tinker_cookbook.exceptions import ConfigurationError, DataError
from tinker_cookbook.utils import hub_reach

# Which files belong to which split is written in these.
_DESCRIPTIONS = ["README.md", ".huggingface.yaml"]


def ask(path: str, way_out: str) -> None:
    """DataError, at once, where the hub cannot be reached and there is no copy."""
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


def download(path: str, names: Sequence[str]) -> str:
    """The directory with these files of the repository and what describes them."""
    import huggingface_hub

    patterns = [glob.escape(name) for name in names]
    return huggingface_hub.snapshot_download(
        path, repo_type="dataset", allow_patterns=[*patterns, *_DESCRIPTIONS]
    )


def copy_of(path: str) -> str | None:
    """The directory with the files that were downloaded before, if any."""
    import huggingface_hub
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return huggingface_hub.snapshot_download(path, repo_type="dataset", local_files_only=True)
    except (HFValidationError, LocalEntryNotFoundError):
        return None


def name_in_repository(url: str) -> str:
    """`data/a.jsonl` of `hf://datasets/me/some@0123abc/data/a.jsonl`."""
    return url.partition("@")[2].partition("/")[2]


def refusal(path: str, error: Exception, way_out: str) -> ConfigurationError | DataError:
    """What to raise for what `datasets` raised for a name on the hub."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    reason = one_line(error)
    if isinstance(error, ValueError | FileNotFoundError):  # unknown split, unknown configuration
        return ConfigurationError(f"data set {path}: {reason}; {way_out}")
    if HF_HUB_OFFLINE and not _is_no_hub_name(path):
        reason += " (HF_HUB_OFFLINE is set and it is not in the local cache)"
    return DataError(f"data set {path} cannot be had: {reason}; {way_out}")


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__


def _is_no_hub_name(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _plain(name: str) -> str:
    """Names of folders are made from those of data sets in several ways."""
    return name.replace("_", "").replace("-", "").lower()
