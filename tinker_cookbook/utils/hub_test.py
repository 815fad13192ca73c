"""JSON of a data set on the hub, from a stand-in for the hub: read as files, also offline."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest

COMMIT = "0123456789abcdef" * 2 + "01234567"
API, FILES = "/api/datasets/me/some", f"/datasets/me/some/resolve/{COMMIT}/"
README = """---
configs:
- config_name: one
  default: true
  data_files:
  - split: train
    path: data/train-*
  - split: test
    path: data/test.json
- config_name: two
  data_files: other/*.json
---
"""
CONTENT = {
    "README.md": README,
    "data/train-0.jsonl": '{"a": 1}\n{"a": "2021-05-03"}\n',
    "data/train-1.jsonl": '{"a": [2.5], "late": {"x": null}}\n',
    "data/test.json": '[{"a": "5"}, {"a": 5}]',
    "other/z.json": '[{"b": 1}]',
    "weights.bin": "never asked for",
}
PROGRAM = """
import json, os, sys
from tinker_cookbook.utils.data_files import open_rows, open_stream
for opened, keys in json.loads(sys.argv[1]):
    if opened == "remove":
        os.remove(keys["path"])
        continue
    try:
        found = {"open_rows": open_rows, "open_stream": open_stream}[opened]("me/some", **keys)
        if opened == "open_rows":
            print(json.dumps([[row, found.where(number)] for number, row in enumerate(found)]))
        else:
            print(json.dumps([list(placed) for placed in found]))
    except Exception as error:
        print(json.dumps(f"{type(error).__name__}: {error}"))
"""


class Hub(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        path = unquote(urlparse(self.path).path).replace("/resolve/main/", f"/resolve/{COMMIT}/")
        if path.startswith(FILES):
            self._file(path.removeprefix(FILES))
        elif path.startswith(f"{API}/tree/"):
            self._json(self._tree(path.partition("/tree/")[2].partition("/")[2]))
        elif path.startswith(API):
            siblings = [{"rfilename": name} for name in CONTENT]
            self._json({"id": "me/some", "_id": "1", "sha": COMMIT, "siblings": siblings})
        else:
            self._json({"error": "Repository not found"}, 404)

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        asked = json.loads(body)["paths"]
        self._json([self._entry(name) for name in CONTENT if name in asked])

    def log_message(self, *_: object) -> None:
        self.asked.append(unquote(self.path).rpartition("/")[2])

    def _entry(self, name: str) -> dict[str, Any]:
        content = CONTENT[name].encode()
        digest = hashlib.sha1(content).hexdigest()
        return {"type": "file", "oid": digest, "size": len(content), "path": name}

    def _tree(self, under: str) -> list[dict[str, Any]]:
        inside = [name for name in CONTENT if name.startswith(f"{under}/" if under else "")]
        if "recursive=true" in self.path.lower():
            return [self._entry(name) for name in inside]
        depth = under.count("/") + 1 if under else 0
        parts = {"/".join(n.split("/")[: depth + 1]): None for n in inside}
        folder = {"type": "directory", "oid": "0" * 40, "size": 0}
        return [self._entry(p) if p in CONTENT else {**folder, "path": p} for p in parts]

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str) -> None:
        if name not in CONTENT:
            self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        content, status, headers = CONTENT[name].encode(), 200, {"X-Repo-Commit": COMMIT}
        headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            total, status = len(content), 206
            content = content[int(first) : int(last or total) + 1]
            headers["Content-Range"] = f"bytes {first}-{int(first) + len(content) - 1}/{total}"
        self._send(status, content, headers)

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@pytest.fixture
def hub() -> Iterator[ThreadingHTTPServer]:
    Hub.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_json_on_the_hub_is_read_as_files(hub: ThreadingHTTPServer, tmp_path: Path) -> None:
    def read(*wanted: tuple[str, dict[str, str]], offline: bool = False) -> list[Any]:
        environment = {
            **os.environ,
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_address[1]}",
            "HF_HUB_OFFLINE": str(int(offline)),
        }
        command = [sys.executable, "-c", PROGRAM, json.dumps(wanted)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    train = [
        [{"a": 1}, "me/some/data/train-0.jsonl:1"],
        [{"a": "2021-05-03"}, "me/some/data/train-0.jsonl:2"],
        [{"a": [2.5], "late": {"x": None}}, "me/some/data/train-1.jsonl:1"],
    ]
    test = [[{"a": "5"}, "me/some/data/test.json:1"], [{"a": 5}, "me/some/data/test.json:1"]]
    whole, part = ("open_rows", {}), ("open_rows", {"split": "test"})
    assert read(("open_stream", {}), whole, part) == [train, train, test]
    assert "weights.bin" not in Hub.asked and "z.json" not in Hub.asked

    requests = len(Hub.asked)
    (shard,) = tmp_path.rglob("snapshots/*/data/train-1.jsonl")
    other, remove = ("open_rows", {"name": "two"}), ("remove", {"path": str(shard)})
    *found, no_other, no_shard = read(
        whole, part, ("open_stream", {}), other, remove, whole, offline=True
    )
    assert found == [train, test, train] and len(Hub.asked) == requests
    assert "1 file(s) are missing (other/z.json)" in no_other
    assert "1 file(s) are missing (data/train-1.jsonl)" in no_shard
    assert no_shard.startswith("DataError: data set me/some could not be downloaded: ")
