"""Crash-safe store of training runs and their checkpoints, in one directory.

    <root>/runs/<run id>/
      run.json          base model, LoRA rank, trained layers, the user's metadata
      lock              held by the process that trains the run; its mtime is the last activity
      changes.lock      held briefly, while a name or a manifest changes
      weights/<name>    symbolic link to the data; also sampler_weights/ and external_weights/
      data/<id>/        the files of one checkpoint and manifest.json (sizes, sha256 sums)
      data/<id>.lock    the lease: exclusive for the writer until the checkpoint is complete, shared
                        for readers

A checkpoint exists once its link exists. Links appear, change and disappear in one rename or
unlink, so every reader sees the old checkpoint, the new one or none. A reader resolves the link
once and then uses that directory, even if the name is replaced or deleted meanwhile. Data without a
link is removed once neither a writer nor a reader holds its lease. The kernel releases the locks of
a killed process, so a crash leaves only unlinked data behind, which the next sweep removes.

Locks are flock(2): several hosts may share a root if their file system supports flock across hosts.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast, get_args

from tinker_cookbook.exceptions import (
    CheckpointError,
    ConfigurationError,
    StorageError,
    TinkerCookbookError,
)
from tinker_cookbook.utils.files import FileLock, replace_file, sync_directory

Kind = Literal["weights", "sampler_weights", "external_weights"]
KINDS: tuple[Kind, ...] = get_args(Kind)

_SCHEME = "tinker://"
_MANIFEST = "manifest.json"
_RUN_FACTS = ("base_model", "rank", "train_mlp", "train_attn", "train_unembed")

# -------------------------------------------------------------------------------------------------
# Paths and records


class CheckpointPath(NamedTuple):
    """A parsed `tinker://<run_id>/<kind>/<name>`."""

    run_id: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run_id}/{self.kind}/{self.name}"


def parse_path(path: str) -> CheckpointPath:
    """Parse a tinker:// path. CheckpointError with the reason if it is invalid."""
    parts = path.removeprefix(_SCHEME).split("/") if isinstance(path, str) else []
    if len(parts) != 3 or not path.startswith(_SCHEME):
        raise CheckpointError(
            f"{path!r} is not a checkpoint path; expected {_SCHEME}<run>/<{'|'.join(KINDS)}>/<name>"
        )
    return _checked_path(*parts)


def _checked_path(run_id: str, kind: str, name: str) -> CheckpointPath:
    _check_name("run id", run_id)
    if kind not in KINDS:
        raise CheckpointError(f"{kind!r} is not a kind of checkpoint; use {', '.join(KINDS)}")
    _check_name("checkpoint name", name)
    return CheckpointPath(run_id, cast(Kind, kind), name)


def _check_name(what: str, name: str) -> None:
    """Reject names that, as file names, could leave their directory or be hidden in it."""
    if not isinstance(name, str) or not name:
        fault = "is empty or not a string"
    elif "/" in name:
        fault = 'has a "/"'
    elif name.startswith("."):
        fault = "starts with a dot"
    elif not name.isprintable():
        fault = "has an unprintable character"
    elif len(name) > 200 or len(os.fsencode(name)) > 240:  # file systems count bytes, up to 255
        fault = f"is too long ({len(name)} characters)"
    else:
        return
    raise CheckpointError(
        f"{what} {name!r} {fault}; use 1 to 200 printable characters (at most 240 bytes), "
        'without "/" and without a leading dot'
    )


@dataclass(frozen=True)
class RunInfo:
    """A training run, as in its run.json. corrupted: that file cannot be read."""

    run_id: str
    last_request_time: datetime
    base_model: str = "unknown"
    rank: int | None = None
    train_mlp: bool | None = None
    train_attn: bool | None = None
    train_unembed: bool | None = None
    user_metadata: dict[str, str] | None = None
    corrupted: bool = False


@dataclass(frozen=True)
class CheckpointInfo:
    """A complete checkpoint: its directory and its manifest.

    If it comes from `open_checkpoint`, it holds a lease that protects the files from deletion until
    it is closed or garbage-collected.
    """

    path: CheckpointPath
    directory: Path
    manifest: dict[str, Any]
    _lease: FileLock | None = field(default=None, repr=False, compare=False)

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.manifest["time"])

    @property
    def expires_at(self) -> datetime | None:
        value = self.manifest["expires_at"]
        return None if value is None else datetime.fromisoformat(value)

    @property
    def expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= _now()

    def close(self) -> None:
        if self._lease is not None:
            self._lease.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass
