"""The store: training runs and their checkpoints in one directory, safe against crashes.

    <root>/runs/<run id>/
      run.json          what is trained: base model, rank, which layers, the user's metadata
      lock              held by the process that trains the run; its mtime = the last activity
      changes.lock      held for the moment in which a name or a manifest changes
      weights/<name>    link to the data; likewise sampler_weights/ and external_weights/
      data/<id>/        the files of one checkpoint and manifest.json (sizes, sha256 sums)
      data/<id>.lock    held by the writer until the checkpoint is complete, shared by readers

A checkpoint exists from the moment its link does, and a link appears, changes and vanishes in one
rename or unlink: whoever looks finds the old checkpoint, the new one or none. A reader follows the
link once and keeps that directory, whatever happens to the name meanwhile. Data that no link names
is removed as soon as neither a writer nor a reader holds its lock. The kernel releases the locks
of a killed process, so a crash leaves leftovers at most, and the next sweep removes those.

Locks are flock(2): several hosts may share a root where flock works between them.
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
# Paths, and what they lead to


class CheckpointPath(NamedTuple):
    """`tinker://<run_id>/<kind>/<name>`, taken apart."""

    run_id: str
    kind: Kind
    name: str

    def __str__(self) -> str:
        return f"{_SCHEME}{self.run_id}/{self.kind}/{self.name}"


def parse_path(path: str) -> CheckpointPath:
    """Take a tinker:// path apart. CheckpointError says what is wrong with it."""
    parts = path.removeprefix(_SCHEME).split("/") if isinstance(path, str) else []
    if len(parts) != 3 or not path.startswith(_SCHEME):
        raise CheckpointError(
            f"{path!r} is not a checkpoint path; "
            f"one reads {_SCHEME}<run>/<{'|'.join(KINDS)}>/<name>"
        )
    return _checked_path(*parts)


def _checked_path(run_id: str, kind: str, name: str) -> CheckpointPath:
    _check_name("run id", run_id)
    if kind not in KINDS:
        raise CheckpointError(f"{kind!r} is not a kind of checkpoint; use {', '.join(KINDS)}")
    _check_name("checkpoint name", name)
    return CheckpointPath(run_id, cast(Kind, kind), name)


def _check_name(what: str, name: str) -> None:
    """Names become file names: what could leave the directory or hide in it is refused."""
    if not isinstance(name, str) or not name:
        fault = "is empty or no string"
    elif "/" in name:
        fault = 'has a "/"'
    elif name.startswith("."):
        fault = "starts with a dot"
    elif not name.isprintable():
        fault = "has a character that cannot be printed"
    elif len(name) > 200 or len(os.fsencode(name)) > 240:  # file systems count bytes, up to 255
        fault = f"is too long ({len(name)} characters)"
    else:
        return
    raise CheckpointError(
        f"{what} {name!r} {fault}; use 1 to 200 printable characters (240 bytes), "
        'without "/" and without a dot in front'
    )


