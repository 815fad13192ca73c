"""Which data a path means today, for the `identity()` of configurations that read local data.

A path alone does not tell: another directory has another `chats.jsonl`, and a file grows.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

ENDS = 64 * 1024  # bytes of each end of a file that are read where reading all would take long


def file_identity(path: str | Path) -> dict[str, str]:
    """`{"sha256": ...}` of the whole content; {} where there is no such file."""
    path = Path(path).expanduser()
    if not path.is_file():
        return {}
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def data_set_identity(path: str) -> dict[str, str | int]:
    """Number, size and a digest of a local data set's files; {} where `path` is a name on the hub.

    The digest is over names, sizes and both ends of each file, so that tables of many gigabytes do
    not delay a start. Hidden files and the caches that `datasets` writes beside a saved data set
    are no part of it.
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
    """The `identity()` of a configuration whose key `path` is a data set on the hub or local."""
    found = data_set_identity(path)
    return {"path": found} if found else {}


def adapter_identity(path: str | None) -> dict[str, dict[str, str]]:
    """The `identity()` of a configuration whose load_checkpoint_path may be the directory of a PEFT
    adapter."""
    if path is None:
        return {}
    names = ("adapter_config.json", "adapter_model.safetensors")
    files = {name: file_identity(Path(path) / name).get("sha256") for name in names}
    found = {name: digest for name, digest in files.items() if digest}
    return {"load_checkpoint_path": found} if found else {}


def _is_data(name: str, file: Path) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return file.is_file() and not hidden and not file.match("cache-*.arrow")