class RunHandle:
    """Exclusive write access to one run, until `close()` or the end of the process."""

    run_id: str
    directory: Path
    _lock: FileLock = field(repr=False)

    @property
    def closed(self) -> bool:
        return self._lock.closed

    def touch(self) -> None:
        """Set the run's `last_request_time` to now."""
        _touch(self.directory)

    def close(self) -> None:
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# -------------------------------------------------------------------------------------------------
# The store


class Store:
    """Runs and checkpoints under `root`, shared by threads and processes.

    The first run creates the directory.
    """

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().absolute()
        self._runs = self.root / "runs"
        self._handles: dict[str, RunHandle] = {}
        self.sweep()

    # -- runs

    def create_run(
        self,
        run_id: str,
        base_model: str,
        rank: int,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
    ) -> RunHandle:
        """Create a run, or reopen one whose process has ended, with exclusive write access.

        CheckpointError if another process has the run open, or it exists with other parameters.
        """
        _check_name("run id", run_id)
        directory = self._runs / run_id
        values = (base_model, rank, train_mlp, train_attn, train_unembed)
        facts: dict[str, Any] = dict(zip(_RUN_FACTS, values))
        with _disk_errors(f"create run {run_id}", directory):
            for sub in ("data", *KINDS):
                (directory / sub).mkdir(parents=True, exist_ok=True)
            lock = FileLock.take(directory / "lock", wait=False)
            if lock is None:
                raise CheckpointError(
                    f"run {run_id} is in use by {_owner(directory / 'lock')}; "
                    "end that process or use another run id"
                )
            try:
                if (directory / "run.json").exists():
                    self._check_same_parameters(run_id, facts)
                lock.write(f"process {os.getpid()} on {socket.gethostname()}")
                run = {"run_id": run_id, **facts, "user_metadata": user_metadata}
                _write_json(directory / "run.json", run)
                for parent in (self._runs, self.root, self.root.parent):
                    sync_directory(parent)
            except BaseException:
                lock.close()
                raise
        self._handles[run_id] = RunHandle(run_id, directory, lock)
        self.sweep(run_id)
        return self._handles[run_id]

    def get_run(self, run_id: str) -> RunInfo:
        """A run's metadata.

        CheckpointError if the run does not exist (with similar names) or run.json is unreadable.
        """
        _check_name("run id", run_id)
        run = self._read_run(run_id)
        facts = {key: run[key] for key in (*_RUN_FACTS, "user_metadata")}
        return RunInfo(run_id, _activity(self._runs / run_id), **facts)

    def run_ids(self) -> list[str]:
        """All runs, the most recently active first."""
        with _disk_errors("list the runs", self._runs):
            runs = [r for r in _names(self._runs) if (self._runs / r / "run.json").exists()]
            return sorted(runs, key=lambda run: _activity(self._runs / run), reverse=True)

    def list_runs(self, limit: int | None = None, offset: int = 0) -> list[RunInfo]:
        """Runs, the most recently active first; `corrupted` if run.json is unreadable."""
        runs = []
        for run_id in paginate(self.run_ids(), limit, offset):
            try:
                runs.append(self.get_run(run_id))
            except CheckpointError:
                runs.append(RunInfo(run_id, _activity(self._runs / run_id), corrupted=True))
        return runs

    # -- checkpoints

    def write_checkpoint(
        self,
        run_id: str,
        kind: str,
        name: str,
        write: Callable[[Path], None],
        *,
        overwrite: bool = False,
        ttl_seconds: float | None = None,
        user_metadata: dict[str, str] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """Write a checkpoint atomically: `write(directory)` creates its files. Returns its path.

        ttl_seconds: None for no expiry. extra: additional JSON for the manifest. CheckpointError if
        the run is not open in this process, the name is invalid or taken, or the disk is full or
        fails. Other exceptions of `write` are passed on. After any error, no checkpoint exists.
        """
        path = _checked_path(run_id, kind, name)
        handle = self._handles.get(run_id)
        if handle is None or handle.closed:
            raise CheckpointError(f"run {run_id} is not open for writing; call create_run first")
        expires_at = _expiry(ttl_seconds)
        if not overwrite:
            self._check_name_is_free(path)
        identity = f"{_now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        data, link = handle.directory / "data", self._link(path)
        try:
            # Crash safety depends on the order of these writes. Lease before directory: a directory
            # whose lease is free has no writer, so sweep may remove it. Files, then the manifest,
            # then the link, each flushed to disk before the next: a link that survives a power cut
            # points at complete data.
            with (
                _disk_errors(f"write {path}", handle.directory),
                _lock_exclusively(data / f"{identity}.lock"),
            ):
                directory = data / identity
                directory.mkdir()
                write(directory)
                run, files = self._read_run(run_id), _seal(directory)
                manifest = {
                    **path._asdict(),
                    **{key: run[key] for key in _RUN_FACTS},
                    "time": _now().isoformat(),
                    "size_bytes": sum(file["size_bytes"] for file in files.values()),
                    "files": files,
                    "user_metadata": user_metadata,
                    "expires_at": expires_at,
                    "public": False,
                    "extra": extra or {},
                }
                _write_json(directory / _MANIFEST, manifest)
                sync_directory(data)
                with self._lock_changes(run_id):
                    if not overwrite:
                        self._check_name_is_free(path)
                    # symlink() cannot replace a link, rename can, and does so atomically
                    new_link = link.with_name(f".{identity}")
                    new_link.symlink_to(Path("..", "data", identity))
                    os.replace(new_link, link)
                    sync_directory(link.parent)
            handle.touch()
        finally:
            self.sweep(run_id)
        return str(path)

    def find(self, path: str) -> CheckpointInfo:
        """The checkpoint at a tinker:// path.

        CheckpointError if the path is invalid, the run or name does not exist (with those that do),
        or the checkpoint has expired.
        """
        parsed = parse_path(path)
        info = self._load(parsed)
        if info is None:
            raise self._not_found(parsed)
        if info.expired:
            raise CheckpointError(
                f"{path} expired at {info.manifest['expires_at']}; "
                "save checkpoints with a longer ttl_seconds, or with None to keep them"
            )
        return info

    def path_of(self, directory: Path) -> str | None:
        """The tinker:// path of the checkpoint in a data directory or behind a link; None if the
        directory holds no current checkpoint of this store."""
        directory = directory.resolve()
        if not directory.is_relative_to(self._runs.resolve()):
            return None
        try:
            manifest = _read_json(directory / _MANIFEST)
            path = str(_checked_path(*(manifest[key] for key in CheckpointPath._fields)))
            return path if self.find(path).directory == directory else None
        except (OSError, ValueError, KeyError, CheckpointError):
            return None

    def verify(self, info: CheckpointInfo) -> None:
        """CheckpointError for the first file that is missing or differs from the manifest."""
        for name, expected in info.manifest["files"].items():
            try:
                actual = _size_and_digest(info.directory / name)
            except OSError as error:
                raise self._damaged(info.path, name, error) from error
            for key, value in expected.items():
                if actual[key] != value:
                    raise self._damaged(info.path, name, f"{key} is {actual[key]}, not {value}")

    def open_checkpoint(self, path: str) -> CheckpointInfo:
        """`find` and `verify` a checkpoint, with a lease on its files.

        The files stay until the result is closed or garbage-collected, even if the checkpoint is
        deleted or overwritten meanwhile.
        """
        while True:
            info = self.find(path)
            lock = info.directory.with_name(f"{info.directory.name}.lock")
            lease = None
            # There may be no lock file: in a store that was copied by hand, or if the data was
            # removed just now.
            with _disk_errors(f"open {path}", info.directory), suppress(FileNotFoundError):
                lease = FileLock.take(lock, shared=True)
            # Look again: before the lease was held, the name could have been moved to other data,
            # and this data removed.
            if self.find(path).directory == info.directory:
                self.verify(info)
                return replace(info, _lease=lease)

    def delete(self, path: str) -> None:
        """Delete a checkpoint, even a damaged one. Open readers keep its files until they close."""
        parsed = parse_path(path)
        link, directory = self._link(parsed), self._runs / parsed.run_id
        if not os.path.lexists(link):
            raise self._not_found(parsed)
        with _disk_errors(f"delete {path}", directory):
            with self._lock_changes(parsed.run_id):
                with suppress(CheckpointError):  # damaged: its list of links is not readable
                    if info := self._load(parsed):
                        self._remove_links(info)
                link.unlink(missing_ok=True)
                sync_directory(link.parent)
            _touch(directory)
        self.sweep(parsed.run_id)

    def link(self, path: str, link_path: Path) -> None:
        """Create a relative symbolic link to a checkpoint, replacing a link of that name.

        Deleting the checkpoint removes the link, too. OSError if another kind of file has the name,
        or the file system does not support links.
        """
        target = self._link(self.find(path).path)
        link_path.parent.mkdir(parents=True, exist_ok=True)
        link_path = link_path.parent.resolve() / link_path.name
        if link_path.is_symlink():
            link_path.unlink()
        relative = os.path.relpath(target.parent.resolve() / target.name, link_path.parent)
        link_path.symlink_to(relative)
        links = self.find(path).manifest.get("links", [])
        self._edit_manifest(path, links=sorted({*links, str(link_path)}))

    def set_ttl(self, path: str, ttl_seconds: float | None) -> None:
        """Let a checkpoint expire `ttl_seconds` from now; None: never."""
        self._edit_manifest(path, expires_at=_expiry(ttl_seconds))

    def set_public(self, path: str, public: bool) -> None:
        """Set the `public` flag in a checkpoint's manifest."""
        self._edit_manifest(path, public=public)

    def list_checkpoints(
        self, run_id: str, limit: int | None = None, offset: int = 0
    ) -> list[CheckpointInfo]:
        """A run's checkpoints, newest first, except expired and damaged ones."""
        _check_name("run id", run_id)
        if not (self._runs / run_id / "run.json").exists():
            raise self._run_not_found(run_id)
        return paginate(self._newest_first([run_id]), limit, offset)

    def list_all(self, limit: int | None = None, offset: int = 0) -> list[CheckpointInfo]:
        """All runs' checkpoints, newest first, except expired and damaged ones."""
        return paginate(self._newest_first(self.run_ids()), limit, offset)

    def sweep(self, run_id: str | None = None) -> None:
        """Remove expired and replaced checkpoints, and data left by killed writers.

        run_id: None for all runs. Disk errors are ignored: a later sweep tries again.
        """
        with suppress(OSError):
            if run_id is None:
                for run in _names(self._runs):
                    self.sweep(run)
            else:
                # in this order: an expired checkpoint loses its link, then its data
                self._delete_expired_links(run_id)
                self._delete_unlinked_data(run_id)

    # -- within one run

    def _link(self, path: CheckpointPath) -> Path:
        return self._runs / path.run_id / path.kind / path.name

    def _lock_changes(self, run_id: str) -> FileLock:
        return _lock_exclusively(self._runs / run_id / "changes.lock")

    def _read_run(self, run_id: str) -> dict[str, Any]:
        file = self._runs / run_id / "run.json"
        try:
            return _read_json(file)
        except FileNotFoundError:
            raise self._run_not_found(run_id) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged: {error}; use another run") from error

    def _load(self, path: CheckpointPath) -> CheckpointInfo | None:
        """The checkpoint, even if expired; None if the name does not exist."""
        link = self._link(path)
        while os.path.lexists(link):
            directory = link.resolve()
            try:
                return CheckpointInfo(path, directory, _read_json(directory / _MANIFEST))
            except (OSError, ValueError) as error:
                # The name may have been replaced and the old data swept since the link was
                # resolved. Only if the link still points at this directory is it damaged.
                if os.path.lexists(link) and link.resolve() == directory:
                    raise self._damaged(path, _MANIFEST, error) from error
        return None

    def _all(self, run_id: str) -> Iterator[CheckpointInfo]:
        """All readable checkpoints of a run, including expired ones."""
        for kind in KINDS:
            for name in _names(self._runs / run_id / kind):
                with suppress(CheckpointError):
                    if info := self._load(CheckpointPath(run_id, kind, name)):
                        yield info

    def _newest_first(self, run_ids: list[str]) -> list[CheckpointInfo]:
        with _disk_errors("list the checkpoints", self._runs):
            infos = [info for run in run_ids for info in self._all(run) if not info.expired]
        return sorted(infos, key=lambda info: (info.time, info.path), reverse=True)

    def _edit_manifest(self, path: str, **changes: Any) -> None:
        run_id = self.find(path).path.run_id
        with _disk_errors(f"change {path}", self._runs / run_id):
            with self._lock_changes(run_id):
                info = self.find(path)
                _write_json(info.directory / _MANIFEST, info.manifest | changes)
            _touch(self._runs / run_id)

    def _check_name_is_free(self, path: CheckpointPath) -> None:
        with suppress(CheckpointError):  # a damaged checkpoint occupies its name, too
            info = self._load(path)
            if info is None or info.expired:
                return
        raise CheckpointError(f"{path} exists; set overwrite=True or use another name")

    def _check_same_parameters(self, run_id: str, facts: dict[str, Any]) -> None:
        saved = self._read_run(run_id)
        for key, value in facts.items():
            if saved[key] != value:
                raise CheckpointError(
                    f"run {run_id} exists with {key}={saved[key]!r}, not {value!r}; "
                    "use another run id"
                )

    def _delete_expired_links(self, run_id: str) -> None:
        if any(info.expired for info in self._all(run_id)):
            with self._lock_changes(run_id):
                # check again under the lock: set_ttl may have extended it since
                for info in self._all(run_id):
                    if info.expired:
                        self._remove_links(info)
                        self._link(info.path).unlink()

    def _remove_links(self, info: CheckpointInfo) -> None:
        """Remove the links made by `link`, except those that point elsewhere by now."""
        target = self._link(info.path)
        for name in info.manifest.get("links", []):
            link_path = Path(name)
            with suppress(OSError):
                current_target = Path(os.path.normpath(link_path.parent / link_path.readlink()))
                if current_target == target.parent.resolve() / target.name:
                    link_path.unlink()

    def _delete_unlinked_data(self, run_id: str) -> None:
        data = self._runs / run_id / "data"
        identities = {name.removesuffix(".lock") for name in _names(data)}
        for identity in identities - self._linked_ids(run_id):
            lock = FileLock.take(data / f"{identity}.lock", wait=False)
            if lock is None:
                continue  # being written or read
            with lock:
                # Check again: its writer may have linked it before we got the lock. Only the writer
                # does, and only with this lock, so from here on it cannot be linked any more.
                if identity in self._linked_ids(run_id):
                    continue
                for kind in KINDS:
                    (self._runs / run_id / kind / f".{identity}").unlink(missing_ok=True)
                shutil.rmtree(data / identity, ignore_errors=True)
                if not (data / identity).exists():
                    (data / f"{identity}.lock").unlink()

    def _linked_ids(self, run_id: str) -> set[str]:
        """The ids of the data directories that links point to."""
        folders = [self._runs / run_id / kind for kind in KINDS]
        return {(folder / name).resolve().name for folder in folders for name in _names(folder)}

    def _run_not_found(self, run_id: str) -> CheckpointError:
        known = self.run_ids()
        similar = difflib.get_close_matches(run_id, known, n=3)
        existing = "it has no runs yet"
        if known:
            words = "similar runs" if similar else "its latest runs"
            existing = f"{words}: {', '.join(similar or known[:3])}"
        return CheckpointError(f"no run {run_id} in the store {self.root}; {existing}")

    def _not_found(self, path: CheckpointPath) -> CheckpointError:
        if not (self._runs / path.run_id / "run.json").exists():
            return self._run_not_found(path.run_id)
        names = [f"{i.path.kind}/{i.path.name}" for i in self._newest_first([path.run_id])]
        more = f" and {len(names) - 20} older" if len(names) > 20 else ""
        existing = f"it has {', '.join(names[:20])}{more}" if names else "it has no checkpoints"
        return CheckpointError(f"run {path.run_id} has no {path.kind}/{path.name}; {existing}")

    def _damaged(self, path: CheckpointPath, file: str, fault: object) -> CheckpointError:
        return CheckpointError(
            f"{path} is damaged: {self._link(path) / file}: {fault}; "
            "restore that file or use another checkpoint"
        )


# -------------------------------------------------------------------------------------------------
# Locks and files


def _lock_exclusively(path: Path) -> FileLock:
    # without wait=False, `take` never returns None
    return cast(FileLock, FileLock.take(path))


# safetensors and other libraries raise their own exceptions with the text of the disk's error
_DISK_ERROR_TEXTS = [
    os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)
]