@dataclass(frozen=True)
class RunInfo:
    """A training run as run.json describes it. `corrupted`: that file cannot be read."""

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

    One from `open_checkpoint` also keeps its files in place, until it is closed or forgotten.
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
    """The right to write one run; `close()` or the end of the process gives it up."""

    run_id: str
    directory: Path
    _lock: FileLock = field(repr=False)

    @property
    def closed(self) -> bool:
        return self._lock.closed

    def touch(self) -> None:
        """The run is active now: sets its `last_request_time`."""
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
    """Runs and checkpoints under `root` (made by the first run), for many threads and processes."""

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
        """Start a run, or go on with one whose process has ended; nobody else can write it then.

        CheckpointError: another process writes it, or it exists with other facts.
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
                    self._check_same_facts(run_id, facts)
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
        """CheckpointError: no such run (names the nearest), or a run.json that cannot be read."""
        _check_name("run id", run_id)
        run = self._read_run(run_id)
        facts = {key: run[key] for key in (*_RUN_FACTS, "user_metadata")}
        return RunInfo(run_id, _activity(self._runs / run_id), **facts)

    def run_ids(self) -> list[str]:
        """Every run, the one with the newest activity first."""
        with _disk_errors("list the runs", self._runs):
            runs = [r for r in _names(self._runs) if (self._runs / r / "run.json").exists()]
            return sorted(runs, key=lambda run: _activity(self._runs / run), reverse=True)

    def list_runs(self, limit: int | None = None, offset: int = 0) -> list[RunInfo]:
        """Runs, newest activity first; one whose run.json cannot be read is there as corrupted."""
        runs = []
        for run_id in page(self.run_ids(), limit, offset):
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
        """Let `write(directory)` fill a directory, then give it its name: all or nothing.

        ttl_seconds: None = never expires. extra: more for the manifest (JSON). Returns the path.
        CheckpointError: a run not open here, a bad or taken name, a disk that is full or refuses.
        Anything else that `write` raises is passed on; nothing of the checkpoint stays.
        """
        path = _checked_path(run_id, kind, name)
        handle = self._handles.get(run_id)
        if handle is None or handle.closed:
            raise CheckpointError(f"run {run_id} is not open for writing here; create_run it first")
        expires_at = _expiry(ttl_seconds)
        if not overwrite:
            self._check_name_is_free(path)
        identity = f"{_now():%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"
        data, link = handle.directory / "data", self._link(path)
        try:
            # The lock is older than the directory: a directory with a free lock is a leftover.
            with (
                _disk_errors(f"write {path}", handle.directory),
                _held(data / f"{identity}.lock"),
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
                with self._changing(run_id):
                    if not overwrite:
                        self._check_name_is_free(path)
                    fresh = link.with_name(f".{identity}")
                    fresh.symlink_to(Path("..", "data", identity))
                    os.replace(fresh, link)
                    sync_directory(link.parent)
            handle.touch()
        finally:
            self.sweep(run_id)
        return str(path)

    def find(self, path: str) -> CheckpointInfo:
        """CheckpointError: no tinker:// path, no such run or name (says which exist), expired."""
        parsed = parse_path(path)
        info = self._load(parsed)
        if info is None:
            raise self._unknown(parsed)
        if info.expired:
            raise CheckpointError(
                f"{path} expired at {info.manifest['expires_at']}; "
                "save it with a longer ttl_seconds, or with None to keep it"
            )
        return info

    def path_of(self, directory: Path) -> str | None:
        """The path of the checkpoint whose files these are; None if they are of no present one."""
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
        """CheckpointError names the first file that is missing or differs from the manifest."""
        for name, expected in info.manifest["files"].items():
            try:
                found = _file_facts(info.directory / name)
            except OSError as error:
                raise self._damaged(info.path, name, error) from error
            for key, value in expected.items():
                if found[key] != value:
                    raise self._damaged(info.path, name, f"{key} is {found[key]}, not {value}")

    def open_checkpoint(self, path: str) -> CheckpointInfo:
        """`resolve` and `verify`; its files stay until the result is closed or forgotten."""
        while True:
            info = self.find(path)
            lock = info.directory.with_name(f"{info.directory.name}.lock")
            lease = None
            # No lock file: a store copied by hand, or the data was removed this moment.
            with _disk_errors(f"open {path}", info.directory), suppress(FileNotFoundError):
                lease = FileLock.take(lock, shared=True)
            # The name may have come to stand for other data before the lock was held.
            if self.find(path).directory == info.directory:
                self.verify(info)
                return replace(info, _lease=lease)

    def delete(self, path: str) -> None:
        """Remove a checkpoint, even a damaged one; who is reading it keeps the files."""
        parsed = parse_path(path)
        link, directory = self._link(parsed), self._runs / parsed.run_id
        if not os.path.lexists(link):
            raise self._unknown(parsed)
        with _disk_errors(f"delete {path}", directory):
            with self._changing(parsed.run_id):
                with suppress(CheckpointError):  # a damaged one does not know
                    if info := self._load(parsed):
                        self._remove_links(info)
                link.unlink(missing_ok=True)
                sync_directory(link.parent)
            _touch(directory)
        self.sweep(parsed.run_id)

    def link(self, path: str, at: Path) -> None:
        """Make `at` a relative symbolic link to a checkpoint, in place of any link there; it goes
        when the checkpoint does. OSError: not a link is there, or the file system has none."""
        target = self._link(self.find(path).path)
        at.parent.mkdir(parents=True, exist_ok=True)
        at = at.parent.resolve() / at.name
        if at.is_symlink():
            at.unlink()
        at.symlink_to(os.path.relpath(target.parent.resolve() / target.name, at.parent))
        known = self.find(path).manifest.get("links", [])
        self._edit(path, links=sorted({*known, str(at)}))

    def set_ttl(self, path: str, ttl_seconds: float | None) -> None:
        """Let a checkpoint expire `ttl_seconds` from now; None = never."""
        self._edit(path, expires_at=_expiry(ttl_seconds))

    def set_public(self, path: str, public: bool) -> None:
        """Publish or unpublish: a flag in the manifest."""
        self._edit(path, public=public)

    def list_checkpoints(
        self, run_id: str, limit: int | None = None, offset: int = 0
    ) -> list[CheckpointInfo]:
        """One run's checkpoints, newest first, without expired and damaged ones."""
        _check_name("run id", run_id)
        if not (self._runs / run_id / "run.json").exists():
            raise self._unknown_run(run_id)
        return page(self._newest_first([run_id]), limit, offset)

    def list_all(self, limit: int | None = None, offset: int = 0) -> list[CheckpointInfo]:
        """Every run's checkpoints, newest first, without expired and damaged ones."""
        return page(self._newest_first(self.run_ids()), limit, offset)

    def sweep(self, run_id: str | None = None) -> None:
        """Remove what expired or was replaced, and what killed writers left. None: in every run.

        Housekeeping only: where the disk does not allow it, things stay as they are.
        """
        with suppress(OSError):
            if run_id is None:
                for run in _names(self._runs):
                    self.sweep(run)
            else:
                self._drop_expired(run_id)
                self._drop_unnamed(run_id)

    # -- inside one run

    def _link(self, path: CheckpointPath) -> Path:
        return self._runs / path.run_id / path.kind / path.name

    def _changing(self, run_id: str) -> FileLock:
        return _held(self._runs / run_id / "changes.lock")

    def _read_run(self, run_id: str) -> dict[str, Any]:
        file = self._runs / run_id / "run.json"
        try:
            return _read_json(file)
        except FileNotFoundError:
            raise self._unknown_run(run_id) from None
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{file} is damaged: {error}; use another run") from error

    def _load(self, path: CheckpointPath) -> CheckpointInfo | None:
        """None: no such name. An expired checkpoint is returned."""
        link = self._link(path)
        while os.path.lexists(link):
            directory = link.resolve()
            try:
                return CheckpointInfo(path, directory, _read_json(directory / _MANIFEST))
            except (OSError, ValueError) as error:
                # Replaced and swept since the link was read? Then look again.
                if os.path.lexists(link) and link.resolve() == directory:
                    raise self._damaged(path, _MANIFEST, error) from error
        return None

    def _all(self, run_id: str) -> Iterator[CheckpointInfo]:
        """Every checkpoint that can be read, expired ones too."""
        for kind in KINDS:
            for name in _names(self._runs / run_id / kind):
                with suppress(CheckpointError):
                    if info := self._load(CheckpointPath(run_id, kind, name)):
                        yield info

    def _newest_first(self, run_ids: list[str]) -> list[CheckpointInfo]:
        with _disk_errors("list the checkpoints", self._runs):
            found = [info for run in run_ids for info in self._all(run) if not info.expired]
        return sorted(found, key=lambda info: (info.time, info.path), reverse=True)

    def _edit(self, path: str, **changes: Any) -> None:
        run_id = self.find(path).path.run_id
        with _disk_errors(f"change {path}", self._runs / run_id):
            with self._changing(run_id):
                info = self.find(path)
                _write_json(info.directory / _MANIFEST, info.manifest | changes)
            _touch(self._runs / run_id)

    def _check_name_is_free(self, path: CheckpointPath) -> None:
        with suppress(CheckpointError):  # a damaged one is the user's to replace
            info = self._load(path)
            if info is None or info.expired:
                return
        raise CheckpointError(f"{path} exists; pass overwrite=True or use another name")

    def _check_same_facts(self, run_id: str, facts: dict[str, Any]) -> None:
        found = self._read_run(run_id)
        for key, value in facts.items():
            if found[key] != value:
                raise CheckpointError(
                    f"run {run_id} exists with {key}={found[key]!r}, not {value!r}; "
                    "use another run id"
                )

    def _drop_expired(self, run_id: str) -> None:
        if any(info.expired for info in self._all(run_id)):
            with self._changing(run_id):
                for info in self._all(run_id):  # once more: set_ttl may have been faster
                    if info.expired:
                        self._remove_links(info)
                        self._link(info.path).unlink()

    def _remove_links(self, info: CheckpointInfo) -> None:
        """Those that `link` has made, as far as they still lead to this checkpoint."""
        target = self._link(info.path)
        for name in info.manifest.get("links", []):
            at = Path(name)
            with suppress(OSError):
                leads_to = Path(os.path.normpath(at.parent / at.readlink()))
                if leads_to == target.parent.resolve() / target.name:
                    at.unlink()

    def _drop_unnamed(self, run_id: str) -> None:
        data = self._runs / run_id / "data"
        identities = {name.removesuffix(".lock") for name in _names(data)}
        for identity in identities - self._named(run_id):
            lock = FileLock.take(data / f"{identity}.lock", wait=False)
            if lock is None:
                continue  # somebody writes or reads it
            with lock:
                # Only its writer links it, under this lock: unnamed now is unnamed for ever.
                if identity in self._named(run_id):
                    continue
                for kind in KINDS:
                    (self._runs / run_id / kind / f".{identity}").unlink(missing_ok=True)
                shutil.rmtree(data / identity, ignore_errors=True)
                if not (data / identity).exists():
                    (data / f"{identity}.lock").unlink()

    def _named(self, run_id: str) -> set[str]:
        """The ids of data that links point at."""
        folders = [self._runs / run_id / kind for kind in KINDS]
        return {(folder / name).resolve().name for folder in folders for name in _names(folder)}

    def _unknown_run(self, run_id: str) -> CheckpointError:
        known = self.run_ids()
        near = difflib.get_close_matches(run_id, known, n=3) or known[:3]
        there = f"the nearest are {', '.join(near)}" if near else "it has no runs yet"
        return CheckpointError(f"no run {run_id} in the store {self.root}; {there}")

    def _unknown(self, path: CheckpointPath) -> CheckpointError:
        if not (self._runs / path.run_id / "run.json").exists():
            return self._unknown_run(path.run_id)
        names = [f"{i.path.kind}/{i.path.name}" for i in self._newest_first([path.run_id])]
        more = f" and {len(names) - 20} older" if len(names) > 20 else ""
        there = f"it has {', '.join(names[:20])}{more}" if names else "it has none"
        return CheckpointError(f"run {path.run_id} has no {path.kind}/{path.name}; {there}")

    def _damaged(self, path: CheckpointPath, file: str, fault: object) -> CheckpointError:
        return CheckpointError(
            f"{path} is damaged: {self._link(path) / file}: {fault}; "
            "restore that file or use another checkpoint"
        )


