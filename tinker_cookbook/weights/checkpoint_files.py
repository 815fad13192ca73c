"""Download the files of a checkpoint from the store of this machine or from a server."""

from __future__ import annotations

import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tinker_cookbook.exceptions import (
    CheckpointError,
    ConfigurationError,
    TinkerCookbookError,
    WeightsDownloadError,
)
from tinker_cookbook.service import connect
from tinker_cookbook.utils.error_text import first_line
from tinker_cookbook.weights.checkpoint_path import checkpoint_path, server_of_run
from tinker_cookbook.weights.output_directory import check_free, new_directory

_SECONDS = 60.0  # timeout of a connection
# Servers that keep checkpoints in a format of their own export them first, to external weights;
# these are deleted after the download, or expire if that fails. 1 hour is the least they take.
_EXPORT_NAME, _EXPORT_TTL = "download", 3600


def download(*, tinker_path: str, output_dir: str, base_url: str | None = None) -> str:
    """Download a checkpoint's files into a new directory; returns it.

    tinker_path: tinker:// path, or a run directory (its last checkpoint). base_url: the server that
    has it (None: the run's, or the store of this machine). Raises CheckpointError or
    WeightsDownloadError; then nothing is left under output_dir.
    """
    base_url = base_url or server_of_run(tinker_path)
    path = checkpoint_path(tinker_path, "tinker_path", base_url)
    if not path.startswith("tinker://"):
        raise ConfigurationError(
            f"tinker_path={tinker_path} is a directory on this machine: there is nothing to"
            " download"
        )
    output = Path(output_dir)
    check_free(output, "output_dir")
    with _file_urls(path, base_url) as urls, new_directory(output, "output_dir") as partial:
        for name, url in sorted(urls.items()):
            _fetch(url, partial / _safe(name), path)
    return str(output.expanduser().absolute())


@contextmanager
def _file_urls(path: str, base_url: str | None) -> Iterator[Mapping[str, str]]:
    """URLs of a checkpoint's files by relative name, valid in the block."""
    service = connect(base_url=base_url)
    rest: Any = service.create_rest_client()
    try:
        urls = rest.get_external_weights_urls(path).result().urls
    except Exception as error:  # the SDK's exceptions depend on the server's answer
        if base_url is None or "/external_weights/" in path:
            raise _failed(path, error) from error
        if "/sampler_weights/" in path:
            raise WeightsDownloadError(
                f"{path}: this server exports training checkpoints only ({first_line(error)}); use"
                " the path with /weights/, state_path in checkpoints.jsonl"
            ) from error
    else:
        yield _checked(urls, path)
        return
    try:
        client: Any = service.create_training_client_from_state(path)
        if hasattr(client, "result"):  # the SDK's is a future of itself
            client = client.result()
        exported = client.save_weights_external(_EXPORT_NAME, ttl_seconds=_EXPORT_TTL).result().path
        urls = rest.get_external_weights_urls(exported).result().urls
    except Exception as error:
        raise _failed(path, error) from error
    try:
        yield _checked(urls, path)
    finally:
        rest.delete_checkpoint_from_tinker_path(exported).result()


def _failed(path: str, error: Exception) -> TinkerCookbookError:
    if isinstance(error, TinkerCookbookError):
        return error
    return WeightsDownloadError(f"{path} could not be downloaded: {first_line(error)}")


def _checked(urls: Mapping[str, str], path: str) -> Mapping[str, str]:
    if not urls:
        raise CheckpointError(f"{path} has no files")
    return urls


def _safe(name: str) -> PurePosixPath:
    """The relative name of a file; a server must not write outside the directory."""
    relative = PurePosixPath(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise WeightsDownloadError(f"the server names a file {name!r}, outside the directory")
    return relative


def _fetch(url: str, file: Path, path: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        with urllib.request.urlopen(url, timeout=_SECONDS) as response, open(file, "wb") as out:
            expected = response.headers.get("Content-Length")
            shutil.copyfileobj(response, out, 2**20)
            received = out.tell()
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise WeightsDownloadError(
            f"{path}: {file.name} could not be downloaded: {first_line(error)}; try again"
        ) from error
    if expected is not None and int(expected) != received:
        raise WeightsDownloadError(
            f"{path}: {file.name} is incomplete: {received:,} of {int(expected):,} bytes; try again"
        )
