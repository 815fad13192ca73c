from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import chz
import pytest

from tinker_cookbook.distillation import datasets
from tinker_cookbook.distillation.datasets import (
    CompositeDataset,
    DistillationDatasetConfig,
    PromptOnlyDatasetBuilder,
    PromptOnlyEnv,
    TeacherDatasets,
    dataset_of,
    load_deepmath_prompts,
    load_tulu3_prompts,
)
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, DataValidationError
from tinker_cookbook.rl.testing import RENDERER, Additions, SomeAdditions
from tinker_cookbook.rl.types import EnvGroupBuilder

KEYS: dict[str, Any] = {
    "model_name_for_tokenizer": "nano",
    "renderer_name": "qwen3_instruct",
    "group_size": 2,
    "groups_per_batch": 3,
    "seed": 0,
}


async def test_a_reply_to_a_prompt_has_no_reward() -> None:
    env = PromptOnlyEnv("Hi!", RENDERER)
    prompt, stop = await env.initial_observation()
    text = RENDERER.tokenizer.decode(prompt.to_ints())
    assert text == "<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    end = RENDERER.tokenizer.encode("Hello<|im_end|>")
    for action, ended in ((end, 1.0), (end[:-1], 0.0)):
        result = await env.step(action)
        assert (result.reward, result.episode_done) == (0.0, True)
        assert result.metrics == {"ended": ended} and "Hello" in str(result.logs["reply"])
    assert stop == RENDERER.get_stop_sequences()


@chz.chz
class Lines(PromptOnlyDatasetBuilder):
    lines: list[str] = chz.field(default_factory=list)

    def load_prompts(self) -> list[str]:
        return self.lines


async def prompts_of(batch: list[EnvGroupBuilder]) -> list[str]:
    envs = [await group.make_envs() for group in batch]
    assert all(len(group) == 2 for group in envs)
    return [group[0].messages[-1]["content"] for group in envs]


async def test_prompts_in_batches(caplog: pytest.LogCaptureFixture) -> None:
    lines = [f"Question {number}?" for number in range(7)]
    data, test = await Lines(lines=[*lines, "long " * 2000], **KEYS)()
    assert test is None and len(data) == 2
    assert "1 prompt longer than max_prompt_tokens=1024 left out, 7 remain" in caplog.text
    seen = [await prompts_of(data.get_batch(index)) for index in range(2)]
    assert len({*seen[0], *seen[1]}) == 6 and {*seen[0], *seen[1]} <= {*lines}
    assert seen[1] == await prompts_of(data.get_batch(1))
    assert data.get_batch(0)[0].logging_tags() == ["deepmath"]
    with pytest.raises(DataValidationError, match="none of the 1 prompts has at most"):
        await Lines(lines=["long " * 2000], **KEYS)()


async def test_prompts_of_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Local files with the columns of the data sets on the hub."""
    rows = {
        "DeepMath": [
            {"question": "1 + 1?", "final_answer": "2"},
            {"question": "", "final_answer": ""},
        ],
        "tulu": [
            {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]},
            {"messages": [{"role": "assistant", "content": "a"}]},
        ],
    }
    for name, each in rows.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in each))
    monkeypatch.setattr(datasets, "DEEPMATH", str(tmp_path / "DeepMath.jsonl"))
    monkeypatch.setattr(datasets, "TULU3", str(tmp_path / "tulu.jsonl"))
    assert load_deepmath_prompts() == ["1 + 1?"]
    assert load_tulu3_prompts() == ["u"]
    monkeypatch.setattr(datasets, "TULU3", str(tmp_path / "DeepMath.jsonl"))
    with pytest.raises(DataFormatError, match="no column 'messages'; found 'question'"):
        load_tulu3_prompts()
    with pytest.raises(ConfigurationError, match="dataset_name='gsm': expected deepmath, tulu3"):
        await PromptOnlyDatasetBuilder(dataset_name="gsm", **KEYS)()


def test_every_batch_has_groups_of_each_data_set() -> None:
    sources = [Additions(SomeAdditions(), "train", 4, groups, 2) for groups in (3, 5)]
    mix = CompositeDataset(sources, [3, 1])
    assert len(mix) == 4  # the first ends after 12 groups
    for index in range(4):
        numbers = [dataset_of(group) for group in mix.get_batch(index)]
        assert sorted(numbers) == [0, 0, 0, 1]
    assert mix.get_batch(1)[0].logging_tags() == ["problems"]


async def test_the_data_sets_take_the_keys_of_the_recipe() -> None:
    each = [
        DistillationDatasetConfig(
            dataset_builder=Lines(lines=["a", "b", "c", "d"]), groups_per_batch=2
        ),
        DistillationDatasetConfig(dataset_builder=Lines(lines=["x", "y"]), groups_per_batch=1),
    ]
    keys = {key: value for key, value in KEYS.items() if key != "groups_per_batch"}
    data, test = await TeacherDatasets(datasets=each, **keys)()
    assert test is None and len(data) == 2
    assert [dataset_of(group) for group in data.get_batch(0)].count(0) == 2
    assert len(await prompts_of(list(data.get_batch(1)))) == 3
    with pytest.raises(ConfigurationError, match="datasets is empty"):
        await TeacherDatasets(datasets=[], **keys)()