# -------------------------------------------------------------------------------------------------
# Locks and files


def _held(path: Path) -> FileLock:
    return cast(FileLock, FileLock.take(path))


# safetensors and others wrap what the disk says into errors that are no OSError.
_DISK_SAYS = [os.strerror(code) for code in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG)]


@contextmanager
def _disk_errors(action: str, directory: Path) -> Iterator[None]:
    """Turn what the disk refuses into one line with the directory and the space left."""
    try:
        yield
    except Exception as error:
        refused = error.__cause__ if isinstance(error, StorageError) else error
        if isinstance(refused, TinkerCookbookError):
            raise
        if not isinstance(refused, OSError) and not any(text in str(error) for text in _DISK_SAYS):
            raise
        there = next(folder for folder in (directory, *directory.parents) if folder.is_dir())
        raise CheckpointError(
            f"cannot {action} in {directory}: {refused} ({shutil.disk_usage(there).free:,} bytes "
            "free); make room, correct the permissions or name another directory in "
            "TINKER_COOKBOOK_STORE_DIR; the same command resumes a run"
        ) from refused


def _now() -> datetime:
    return datetime.now(UTC)


def _expiry(ttl_seconds: float | None) -> str | None:
    if ttl_seconds is None:
        return None
    with suppress(TypeError, OverflowError):
        if ttl_seconds > 0:
            return (_now() + timedelta(seconds=ttl_seconds)).isoformat()
    raise CheckpointError(f"ttl_seconds={ttl_seconds!r}: use seconds above 0, or None for never")


