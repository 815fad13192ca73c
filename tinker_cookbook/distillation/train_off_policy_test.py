"""Off-policy distillation on nano: what is resolved and refused, what is learned, resuming."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from tinker_cookbook.distillation import train_off_policy
from tinker_cookbook.distillation.teacher import TeacherConfig
from tinker_cookbook.distillation.train_off_policy import Config
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.nano import PATH as NANO
from tinker_cookbook.supervised.data import InMemoryChats
from tinker_cookbook.training.run_identity import RunIdentity

CHATS = InMemoryChats(
    conversations=[{"prompt": f"Say {n}.", "completion": f"{n} it is"} for n in range(8)],
    test_conversations=[{"prompt": "Say 9.", "completion": "9 it is"}],
)
ITSELF = TeacherConfig(base_model="nano")


async def rows(log_path: Path, **keys: Any) -> list[dict[str, Any]]:
    """Two epochs of two steps; the rows of metrics.jsonl without times."""
    config = Config(
        **{
            "dataset_builder": CHATS,
            "log_path": str(log_path),
            "display": "none",
            "lora_rank": 4,
            "batch_size": 4,
            "num_epochs": 2,
            "eval_every": 2,
            "sample_replies": 0,
            **keys,
        }
    )
    await train_off_policy.main(config)
    found = [json.loads(line) for line in (log_path / "metrics.jsonl").read_text().splitlines()]
    return [
        {k: v for k, v in row.items() if not k.startswith(("time/", "progress"))} for row in found
    ]


async def test_a_student_that_has_moved_away_returns_to_its_teacher(tmp_path: Path) -> None:
    hard = await rows(tmp_path / "hard", learning_rate=3e-3)
    assert hard[-1]["test/nll"] < hard[0]["test/nll"] and "test/forward_kl" not in hard[0]
    soft = await rows(
        tmp_path / "soft",
        load_checkpoint_path=str(tmp_path / "hard"),
        teacher=ITSELF,
        topk=10,
        learning_rate=3e-3,
    )
    assert soft[0]["test/forward_kl"] > 1 and soft[-1]["test/forward_kl"] < 0.5
    assert soft[-1]["test/nll"] > soft[0]["test/nll"]  # base nano does not say this
    assert 0 < soft[0]["left_out_mass"] < 0.2
    assert "train_mean_nll" not in soft[0] and soft[0]["num_loss_tokens"] > 0


async def test_resuming_equals_no_interruption(tmp_path: Path) -> None:
    keys = {"teacher": ITSELF, "topk": 3, "lr_schedule": "constant", "submit_ahead": 2}
    whole = await rows(tmp_path / "whole", **keys)
    await rows(tmp_path / "parts", **keys, max_steps=2)
    assert await rows(tmp_path / "parts", **keys) == whole


def resolve(**keys: Any) -> Config:
    return train_off_policy.resolve(Config(**keys), CHATS).config


def test_the_teachers_context_limits_the_examples(tmp_path: Path) -> None:
    """An example is scored as the prompt of a sample of one token."""
    small = Path(shutil.copytree(NANO, tmp_path / "small"))
    file = small / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "max_position_embeddings": 256}))
    assert resolve().max_length == 512 == resolve(teacher=ITSELF, topk=5).max_length
    keys = {"teacher": TeacherConfig(base_model=str(small)), "topk": 5, "renderer_name": "qwen3"}
    assert resolve(**keys).max_length == 255
    assert resolve(**keys, max_length=255).max_length == 255
    with pytest.raises(ConfigurationError, match="up to 255 tokens, one less than its context"):
        resolve(**keys, max_length=256)


def test_another_tokenizer_is_refused_for_soft_targets_alone(tmp_path: Path) -> None:
    other = Path(shutil.copytree(NANO, tmp_path / "other"))
    file = other / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["merges"] = content["model"]["merges"][:5]
    file.write_text(json.dumps(content))
    teacher = TeacherConfig(base_model=str(other))
    with pytest.raises(ConfigurationError, match="its tokenizer differs from that of"):
        resolve(teacher=teacher, topk=5)
    assert resolve(teacher=teacher).teacher == teacher  # of replies that are sampled as text


def test_teacher_and_topk_belong_to_the_identity_of_a_run(tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    teacher = TeacherConfig(load_checkpoint_path=str(adapter))

    def directory(**keys: Any) -> Path:
        config = Config(**{"teacher": teacher, "topk": 20, "model_name": "nano", **keys})
        return RunIdentity(config, "off_policy_distillation").directory()

    first = directory()
    assert directory(save_every=7, topk=20) == first
    assert directory(topk=5) != first and directory(teacher=ITSELF) != first
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    assert directory() != first


async def test_keys_without_an_effect(tmp_path: Path) -> None:
    for keys, message in (
        (
            {"topk": 20},
            "topk=20: soft targets need the teacher's probabilities; set teacher_model=",
        ),
        ({"teacher": ITSELF}, "a teacher has no effect on replies that are hard targets"),
        ({"dataset_builder": None}, "set dataset_builder or dataset_path"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            await rows(tmp_path / "run", **keys)
    assert not (tmp_path / "run").exists()
