"""The recipe `shorter` as a user runs it: its judge, its defaults, and what nano learns."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recipes.preference.shorter import train as shorter
from recipes.preference.shorter.shorter_replies import ConstantPrompt, Shorter, ShorterReplies
from tests.programs import Programs
from tinker_cookbook.preference.envs import PairwisePreferenceGroupBuilder
from tinker_cookbook.preference.types import Comparison
from tinker_cookbook.renderers import Message
from tinker_cookbook.rl.problem_config import resolve_problem_config
from tinker_cookbook.rl.testing import rows_of
from tinker_cookbook.rl.transcripts import read_rollouts, rollouts_file


@pytest.mark.parametrize(
    ("a", "b", "verdict"), [("I am nano.", "Hi!", 1), ("", "Hi!", -1), ("yes", "no.", 0)]
)
async def test_the_reply_with_fewer_characters_wins(a: str, b: str, verdict: float) -> None:
    completions = ([Message(role="assistant", content=text)] for text in (a, b))
    assert await ShorterReplies()(Comparison([], *completions)) == verdict


def test_other_prompts_and_judges_are_known_by_name(programs: Programs) -> None:
    """In a process of its own: here, other tests have imported them."""
    words = ("data=PairwisePreferenceRLDatasetBuilder", "--help")
    printed = programs.run("recipes.preference.shorter.train", *words).stdout
    assert "HubComparisons" in printed and "PromptedPreferenceModelBuilder" in printed


def test_defaults() -> None:
    for model, groups, rate, num_prompts in (
        ("nano", 8, 1e-3, 240),
        ("Qwen/Qwen3-8B", 32, 3e-5, 1024),
    ):
        config = shorter.CLI(model_name=model)
        resolved = resolve_problem_config(config, shorter.DEFAULTS, shorter.default_data(model))
        config, data = resolved.config, resolved.config.dataset_builder
        assert isinstance(data, Shorter) and data.comparison_builder.num_prompts == num_prompts
        assert (config.groups_per_batch, config.group_size, config.max_tokens) == (groups, 16, 64)
        assert (data.batch_size, data.group_size, data.policy_model_name) == (groups, 16, model)
        assert (config.learning_rate, config.compute_post_kl) == (rate, True)


async def test_every_group_replies_to_the_prompt() -> None:
    data = Shorter(
        comparison_builder=ConstantPrompt(prompt="Hi!", num_prompts=6),
        batch_size=2,
        group_size=4,
        policy_model_name="nano",
        policy_renderer_name="qwen3_instruct",
        seed=0,
    )
    dataset, test = await data()
    assert (len(dataset), test) == (3, None)
    for group in dataset.get_batch(2):
        assert isinstance(group, PairwisePreferenceGroupBuilder)
        assert group.convo_prefix == [Message(role="user", content="Hi!")]


def mean_characters(log_path: Path, step: int) -> float:
    rollouts = list(read_rollouts(rollouts_file(log_path, "train", step)))
    replies = [str(rollout["steps"][0]["logs"]["reply"]) for rollout in rollouts]
    return sum(map(len, replies)) / len(replies)


@pytest.mark.slow
async def test_nano_learns_to_reply_briefly(tmp_path: Path) -> None:
    run = tmp_path / "run"
    await shorter.main(shorter.CLI(log_path=str(run), display="none"))
    first, *_, last = rows_of(run)
    assert (first["step"], last["step"]) == (0, 29)
    assert first["env/all/ac_tokens_per_turn"] > 9 and last["env/all/ac_tokens_per_turn"] < 4
    assert mean_characters(run, 0) > 25 and mean_characters(run, 29) < 5
    assert all(abs(row["env/all/win_minus_loss"]) < 1e-9 for row in rows_of(run))
    assert last["env/all/format"] > 0.95
    assert "entropy collapses" not in (run / "logs.log").read_text()
    assert json.loads((run / "checkpoints.jsonl").read_text().splitlines()[-1])["final"]
