"""The content behind a path, for the `identity()` of configurations that read local data.

A path alone is not enough: files are edited, and another directory has another `chats.jsonl`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ENDS = 64 * 1024  # bytes hashed at each end of a large file, to keep starts fast


def file_identity(path: str | Path) -> dict[str, str]:
    """`{"sha256": ...}` of the whole file; {} if there is none."""
    path = Path(path).expanduser()
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def data_set_identity(path: str) -> dict[str, str | int]:
    """Number, size and digest of the files of a local data set; {} if `path` is a hub name.

    The digest covers names, sizes and both ends of each file, so that many gigabytes of tables do
    not delay a start. Hidden files and the caches that `datasets` writes beside a saved data set
    are excluded.
    """
    root = Path(path).expanduser()
    if root.is_file():
        files = {root.name: root}
    else:
        below = {file.relative_to(root).as_posix(): file for file in root.rglob("*")}
        files = {name: below[name] for name in sorted(below) if _is_data(name, below[name])}
    if not files:
        return {}
    digest, size = hashlib.sha256(), 0
    for name, file in files.items():
        length = file.stat().st_size
        size += length
        digest.update(f"{name}\0{length}\0".encode())
        with file.open("rb") as opened:
            digest.update(opened.read(ENDS))
            opened.seek(max(ENDS, length - ENDS))
            digest.update(opened.read())
    return {"files": len(files), "bytes": size, "sha256": digest.hexdigest()}


def path_identity(path: str) -> dict[str, dict[str, str | int]]:
    """The `identity()` of a configuration whose `path` is a local data set or a hub name."""
    found = data_set_identity(path)
    return {"path": found} if found else {}


def adapter_identity(path: str | None) -> dict[str, dict[str, str]]:
    """The `identity()` of a configuration whose load_checkpoint_path may be a PEFT directory."""
    if path is None:
        return {}
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: file_identity(Path(path) / name).get("sha256") for name in names}
    found = {name: digest for name, digest in files.items() if digest}
    return {"load_checkpoint_path": found} if found else {}


def _is_data(name: str, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return file.is_file() and not hidden and not file.match("cache-*.arrow")
