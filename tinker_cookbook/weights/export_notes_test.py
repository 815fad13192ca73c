"""What an export says beside its figures, and where it looks for a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tinker_cookbook.checkpoint_utils import CheckpointRecord, append_record
from tinker_cookbook.exceptions import CheckpointError
from tinker_cookbook.weights import checkpoint_files
from tinker_cookbook.weights.checkpoint_path import checkpoint_path
from tinker_cookbook.weights.export import Config, export
from tinker_cookbook.weights.testing import train


@pytest.mark.parametrize(
    ("renderer", "format", "said"),
    [
        ("qwen3_instruct", "peft", ""),
        ("role_colon", "peft", "note: it was trained with renderer_name=role_colon, but the chat"),
        # the files of nano look like those of a Qwen3 that reasons
        ("qwen3_instruct", "merged", "out goes with renderer_name=qwen3_instruct, as it was"),
    ],
)
def test_the_renderer_of_the_training(
    renderer: str, format: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = train("nano", user_metadata={"renderer_name": renderer}, train_unembed=False)
    export(Config(checkpoint=path, output=str(tmp_path / "out"), format=format, check=False))
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert len(notes) == bool(said) and all(said in note for note in notes)
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("Note: it was trained with renderer_name=role_colon" in card) == (
        renderer != "qwen3_instruct"
    )


def test_the_last_checkpoint_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints.jsonl").touch()
    with pytest.raises(CheckpointError, match=r"checkpoint=.*: that run has no checkpoint yet"):
        checkpoint_path(str(tmp_path), "checkpoint")
    append_record(tmp_path, CheckpointRecord("a", 1, state_path="tinker://r/weights/a"))
    assert checkpoint_path(str(tmp_path), "checkpoint") == "tinker://r/weights/a"
    append_record(
        tmp_path,
        CheckpointRecord(
            "b", 2, state_path="tinker://r/weights/b", sampler_path="tinker://r/sampler_weights/b"
        ),
    )
    assert checkpoint_path(str(tmp_path), "checkpoint") == "tinker://r/sampler_weights/b"


def test_a_run_on_a_server_is_looked_for_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append_record(tmp_path, CheckpointRecord("a", 1, state_path="tinker://r/weights/a"))
    (tmp_path / "config.json").write_text(json.dumps({"base_url": "http://server"}))
    asked = []

    def download(*, tinker_path: str, output_dir: str, base_url: str | None) -> str:
        asked.append((tinker_path, base_url))
        raise CheckpointError("enough")

    monkeypatch.setattr(checkpoint_files, "download", download)
    with pytest.raises(CheckpointError, match="enough"):
        export(Config(checkpoint=str(tmp_path), output=str(tmp_path / "out")))
    assert asked == [("tinker://r/weights/a", "http://server")]
