from __future__ import annotations

import shutil
from pathlib import Path

import chz
import pytest

from recipes.preference.constitutional.train import CLI, Pipeline, main
from tinker_cookbook.checkpoint_utils import get_last_checkpoint
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference import train_dpo
from tinker_cookbook.supervised.chat_config import ChatConfig

SMALL = CLI(
    num_prompts=6,
    max_tokens=16,
    min_preference=0.0,
    max_steps=1,
    display="none",
    sft=ChatConfig(eval_every=0, sample_replies=0),
    dpo=train_dpo.Config(eval_every=0, sample_replies=0),
)
FILES = ("revisions.jsonl", "comparisons.jsonl")


async def test_stages_that_were_stopped_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All stages; the comparisons of a run that was stopped among them are the same, and finished
    training is neither repeated nor continued once a later stage depends on it."""
    run = tmp_path / "run"
    await main(chz.replace(SMALL, log_path=str(run)))
    whole = {name: (run / name).read_bytes() for name in FILES}
    assert all(text.count(b"\n") == 6 for text in whole.values())
    sft, dpo = (get_last_checkpoint(run / stage) for stage in ("sft", "dpo"))
    assert sft is not None and sft.final and dpo is not None and dpo.final
    config = (run / "dpo" / "config.json").read_text()
    assert f'"load_checkpoint_path": "{sft.state_path}"' in config
    assert f"the trained model is {run / 'dpo'}: load_checkpoint_path=" in capsys.readouterr().out

    with pytest.raises(
        ConfigurationError, match=r"num_prompts=7: .* has 6 prompts, and .*/sft holds"
    ):
        await main(chz.replace(SMALL, log_path=str(run), num_prompts=7))
    with pytest.raises(
        ConfigurationError, match=r"max_steps=2 would continue stage sft \(max_steps=1"
    ):
        await main(chz.replace(SMALL, log_path=str(run), max_steps=2))
    lines = whole["comparisons.jsonl"].splitlines(keepends=True)
    (run / "comparisons.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:30])
    shutil.rmtree(run / "dpo")
    await main(chz.replace(SMALL, log_path=str(run), run_dpo=False))
    assert {name: (run / name).read_bytes() for name in FILES} == whole
    assert get_last_checkpoint(run / "sft") == sft
    out = capsys.readouterr().out
    assert f"{run / 'sft'} holds a finished run of 1 step: nothing to do" in out
    assert not (run / "dpo").exists()


async def test_comparisons_of_the_start_model(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stages = {"run_revisions": False, "run_sft": False, "run_dpo": False}
    await main(chz.replace(SMALL, log_path=str(run), num_prompts=2, **stages))
    assert sorted(path.name for path in run.iterdir()) == [
        *(".lock", "comparisons.jsonl", "comparisons_settings.json", "config.json")
    ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("principles=missing.txt", r"principles=missing\.txt: no such file"),
        ("prompts=missing.jsonl", r"prompts=missing\.jsonl: no such file"),
        ("model_name=no/such", "model_name='no/such' is not a known model"),
        ("renderer_name=qwen3", "'A', 'B' with '<think>': choose one without thinking"),
        ("sft.model_name=x", "sft.model_name=x: all stages share model_name; set model_name="),
        ("dpo.log_path=x", "dpo.log_path=x: all stages share log_path; set log_path="),
        ("sft.dataset_path=x", "sft.dataset_path=x: this recipe sets it for each stage; drop it"),
        ("dpo.renderer_name=x", "dpo.renderer_name=x: .*; set renderer_name="),
        ("sft.lora_rank=8", "sft.lora_rank=8 and dpo.lora_rank=32: stage dpo trains"),
        ("dpo.loss=kto", "dpo.loss=kto trains on single replies"),
        ("min_preference=2", "min_preference=2.0: expected 0 to 1"),
        ("num_revisions=0", "num_revisions=0: expected 1 or more"),
        ("num_revision=2", "num_revision"),
        ("sft.learning_rat=1", "learning_rat"),
    ],
)
def test_bad_keys(words: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Pipeline.prepare(parse(CLI, words.split()))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"run_revisions": False}, r"run_sft=True needs .*revisions\.jsonl, which does not exist"),
        ({"run_judge": False}, r"run_dpo=True needs .*comparisons\.jsonl, which does not exist"),
    ],
)
async def test_a_stage_without_its_file(
    tmp_path: Path, stages: dict[str, bool], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await main(chz.replace(SMALL, log_path=str(tmp_path / "run"), **stages))


def test_an_empty_principles_file(tmp_path: Path) -> None:
    file = tmp_path / "empty.txt"
    file.write_text("\n")
    with pytest.raises(ConfigurationError, match=r"empty\.txt: the file has no principle"):
        Pipeline.prepare(CLI(principles=str(file)))


def test_the_kind_of_the_model() -> None:
    assert Pipeline.prepare(CLI()).kind == "instruct"
    assert Pipeline.prepare(CLI(model_kind="base")).kind == "base"
