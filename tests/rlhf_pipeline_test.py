"""The RLHF pipeline as a user runs it: its stages, killing and resuming each, and mistakes."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recipes.preference.datasets import NanoPairs
from recipes.preference.rlhf import rlhf_pipeline, stages
from recipes.preference.rlhf.rlhf_pipeline import ALIASES, CLI
from recipes.preference.sampled_style import StyleJudgeBuilder
from tests.programs import Program, Programs
from tinker_cookbook.checkpoint_utils import get_last_checkpoint
from tinker_cookbook.cli_utils import parse
from tinker_cookbook.exceptions import ConfigurationError, TinkerCookbookError
from tinker_cookbook.nano import tasks
from tinker_cookbook.rl.problem_config import ProblemConfig
from tinker_cookbook.supervised.chat_config import ChatConfig
from tinker_cookbook.training.stages import last_metrics, program_directory
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.plain_data import plain

STEPS = 4
SMALL = (
    *("...lora_rank=4", "...save_every=2", "...eval_every=3", "engine.deterministic=True"),
    *("comparisons=HubComparisons", "comparisons.test_size=4"),
    *(f"max_steps={STEPS}", "sft.batch_size=4", "rm.batch_size=4"),
    *("rl.groups_per_batch=2", "rl.group_size=4", "rl.max_tokens=8"),
)
STAGES = ("sft", "rm", "rl")
KINDS = ("generative", "bradley_terry")


class Pipeline:
    """One command, in one directory, with a store of its own."""

    def __init__(self, programs: Programs, directory: Path, *words: str) -> None:
        self._programs, self.log_path = programs, directory / "log"
        recipe, pairs = "recipes.preference.rlhf.rlhf_pipeline", directory / "pairs.jsonl"
        directory.mkdir(exist_ok=True)
        rng = random.Random(0)
        rows = [tasks.preference_pair(rng, "polite", "train") for _ in range(36)]
        jsonl.write_lines(pairs, rows)
        paths = (f"log_path={self.log_path}", f"comparisons.path={pairs}")
        self._command = (recipe, *SMALL, *paths, *words)
        self._env = {**os.environ, "TINKER_COOKBOOK_RUNS_DIR": str(directory / "runs")}

    def finish(self) -> str:
        done = self._programs.run(*self._command, env=self._env, timeout=200)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def refused(self) -> str:
        done = self._programs.run(*self._command, env=self._env, timeout=200)
        assert done.returncode == 2
        return done.stderr

    def end_in(self, stage: str, how: signal.Signals) -> int:
        """Start it and end it after the first checkpoint of a stage; its exit code."""
        process = self._programs.start(*self._command, env=self._env)
        self._wait(process, lambda: len(self.rows(stage)) >= 3)
        process.send_signal(how)
        process.communicate(timeout=100)
        assert process.returncode is not None and len(self.rows(stage)) <= STEPS
        return process.returncode

    def _wait(self, process: Program, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 120
        while not condition():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)

    def rows(self, stage: str) -> list[dict[str, Any]]:
        file = self.log_path / stage / "metrics.jsonl"
        rows = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_every_stage_killed_or_stopped_equals_an_uninterrupted_run(
    programs: Programs, tmp_path: Path, kind: str
) -> None:
    words = (f"preference_model={kind}", "rl.kl_penalty_coef=0.1")
    whole = Pipeline(programs, tmp_path / "whole", *words)
    broken = Pipeline(programs, tmp_path / "broken", *words)
    printed = whole.finish()
    assert f"reinforcement learning in {whole.log_path}/rl, from {whole.log_path}/sft" in printed
    assert "preference model: " in printed and "policy: win rate " in printed
    assert f"the policy is {whole.log_path}/rl: load_checkpoint_path=" in printed
    if kind == KINDS[0]:  # the stage before is the same with the other kind
        assert broken.end_in("sft", signal.SIGKILL) == -signal.SIGKILL
    assert broken.end_in("rm", signal.SIGTERM) == 143
    assert broken.end_in("rl", signal.SIGKILL) == -signal.SIGKILL
    again = broken.finish()
    for stage in ("sft", "rm"):
        assert f"{broken.log_path}/{stage} holds a finished run of 4 steps: nothing to do" in again
    assert "at step 2 of 4 from checkpoint 000002" in again
    for stage in STAGES:
        assert broken.rows(stage) == whole.rows(stage), stage
    assert [row["step"] for row in whole.rows("rl")] == list(range(STEPS + 1))
    first, last = whole.rows("rl")[0], whole.rows("rl")[-1]
    assert first["win_rate/preference_model"] == 0.5
    assert last["win_rate/preference_model/stderr"] > 0
    if kind != KINDS[0]:
        return
    # the policy depends on the SFT stage, which may then not go on
    longer = Pipeline(programs, tmp_path / "broken", *words, "max_steps=5")
    assert "error: max_steps=5 would continue stage sft (max_steps=4)" in longer.refused()
    # a third time: everything is finished
    assert broken.finish().count("nothing to do") == 3


async def test_stages_that_are_not_run(tmp_path: Path) -> None:
    """RL alone, from the base model, with a rule as the judge."""
    data = NanoPairs(num_train=4, num_test=2)
    small = ProblemConfig(groups_per_batch=1, group_size=2, max_tokens=4)
    judge = StyleJudgeBuilder(preference="polite")
    config = CLI(
        log_path=str(tmp_path),
        run_sft=False,
        max_steps=1,
        comparisons=data,
        rl=small,
        judge=judge,
        display="none",
    )
    await rlhf_pipeline.main(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "rl"]
    assert get_last_checkpoint(tmp_path / "rl") is not None
    stored = json.loads((tmp_path / "rl" / "config.json").read_text())
    assert stored["load_checkpoint_path"] is None


async def test_no_preference_model(tmp_path: Path) -> None:
    config = CLI(log_path=str(tmp_path), run_sft=False, run_rm=False)
    message = f"run_rm=False, and {tmp_path}/rm holds no finished run: set rm_path=, judge="
    with pytest.raises(ConfigurationError, match=message):
        await rlhf_pipeline.main(config)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["rm.seed=3"], "rm.seed=3: all stages share seed; set seed="),
        (["sft_path=x"], "sft_path=x has no effect with run_sft=True: set run_sft=False"),
        (["dataset=hhh", "comparisons=NanoPairs"], "dataset=hhh and comparisons= both name"),
        (["dataset=hh"], "dataset='hh' is unknown; set hhh, helpsteer3, ultrafeedback, nano_pairs"),
        (["rl.load_checkpoint_path=x"], "rl.load_checkpoint_path=x: .* sft_path="),
        (["rm.renderer_name=qwen3"], "begins a reply with '<think>', not with the label 'A'"),
        (["rm_path=x", "run_rm=False"], "rm_path=x: no such directory"),
        (["sft_path=x", "run_sft=False"], "sft_path=x: no such directory"),
        (["rl.group_size=1"], "group_size=1"),
        (["rl.lora_rank=8"], "sft.lora_rank=32 and rl.lora_rank=8: .* set both to the same value"),
        (["rl.kl_discount_factor=0.5"], "kl_discount_factor has no effect without kl_penalty_coef"),
        (["rl.loss_fn=nope"], "nope"),
        (
            [
                "rl.dataset_builder=PairwisePreferenceRLDatasetBuilder",
                "rl.dataset_builder.comparison_builder=NanoPairs",
                "rl.dataset_builder.preference_model_builder=StyleJudgeBuilder",
                "rl.dataset_builder.preference_model_builder.preference=short",
            ],
            "rl.dataset_builder=PairwisePreference.* set comparisons= and judge= instead",
        ),
        (
            [
                "judge=StyleJudgeBuilder",
                "judge.preference=polite",
                "preference_model=bradley_terry",
            ],
            "preference_model=bradley_terry has no effect with judge=",
        ),
    ],
)
async def test_mistakes(tmp_path: Path, words: list[str], message: str) -> None:
    with pytest.raises(TinkerCookbookError, match=message):
        await rlhf_pipeline.main(parse(CLI, [f"log_path={tmp_path}", *words], ALIASES))


async def test_an_unfinished_policy(tmp_path: Path) -> None:
    """RL does not start from the base model in its place."""
    sft = tmp_path / "sft"
    sft.mkdir()
    (sft / "metrics.jsonl").touch()
    judge = StyleJudgeBuilder(preference="polite")
    config = CLI(log_path=str(tmp_path), run_sft=False, judge=judge)
    message = f"run_sft=False, and {sft} holds an unfinished run: set run_sft=True to finish it"
    with pytest.raises(ConfigurationError, match=message):
        await rlhf_pipeline.main(config)


@pytest.mark.parametrize(("kind", "other"), [KINDS, KINDS[::-1]])
async def test_a_preference_model_of_the_other_kind(tmp_path: Path, kind: Any, other: Any) -> None:
    builder = stages.resolve_preference_model(ChatConfig(), kind, NanoPairs()).config
    stored = {"dataset_builder": plain(builder.dataset_builder)}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    config = CLI(rm_path=str(tmp_path), run_rm=False, preference_model=other)
    message = f"preference_model={other}, but {tmp_path} holds one .* set preference_model={kind}"
    with pytest.raises(ConfigurationError, match=message):
        await rlhf_pipeline.main(config)
    stages.check_kind(kind, str(tmp_path))
    stages.check_kind(kind, "tinker://run/sampler_weights/final")


def test_the_stages_that_are_run_do_not_name_the_directory() -> None:
    """Otherwise a stage that was left out at first could not be run later."""
    configs = [CLI(), CLI(run_sft=False, run_rm=False), CLI(run_rl=False, max_steps=3)]
    assert len({program_directory(config, "rlhf") for config in configs}) == 1


@pytest.mark.parametrize(
    ("recipe", "key"),
    [("rlhf.rlhf_pipeline", "judge"), ("shorter.train", "data.preference_model_builder")],
)
def test_the_prompted_judge_is_known(programs: Programs, recipe: str, key: str) -> None:
    """A class is known by its name only if the program imports it: hence a process of its own."""
    words = ["data=Shorter"] if key.startswith("data.") else []
    words += [f"{key}=PromptedPreferenceModelBuilder", f"{key}.model_name=nano", "seed=-1"]
    done = programs.run(f"recipes.preference.{recipe}", *words)
    assert done.stderr.startswith("error: seed=-1"), done.stderr


def test_the_tinker_cookbooks_names() -> None:
    words = ["base_model=nano", "rl_learning_rate=0.5", "rl_group_size=3", "...lora_rank=64"]
    config = parse(CLI, words, ALIASES)
    assert (config.rl.learning_rate, config.rl.group_size) == (0.5, 3)
    assert {stage.lora_rank for stage in (config.sft, config.rm, config.rl)} == {64}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", ["generative", "bradley_terry"])
async def test_nano_learns_to_be_polite(tmp_path: Path, kind: Any) -> None:
    config = CLI(log_path=str(tmp_path), preference_model=kind, display="none")
    await rlhf_pipeline.main(config)
    assert last_metrics(tmp_path / "rm", "test/")["test/preference_accuracy"] >= 0.85
    last = last_metrics(tmp_path / "rl", "")
    assert last["sampled/polite"] >= 0.75
    assert last["win_rate/polite"] >= 0.65 and last["win_rate/preference_model"] >= 0.65
