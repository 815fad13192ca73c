"""Base models from the hub, which is faked, and what an export takes along from a directory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook import models
from tinker_cookbook.exceptions import WeightsDownloadError
from tinker_cookbook.weights import base_files


def test_a_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[tuple[str, set[str]]] = []

    def snapshot(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, set(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(models, "check_files", lambda name: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert base_files.base_directory("Qwen/Qwen3-8B", weights=True) == tmp_path
    assert base_files.base_directory("Qwen/Qwen3-8B", weights=False) == tmp_path
    (name, whole), (_, small) = asked
    assert name == "Qwen/Qwen3-8B" and {"config.json", "tokenizer*"} <= small
    assert whole - small == {"model*.safetensors", "model.safetensors.index.json"}

    def fails(name: str, allow_patterns: list[str]) -> str:
        raise OSError("no such host\nmore")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fails)
    with pytest.raises(WeightsDownloadError, match=r"could not be downloaded \(no such host\)"):
        base_files.base_directory("Qwen/Qwen3-8B", weights=True)


def test_what_is_taken_along(tmp_path: Path) -> None:
    """In the hub's cache, files are links. Other weights, and files about them, stay behind."""
    blobs, base, output = tmp_path / "blobs", tmp_path / "base", tmp_path / "output"
    for directory in (blobs, base, output):
        directory.mkdir()
    taken: dict[str, Any] = {
        "tokenizer.json": "{}",
        "tokenizer_config.json": "{}",
        "chat_template.jinja": "x",
        "merges.txt": "a b",
        "generation_config.json": "{}",
        "modeling_own.py": "",
        "LICENSE": "Apache",
    }
    left = ("config.json", "README.md", "model.safetensors", "pytorch_model.bin", "x.gguf")
    for name in (*taken, *left):
        (blobs / name).write_text(taken.get(name, ""))
        (base / name).symlink_to(blobs / name)
    (base / "chat_templates").mkdir()
    (base / "chat_templates" / "tools.jinja").write_text("y")
    base_files.copy_small_files(base, output)
    found = {path.name for path in output.iterdir()}
    assert found == {*taken, "chat_templates"}
    assert not any(path.is_symlink() for path in output.iterdir())
    assert (output / "chat_templates" / "tools.jinja").read_text() == "y"
