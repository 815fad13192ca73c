"""Base models from a hub that works, is unreachable, or is slow."""

from __future__ import annotations

import functools
import hashlib
import http.server
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service import EngineConfig, connect, model_files
from tinker_cookbook.service.testing import DATA

NOWHERE = "http://127.0.0.1:9"  # nothing listens on the discard port
TRAIN = """
import sys, time
import numpy as np
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.service.testing import DATA
service = connect(engine=EngineConfig(device="cpu"), store_dir=sys.argv[1])
for model in sys.argv[2:]:
    start = time.monotonic()
    try:
        client = service.create_lora_training_client(model, rank=2)
        print("loss", client.forward_backward(DATA, "cross_entropy").result().metrics["loss:sum"])
    except ConfigurationError as error:
        print("error", error)
    print("seconds", time.monotonic() - start)
"""


class _Hub(http.server.BaseHTTPRequestHandler):
    """A fake hub with the files of one model, "me/tiny"."""

    def __init__(self, directory: Path, *args: object) -> None:
        self.directory = directory
        super().__init__(*args)  # type: ignore[arg-type]

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self.wfile.write(self._answer())

    def _answer(self) -> bytes:
        repository, _, file = self.path.partition("/resolve/")
        path = self.directory / file.partition("/")[2].partition("?")[0]
        known = repository == "/me/tiny" and path.is_file()
        content = path.read_bytes() if known else b""
        self.send_response(200 if known else 404)
        if not known:
            missing = "EntryNotFound" if repository == "/me/tiny" else "RepoNotFound"
            self.send_header("X-Error-Code", missing)
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub(tiny_qwen3: str) -> Iterator[str]:
    handler = functools.partial(_Hub, Path(tiny_qwen3))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def train(tmp_path: Path, endpoint: str, *models: str) -> tuple[list[tuple[str, float]], str]:
    """Result or error and seconds of each model, and what was printed besides, in a process that
    sees this hub."""
    hidden = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "hf")}
    environment["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(tmp_path / "store"), *models],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(models), done.stderr
    seconds = [float(line.split()[1]) for line in lines[1::2]]
    return list(zip(lines[::2], seconds)), done.stderr


def test_models_of_the_hub(tmp_path: Path, hub: str) -> None:
    (tiny, unknown), noise = train(tmp_path, hub, "me/tiny", "Qwen/Qwen3-8b")
    assert tiny[0].startswith("loss ")
    error = "error model_name='Qwen/Qwen3-8b': its files could not be downloaded (the hub"
    assert unknown[0].startswith(error)
    assert "similar known names: Qwen/Qwen3-8B" in unknown[0] and "Retrying" not in noise

    # the hub is out of reach: one model is in the cache
    (tiny, unknown), noise = train(tmp_path, NOWHERE, "me/tiny", "nanoo")
    assert tiny[0].startswith("loss ") and tiny[1] < 20
    error = "error model_name='nanoo': its files could not be downloaded (the hub at http:"
    assert unknown[0].startswith(error) and unknown[0].endswith("; similar known names: nano")
    assert unknown[1] < 10
    assert "Retrying" not in noise and "thrown" not in noise


def test_a_slow_download_holds_up_nobody_else(
    tmp_path: Path, tiny_qwen3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()

    def slow(name: str) -> None:
        gate.wait(60)
        raise ConfigurationError(f"{name} was not there after all")

    monkeypatch.setattr(model_files, "_download", slow)
    service = connect(engine=EngineConfig(device="cpu"), store_dir=tmp_path)
    waiting = service.create_lora_training_client("me/slow", rank=2)
    step = waiting.forward_backward(DATA, "cross_entropy")
    sampler = service.create_sampling_client(base_model="me/slow")
    snapshot = waiting.save_weights_and_get_sampling_client()
    start = time.monotonic()
    other = service.create_lora_training_client(tiny_qwen3, rank=2)
    assert other.forward_backward(DATA, "cross_entropy").result(30).metrics["loss:sum"] > 0
    assert time.monotonic() - start < 30
    assert not step.future().done() and not sampler.future().done()
    gate.set()
    for future in (waiting, step, sampler, snapshot):
        with pytest.raises(ConfigurationError, match="me/slow was not there after all"):
            future.result(30)
