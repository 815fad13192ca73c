"""Model cards, and uploads to a hub that is faked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tinker_cookbook.exceptions import ConfigurationError, WeightsError
from tinker_cookbook.weights import generate_model_card, publish_to_hf_hub
from tinker_cookbook.weights.model_card import training_facts
from tinker_cookbook.weights.publish import Config, main
from tinker_cookbook.weights.publishing import prepare_upload


class FakeHub:
    """Records what `huggingface_hub.HfApi` is asked for."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error: Exception | None = None
        self.tokens: list[str | None] = []

    def __call__(self, token: str | None = None) -> FakeHub:
        self.tokens.append(token)
        return self

    def create_repo(self, repo_id: str, **keys: Any) -> str:
        if self.error is not None:
            raise self.error
        self.calls.append(("create_repo", {"repo_id": repo_id, **keys}))
        return f"https://hub/{repo_id}"

    def upload_folder(self, **keys: Any) -> None:
        self.calls.append(("upload_folder", keys))

    def upload_file(self, **keys: Any) -> None:
        self.calls.append(("upload_file", keys))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    import huggingface_hub

    fake = FakeHub()
    monkeypatch.setattr(huggingface_hub, "HfApi", fake)
    return fake


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    directory = tmp_path / ".exports" / "sums"  # a hidden directory above it hides nothing
    directory.mkdir(parents=True)
    config = {"r": 8, "base_model_name_or_path": "Qwen/Qwen3-8B"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    (directory / "adapter_model.safetensors").write_bytes(b"x" * 2_000_000)
    (directory / ".hidden").write_text("secret")
    return directory


def metadata(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


def test_a_dry_run_uploads_nothing(
    adapter: Path, hub: FakeHub, capsys: pytest.CaptureFixture[str]
) -> None:
    main(Config(model_path=str(adapter), repo_id="me/sums"))
    out = capsys.readouterr().out
    assert hub.calls == [] and hub.tokens == []
    assert "base_model: Qwen/Qwen3-8B" in out and "2.00 MB  adapter_model.safetensors" in out
    assert ".hidden" not in out and not (adapter / "README.md").exists()
    assert "would upload 2.00 MB to the private repository me/sums; set dry_run=False" in out


def test_publishing(adapter: Path, hub: FakeHub) -> None:
    (adapter / "README.md").write_text("# mine, edited\n")
    main(Config(model_path=str(adapter), repo_id="me/sums", dry_run=False, private=False))
    (made, repository), (_, folder), (_, card) = hub.calls
    assert made == "create_repo" and repository["private"] is False
    assert repository["repo_id"] == folder["repo_id"] == card["repo_id"] == "me/sums"
    assert folder["folder_path"] == str(adapter)
    assert folder["ignore_patterns"] == [".*", "README.md"]
    assert card["path_or_fileobj"] == b"# mine, edited\n" and card["path_in_repo"] == "README.md"
    url = publish_to_hf_hub(model_path=str(adapter), repo_id="me/x", token="t")
    assert url == "https://hub/me/x" and hub.tokens == [None, "t"]
    assert hub.calls[3][1]["private"] is True


def test_what_cannot_be_published(adapter: Path, tmp_path: Path, hub: FakeHub) -> None:
    with pytest.raises(ConfigurationError, match="repo_id='sums': expected OWNER/NAME"):
        prepare_upload(str(adapter), "sums")
    (tmp_path / "empty").mkdir()
    for path in ("empty", "absent"):
        with pytest.raises(ConfigurationError, match="is no exported directory"):
            prepare_upload(str(tmp_path / path), "me/sums")
    from huggingface_hub.errors import HfHubHTTPError

    request = httpx.Request("POST", "https://hub")
    response = httpx.Response(403, request=request)
    for error in (HfHubHTTPError("403 Forbidden\nmore", response=response), OSError("no network")):
        hub.error = error
        with pytest.raises(WeightsError, match=r"me/sums could not be published: ") as raised:
            publish_to_hf_hub(model_path=str(adapter), repo_id="me/sums")
        assert "\n" not in str(raised.value)


def test_a_base_model_that_nobody_else_has(adapter: Path) -> None:
    assert prepare_upload(str(adapter), "me/sums").warnings == []
    config = {"r": 8, "base_model_name_or_path": "/home/me/model"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    upload = prepare_upload(str(adapter), "me/sums")
    assert "base_model_name_or_path=/home/me/model is a directory" in upload.warnings[0]
    assert "base_model" not in metadata(upload.card)


def test_a_card_with_everything(tmp_path: Path) -> None:
    config = {
        "recipe": "chat_sl",
        "model_name": "Qwen/Qwen3-8B",
        "learning_rate": 5e-4,
        "seed": 0,
        "load_checkpoint_path": None,
        "log_path": "/home/me/runs/x",
        "dataset_builder": {
            "class": "own:Mine",
            "path": "/home/me/secret/rows.jsonl",
            "identity": {"path": "abc"},
            "sources": [{"name": "one", "weight": 0.5}],
        },
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = [
        {"step": 0, "train_mean_nll": 2.5, "test/nll": 3.0, "time/total": 1.0, "lr": 1.0},
        {"step": 1, "train_mean_nll": 1.25, "held_out/exact_match": 0.5},
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "metrics.jsonl").write_text(text)
    facts = training_facts(tmp_path)
    assert facts.metrics == {"train_mean_nll": 1.25, "test/nll": 3.0, "held_out/exact_match": 0.5}
    card = generate_model_card(
        title="mine", base_model="Qwen/Qwen3-8B", format="merged", facts=facts, dtype="bfloat16"
    )
    assert metadata(card) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "open-tinker-cookbook", "chat_sl"],
        "base_model": "Qwen/Qwen3-8B",
        "base_model_relation": "finetune",
    }
    for line in (
        "| dataset_builder.path | rows.jsonl |",
        "| dataset_builder.sources.0.weight | 0.5 |",
        "| learning_rate | 0.0005 |",
        "| seed | 0 |",
        "| held_out/exact_match | 0.5 |",
        'model = AutoModelForCausalLM.from_pretrained("mine")',
    ):
        assert line in card.splitlines()
    assert "/home/me" not in card and "None" not in card


def test_a_card_of_little(tmp_path: Path) -> None:
    assert training_facts(None) == training_facts(tmp_path)
    (tmp_path / "config.json").write_text("{")
    facts = training_facts(tmp_path)
    card = generate_model_card(title="x", base_model="nano", format="peft", facts=facts, rank=4)
    assert "`nano`, which is not on the hub" in card and "## Training" not in card
    assert "--max-lora-rank 4" in card and "base_model" not in metadata(card)