def page(items: list[Any], limit: int | None, offset: int = 0) -> list[Any]:
    """`items[offset : offset + limit]`. ConfigurationError: a number below 0."""
    if offset < 0 or (limit is not None and limit < 0):
        raise ConfigurationError(f"limit={limit}, offset={offset}: use numbers from 0 up")
    return items[offset:] if limit is None else items[offset : offset + limit]


def _names(directory: Path) -> list[str]:
    """What the directory holds, hidden entries left out; nothing if it does not exist."""
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


def _file_facts(file: Path, flush: bool = False) -> dict[str, Any]:
    with file.open("rb") as stream:
        if flush:
            os.fsync(stream.fileno())
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
        return {"size_bytes": os.fstat(stream.fileno()).st_size, "sha256": digest}


def _seal(directory: Path) -> dict[str, dict[str, Any]]:
    """Bring the files and folders to the disk; returns size and checksum by relative name."""
    files = {}
    for folder, folders, names in os.walk(directory):
        for file in (Path(folder, name) for name in (*names, *folders)):
            name = file.relative_to(directory).as_posix()
            if file.is_symlink() or not (file.is_file() or file.is_dir()) or name == _MANIFEST:
                raise CheckpointError(
                    f"a checkpoint cannot hold {name!r}: "
                    f"write regular files, and none that is called {_MANIFEST}"
                )
            if file.is_file():
                files[name] = _file_facts(file, flush=True)
        sync_directory(Path(folder))
    return dict(sorted(files.items()))


def _digest(content: dict[str, Any]) -> str:
    body = {key: value for key, value in content.items() if key != "digest"}
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _write_json(file: Path, content: dict[str, Any]) -> None:
    """Replace the file atomically, under the caller's lock."""
    content = json.loads(json.dumps(content))  # as it will be read: the digest is over that
    replace_file(file, json.dumps(content | {"digest": _digest(content)}, indent=1))


def _read_json(file: Path) -> dict[str, Any]:
    """ValueError: not JSON, or not what was written."""
    content = json.loads(file.read_bytes())
    if not isinstance(content, dict) or content.get("digest") != _digest(content):
        raise ValueError("its content does not match its digest")
    return content
