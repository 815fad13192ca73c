"""Downloads: from the store of this machine, and from servers of two kinds."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, WeightsDownloadError
from tinker_cookbook.weights import checkpoint_files, download
from tinker_cookbook.weights.testing import our_logprobs, train

URL = "http://server"
PATH = "tinker://run:train:0/weights/000020"


class Result:
    """A future of the SDK that is done."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def result(self) -> Any:
        if isinstance(self.value, Exception):
            raise self.value
        return self.value


class FakeServer:
    """The SDK's service and REST clients. exports: as a server does that keeps other formats."""

    def __init__(self, urls: dict[str, str], exports: bool) -> None:
        self.urls, self.exports = urls, exports
        self.deleted: list[str] = []
        self.saved: list[tuple[str, int | None]] = []

    def create_rest_client(self) -> FakeServer:
        return self

    def get_external_weights_urls(self, path: str) -> Result:
        if self.exports and "/external_weights/" not in path:
            return Result(RuntimeError("400: not external weights\nmore"))
        return Result(SimpleNamespace(urls=self.urls))

    def create_training_client_from_state(self, path: str) -> Result:
        return Result(self)

    def save_weights_external(self, name: str, ttl_seconds: int | None = None) -> Result:
        self.saved.append((name, ttl_seconds))
        return Result(SimpleNamespace(path=f"tinker://run:train:1/external_weights/{name}"))

    def delete_checkpoint_from_tinker_path(self, path: str) -> Result:
        self.deleted.append(path)
        return Result(None)


@pytest.fixture
def files(tmp_path: Path) -> Iterator[str]:
    """The URL of a directory with two files."""
    directory = tmp_path / "served"
    directory.mkdir()
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 9000)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(directory))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def serve(monkeypatch: pytest.MonkeyPatch, server: FakeServer) -> None:
    def connect(base_url: str | None = None) -> FakeServer:
        assert base_url == URL
        return server

    monkeypatch.setattr(checkpoint_files, "connect", connect)


def test_from_this_machine(tiny_llama: str, tmp_path: Path) -> None:
    path = train(tiny_llama)
    made = download(tinker_path=path, output_dir=str(tmp_path / "out"))
    assert made == str(tmp_path / "out")
    assert np.abs(our_logprobs(made, tiny_llama) - our_logprobs(path)).max() == 0
    with pytest.raises(ConfigurationError, match="exists: set output_dir to a new directory"):
        download(tinker_path=path, output_dir=made)
    with pytest.raises(ConfigurationError, match="there is nothing to download"):
        download(tinker_path=made, output_dir=str(tmp_path / "again"))
    with pytest.raises(CheckpointError, match="no run none in the store"):
        download(tinker_path="tinker://none/weights/x", output_dir=str(tmp_path / "again"))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("exports", [False, True])
def test_from_a_server(
    exports: bool, files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("adapter_config.json", "adapter_model.safetensors")
    server = FakeServer({name: f"{files}/{name}" for name in names}, exports)
    serve(monkeypatch, server)
    made = Path(download(tinker_path=PATH, output_dir=str(tmp_path / "out"), base_url=URL))
    assert sorted(path.name for path in made.iterdir()) == list(names)
    assert (made / names[1]).read_bytes() == bytes(range(256)) * 9000
    exported = "tinker://run:train:1/external_weights/download"
    assert server.deleted == ([exported] if exports else [])
    assert server.saved == ([("download", 3600)] if exports else [])


def test_what_fails_leaves_nothing(
    files: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(urls: dict[str, str], said: str, path: str = PATH, exports: bool = False) -> None:
        serve(monkeypatch, FakeServer(urls, exports))
        with pytest.raises((CheckpointError, WeightsDownloadError), match=said) as error:
            download(tinker_path=path, output_dir=str(tmp_path / "out"), base_url=URL)
        assert "\n" not in str(error.value)
        assert [each.name for each in tmp_path.iterdir()] == ["served"]

    refused({"a": f"{files}/absent"}, "a could not be downloaded: HTTP Error 404")
    refused({"a": "http://127.0.0.1:9/x"}, "a could not be downloaded: .*refused")
    refused({"../a": f"{files}/adapter_config.json"}, "outside the directory")
    refused({"/a": f"{files}/adapter_config.json"}, "outside the directory")
    refused({}, "has no files")
    sampler = PATH.replace("weights", "sampler_weights")
    refused({}, "exports training checkpoints only .* use the path with /weights/", sampler, True)
    external = PATH.replace("weights", "external_weights")
    serve_error = RuntimeError("gone")
    monkeypatch.setattr(
        FakeServer, "get_external_weights_urls", lambda self, path: Result(serve_error)
    )
    refused({}, "could not be downloaded: gone", external)


def test_an_export_from_a_server(
    tiny_llama: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tinker_cookbook.weights.export import Config, export

    path = train(tiny_llama)
    source = Path(download(tinker_path=path, output_dir=str(tmp_path / "served")))
    urls = {file.name: file.as_uri() for file in source.iterdir()}
    serve(monkeypatch, FakeServer(urls, exports=True))
    output = tmp_path / "out"
    export(Config(checkpoint=PATH, output=str(output), base_url=URL))
    assert np.abs(our_logprobs(str(output), tiny_llama) - our_logprobs(path)).max() == 0
    assert (output / "README.md").is_file()
