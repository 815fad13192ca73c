"""Data sets on the hub: whether they are reachable, and downloads of their files."""

from __future__ import annotations

import glob
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tinker_cookbook.exceptions import ConfigurationError, DataError
from tinker_cookbook.utils import hub_reach
from tinker_cookbook.utils.error_text import one_line

# These files say which data files belong to which split.
_DESCRIPTIONS = ["README.md", ".huggingface.yaml"]


def ask(path: str, way_out: str) -> None:
    """Raise DataError at once if the hub is unreachable and the cache has no copy."""
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
        raise DataError(f"data set {path} could not be downloaded: {reason}; {way_out}")


def download(path: str, names: Sequence[str]) -> str:
    """Download these files of a repository; returns the directory. Works offline if all of them
    are in the cache."""
    import huggingface_hub

    patterns = [glob.escape(name) for name in names]
    return huggingface_hub.snapshot_download(
        path, repo_type="dataset", allow_patterns=[*patterns, *_DESCRIPTIONS]
    )


@contextmanager
def outline(path: str) -> Iterator[str | None]:
    """A directory of empty files named like those of a cached repository, so that `datasets` can
    assign them to splits by name; None if the cache has nothing of the repository."""
    import huggingface_hub
    from huggingface_hub.errors import CachedRepoTreeNotFoundError, HFValidationError

    try:
        files = huggingface_hub.get_cached_repo_tree(path, repo_type="dataset")
    except (CachedRepoTreeNotFoundError, HFValidationError):
        yield None
        return
    with tempfile.TemporaryDirectory() as directory:
        for file in files:
            copy = Path(directory, file.path)
            copy.parent.mkdir(parents=True, exist_ok=True)
            known = file.path in _DESCRIPTIONS and huggingface_hub.try_to_load_from_cache(
                path, file.path, repo_type="dataset"
            )
            copy.write_bytes(Path(known).read_bytes() if isinstance(known, str) else b"")
        yield directory


def refusal(path: str, error: Exception, way_out: str) -> ConfigurationError | DataError:
    """The error to raise for an exception of `datasets` about a hub name."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import LocalEntryNotFoundError

    reason = one_line(error, 200).rstrip(".")
    if isinstance(error, LocalEntryNotFoundError):  # offline, and only some files are cached
        return DataError(f"data set {path} could not be downloaded: {reason}; {way_out}")
    if isinstance(error, ValueError | FileNotFoundError):  # unknown split, unknown configuration
        return ConfigurationError(f"data set {path}: {reason}; {way_out}")
    if HF_HUB_OFFLINE and not _is_no_hub_name(path):
        reason += " (HF_HUB_OFFLINE is set and it is not in the local cache)"
    return DataError(f"data set {path} could not be downloaded: {reason}; {way_out}")


def _is_no_hub_name(path: str) -> bool:
    return path.startswith(("/", ".", "~"))


def _plain(name: str) -> str:
    """Normalise a name: cache folders are derived from data set names in several ways."""
    return name.replace("_", "").replace("-", "").lower()