@contextmanager
def _disk_errors(action: str, directory: Path) -> Iterator[None]:
    """Turn disk errors into a CheckpointError with the directory and the free space."""
    try:
        yield
    except Exception as error:
        cause = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(cause, TinkerCookbookError):
            raise
        if not isinstance(cause, OSError) and not any(
            text in str(error) for text in _DISK_ERROR_TEXTS
        ):
            raise
        existing = next(folder for folder in (directory, *directory.parents) if folder.is_dir())
        raise CheckpointError(
            f"cannot {action} in {directory}: {cause} ({shutil.disk_usage(existing).free:,} bytes "
            "free); free space, fix the permissions or set TINKER_COOKBOOK_STORE_DIR to another "
            "directory; the same command resumes the run"
        ) from cause


def _now() -> datetime:
    return datetime.now(UTC)


def _expiry(ttl_seconds: float | None) -> str | None:
    if ttl_seconds is None:
        return None
    with suppress(TypeError, OverflowError):
        if ttl_seconds > 0:
            return (_now() + timedelta(seconds=ttl_seconds)).isoformat()
    raise CheckpointError(f"ttl_seconds={ttl_seconds!r}: set seconds above 0, or None for never")


def paginate(items: list[Any], limit: int | None, offset: int = 0) -> list[Any]:
    """`items[offset : offset + limit]`. ConfigurationError if either is negative."""
    if offset < 0 or (limit is not None and limit < 0):
        raise ConfigurationError(f"limit={limit}, offset={offset}: expected 0 or more")
    return items[offset:] if limit is None else items[offset : offset + limit]


def _names(directory: Path) -> list[str]:
    """The sorted names in a directory, without hidden ones; [] if it does not exist."""
    try:
        return sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except FileNotFoundError:
        return []


def _owner(lock: Path) -> str:
    with suppress(OSError):
        return lock.read_text() or "another process"
    return "another process"


def _touch(run_directory: Path) -> None:
    with suppress(OSError):
        os.utime(run_directory / "lock")


def _activity(run_directory: Path) -> datetime:
    for name in ("lock", "run.json"):  # a store copied by hand may lack the lock
        with suppress(FileNotFoundError):
            return datetime.fromtimestamp((run_directory / name).stat().st_mtime, UTC)
    return datetime.fromtimestamp(0, UTC)


def _size_and_digest(file: Path, flush: bool = False) -> dict[str, Any]:
    with file.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"size_bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _seal(directory: Path) -> dict[str, dict[str, Any]]:
    """Flush all files and folders to disk; returns size and checksum by relative name."""
    files = {}
    for folder, folders, names in os.walk(directory):
        for file in (Path(folder, name) for name in (*names, *folders)):
            name = file.relative_to(directory).as_posix()
            if file.is_symlink() or not (file.is_file() or file.is_dir()) or name == _MANIFEST:
                raise CheckpointError(
                    f"a checkpoint cannot contain {name!r}: "
                    f"write only regular files, and no {_MANIFEST}"
                )
            if file.is_file():
                files[name] = _size_and_digest(file, flush=True)
        sync_directory(Path(folder))
    return dict(sorted(files.items()))


def _digest(content: dict[str, Any]) -> str:
    body = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """Write the file atomically; the caller holds the lock that keeps out other writers."""
    # a round trip first, because the reader computes the digest from what JSON gives it
    content = json.loads(json.dumps(content))
    replace_file(file, json.dumps(content | {"digest": _digest(content)}, indent=1))


def _read_json(file: Path) -> dict[str, Any]:
    """Read a file of `_write_json`. ValueError if it is not JSON, or its digest does not match."""
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict) or content.get("digest") != _digest(content):
        raise ValueError("its content does not match its digest")
    return content
