"""Pairwise rewards: who meets whom, what a verdict is worth, and what a bad judge costs."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import chz
import pytest
import tinker

from tinker_cookbook.completers import StopCondition, TokenCompleter, TokensWithLogprobs
from tinker_cookbook.exceptions import ConfigurationError, DataValidationError
from tinker_cookbook.preference.envs import (
    PairwisePreferenceGroupBuilder,
    PairwisePreferenceRLDatasetBuilder,
    TournamentPattern,
    compute_win_minus_loss,
    split_into_chunks,
)
from tinker_cookbook.preference.preference_datasets import ComparisonBuilderFromJsonl
from tinker_cookbook.preference.types import (
    Comparison,
    PreferenceModel,
    PreferenceModelBuilder,
)
from tinker_cookbook.renderers import Message, get_renderer, get_text_content
from tinker_cookbook.rl import train, training_step
from tinker_cookbook.rl.defaults import RL_DEFAULTS
from tinker_cookbook.rl.problem_config import ProblemConfig, resolve_problem_config
from tinker_cookbook.rl.rollouts import do_group_rollout
from tinker_cookbook.rl.rollouts.strategy import RetryOnFailure
from tinker_cookbook.rl.testing import rows_of, train_config, trajectory, turn
from tinker_cookbook.rl.transcripts import read_rollouts, rollouts_file
from tinker_cookbook.rl.types import RLDataset, Trajectory, TrajectoryGroup
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.json_types import Json

RENDERER = get_renderer("qwen3_instruct", get_tokenizer("nano"))
PROMPT = [Message(role="user", content="Hello!")]
BOTH, ONE = TournamentPattern.ALL_PAIRS_BOTH_WAYS, TournamentPattern.ALL_PAIRS_ONE_WAY
END = "<|im_end|>"


def texts(comparison: Comparison) -> tuple[str, str]:
    sides = (comparison.completion_A, comparison.completion_B)
    a, b = (get_text_content(message) for (message,) in sides)
    return a, b


class Judge(PreferenceModel):
    """Judges by a function of the two texts; records them."""

    def __init__(self, verdict: Callable[[str, str], float]) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, str]] = []

    async def __call__(self, comparison: Comparison) -> float:
        assert comparison.prompt_conversation == PROMPT
        a, b = texts(comparison)
        self.asked.append((a, b))
        return self.verdict(a, b)


def shorter(a: str, b: str) -> float:
    return float((len(a) > len(b)) - (len(a) < len(b)))


class Player(TokenCompleter):
    """Gives the replies in their order."""

    def __init__(self, *replies: str) -> None:
        self.replies = iter(replies)

    async def __call__(
        self, model_input: tinker.ModelInput, stop: StopCondition, *, max_tokens: int | None = None
    ) -> TokensWithLogprobs:
        tokens = RENDERER.tokenizer.encode(next(self.replies), add_special_tokens=False)
        return TokensWithLogprobs(tokens, [-1.0] * len(tokens))


def builder(
    judge: PreferenceModel, size: int = 4, pattern: TournamentPattern = BOTH
) -> PairwisePreferenceGroupBuilder:
    return PairwisePreferenceGroupBuilder(PROMPT, RENDERER, pattern, judge, size)


async def collect(
    judge: PreferenceModel, *replies: str, pattern: TournamentPattern = BOTH
) -> TrajectoryGroup:
    return await do_group_rollout(builder(judge, len(replies), pattern), Player(*replies))


def finished(*replies: str) -> list[Trajectory]:
    encode = RENDERER.tokenizer.encode
    return [trajectory(turn([1], encode(text, add_special_tokens=False))) for text in replies]


# Matchups and rewards


@pytest.mark.parametrize("size", [2, 3, 4, 16])
def test_chunks_cover_the_members_and_leave_none_alone(size: int) -> None:
    for count in range(2, 40):
        chunks = split_into_chunks(count, size)
        assert [member for chunk in chunks for member in chunk] == list(range(count))
        lengths = list(map(len, chunks))
        assert min(lengths) >= 2 and max(lengths) - min(lengths) <= 1
        assert max(lengths) <= (3 if size == 2 and count % 2 else size)
        if count % size == 0:
            assert lengths == [size] * (count // size)
    assert split_into_chunks(1, size) == [range(1)]


def test_graded_verdicts() -> None:
    """Reply 0 loses 0.5 and wins 1, reply 1 wins 0.5, reply 2 loses 1, reply 3 meets nobody."""
    assert compute_win_minus_loss(4, [(0, 1), (0, 2)], [0.5, -1.0]) == [0.25, 0.5, -1.0, 0.0]


@pytest.mark.parametrize(("pattern", "num_calls"), [(BOTH, 24), (ONE, 12)])
async def test_the_replies_of_a_chunk_are_compared_with_one_another(
    pattern: TournamentPattern, num_calls: int
) -> None:
    judge = Judge(shorter)
    replies = [f"{'x' * length}{END}" for length in (1, 2, 3, 4, 8, 7, 6, 5)]
    group = await collect(judge, *replies, pattern=pattern)
    third = pytest.approx(1 / 3)
    expected = [1, third, pytest.approx(-1 / 3), -1]
    assert group.get_total_rewards() == [*expected, *expected[::-1]]
    assert [m["win_minus_loss"] for m in group.metrics_G] == group.final_rewards_G
    assert len(judge.asked) == num_calls == len(set(judge.asked))
    assert all((len(a) <= 4) == (len(b) <= 4) for a, b in judge.asked)
    swapped = {(b, a) for a, b in judge.asked}
    assert swapped == set(judge.asked) if pattern is BOTH else swapped.isdisjoint(judge.asked)


async def test_a_judge_that_prefers_a_position_decides_nothing_in_both_orders() -> None:
    replies = [f"{word}{END}" for word in ("a", "b", "c")]
    group = await collect(Judge(lambda a, b: 1.0), *replies)
    assert group.get_total_rewards() == [0, 0, 0]
    group = await collect(Judge(lambda a, b: 1.0), *replies, pattern=ONE)
    assert group.get_total_rewards() == [-1, 0, 1]


async def test_the_number_of_members_that_survived_decides_who_meets_whom() -> None:
    group = builder(Judge(shorter), size=8)
    envs = await group.make_envs()
    assert len({id(env) for env in envs}) == 8
    rewards = await group.compute_group_rewards(finished("xxx", "x", "xx", "", "xxxx"), envs[:5])
    assert [reward for reward, _ in rewards] == [-1, 1, 0, 1, -1]  # a pair, then three
    assert await group.compute_group_rewards(finished("x"), envs[:1]) == [
        (0.0, {"win_minus_loss": 0.0})
    ]


async def test_all_comparisons_of_a_group_are_in_flight_at_once() -> None:
    class Patient(PreferenceModel):
        """Answers once all 24 calls have arrived."""

        def __init__(self) -> None:
            self.barrier = asyncio.Barrier(24)

        async def __call__(self, comparison: Comparison) -> float:
            async with asyncio.timeout(5), self.barrier:
                return 0.5

    group = await collect(Patient(), *[f"{i}{END}" for i in range(8)])
    assert group.rollout_errors == [] and group.get_total_rewards() == [0.0] * 8


# Replies


async def test_truncated_and_malformed_replies_have_no_format_but_take_part() -> None:
    judge = Judge(shorter)
    group = await collect(judge, "x", f"xx{END}", f"xxx{END}", f"<tool_call>\n?\n</tool_call>{END}")
    formats = [each.transitions[0].metrics["format"] for each in group.trajectories_G]
    assert formats == [0, 1, 1, 0]
    assert group.final_rewards_G[0] > 0 > group.final_rewards_G[2]
    expected = [score + form - 1 for score, form in zip(group.final_rewards_G, formats)]
    assert group.get_total_rewards() == pytest.approx(expected)
    assert group.trajectories_G[0].transitions[0].logs == {"prompt": "Hello!", "reply": "x"}


async def test_judges_see_the_text_without_reasoning_and_equal_replies_too() -> None:
    judge = Judge(lambda a, b: 0.0)
    renderer = get_renderer("qwen3", get_tokenizer("nano"))
    group = PairwisePreferenceGroupBuilder(PROMPT, renderer, ONE, judge, 2)
    replies = finished(f"<think>\nlong\n</think>\n\nyes{END}", f"<think>\n\n</think>\n\nyes{END}")
    await group.compute_group_rewards(replies, await group.make_envs())
    assert judge.asked == [("yes", "yes")]


# Judges that fail


def fails(a: str, b: str) -> float:
    raise RuntimeError("the judge is out of order")


@pytest.mark.parametrize(
    ("verdict", "message"),
    [
        (fails, "RuntimeError: the judge is out of order"),
        (lambda a, b: math.nan, r"Judge returned nan: expected a preference from -1 \(A is"),
        (lambda a, b: 1.5, r"Judge returned 1\.5"),
    ],
)
async def test_a_judge_that_fails_costs_its_group(
    verdict: Callable[[str, str], float], message: str
) -> None:
    group = await collect(Judge(verdict), f"a{END}", f"b{END}")
    (error,) = group.rollout_errors
    assert group.trajectories_G == [] and error.kind == "group_error"
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(error.message)


async def test_the_other_comparisons_of_a_failed_group_are_cancelled_and_may_be_retried() -> None:
    class Once(PreferenceModel):
        """The first call fails; the others of its group would wait forever."""

        calls = cancelled = 0

        async def __call__(self, comparison: Comparison) -> float:
            self.calls += 1
            if self.calls == 1:
                await asyncio.sleep(0)
                raise RuntimeError("busy")
            if self.calls <= 12:
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled += 1
            return shorter(*texts(comparison))

    judge = Once()
    player = Player(*(f"{'x' * length}{END}" for length in (1, 2, 3, 4)))
    group = await do_group_rollout(builder(judge), player, RetryOnFailure(max_retries=1))
    assert (judge.calls, judge.cancelled) == (24, 11)
    assert [error.kind for error in group.rollout_errors] == ["group_error"]
    assert group.get_total_rewards() == pytest.approx([1, 1 / 3, -1 / 3, -1])


# The data set


@chz.chz
class JudgeBuilder(PreferenceModelBuilder):
    fails_on: str | None = None

    def __call__(self) -> PreferenceModel:
        return Choosy(self.fails_on)


class Choosy(PreferenceModel):
    """Prefers shorter replies, and fails on one prompt."""

    def __init__(self, fails_on: str | None) -> None:
        self.fails_on = fails_on

    async def __call__(self, comparison: Comparison) -> float:
        if get_text_content(comparison.prompt_conversation[-1]) == self.fails_on:
            raise RuntimeError("not this one")
        return shorter(*texts(comparison))


def write(path: Path, rows: Sequence[Json]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pairs(count: int) -> list[Json]:
    return [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in range(count)]


def data(
    path: str, **keys: int | str | PreferenceModelBuilder
) -> PairwisePreferenceRLDatasetBuilder:
    given = {
        "comparison_builder": ComparisonBuilderFromJsonl(train_path=path),
        "preference_model_builder": JudgeBuilder(),
        "batch_size": 4,
        "policy_renderer_name": "qwen3_instruct",
        "policy_model_name": "nano",
        "group_size": 3,
        "seed": 0,
    }
    return PairwisePreferenceRLDatasetBuilder(**{**given, **keys})


async def train_set(path: str, **keys: int) -> RLDataset:
    dataset, test = await data(path, **keys)()
    assert test is None
    return dataset


def prompts(dataset: RLDataset, index: int) -> list[str]:
    found = []
    for group in dataset.get_batch(index):
        assert isinstance(group, PairwisePreferenceGroupBuilder) and group.num_envs == 3
        found.append(get_text_content(group.convo_prefix[-1]))
    return found


async def test_every_prompt_once_per_epoch_in_an_order_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs(12))
    dataset = await train_set(path, num_epochs=2)
    assert len(dataset) == 6
    batches = [prompts(dataset, index) for index in range(6)]
    first, second = (list(itertools.chain(*part)) for part in (batches[:3], batches[3:]))
    assert sorted(first) == sorted(second) == sorted(f"q{i}" for i in range(12))
    assert first != second and first != [f"q{i}" for i in range(12)]
    again = await train_set(path, num_epochs=2)
    assert [prompts(again, index) for index in (5, 0)] == [batches[5], batches[0]]
    assert prompts(await train_set(path, seed=1), 0) != batches[0]


async def test_rows_without_a_prompt_are_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tie: Json = {
        "comparison": {"prompt_conversation": "tie", "completion_A": "a", "completion_B": "b"},
        "label": "Tie",
    }
    bad: list[Json] = [{"comparison": 3, "label": "A"}, {"text": "?"}]
    path = write(tmp_path / "rows.jsonl", [tie, *bad])
    with caplog.at_level(logging.WARNING):
        dataset = await train_set(path, batch_size=1)
    assert (len(dataset), prompts(dataset, 0)) == (1, ["tie"])
    assert f"{path}: 2 of 3 rows skipped: {path}:2: 'comparison' must be an" in caplog.text
    assert f"{path}:3: found 'text'" in caplog.text
    with pytest.raises(
        DataValidationError, match=r"none of the 20 rows has a usable prompt.*; and 15 more"
    ):
        await train_set(write(tmp_path / "none.jsonl", [bad[0]] * 20))


async def test_keys_that_cannot_work(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs(1))
    for key in ("group_size", "matchup_group_size"):
        with pytest.raises(ConfigurationError, match=f"^{key}=1: expected 2 or more, to compare"):
            data(path, **{key: 1})
    with pytest.raises(ConfigurationError, match="without batch_size: set batch_size="):
        await chz.replace(data(path), batch_size=None)()
    with pytest.raises(ConfigurationError, match="abstract base class; choose a preference model"):
        await data(path, preference_model_builder=PreferenceModelBuilder())()


def test_a_recipe_gives_the_keys_that_are_not_set(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs(1))
    unset = PairwisePreferenceRLDatasetBuilder(
        comparison_builder=ComparisonBuilderFromJsonl(train_path=path),
        preference_model_builder=JudgeBuilder(),
    )
    config = ProblemConfig(groups_per_batch=4, group_size=3)
    resolved = resolve_problem_config(config, RL_DEFAULTS, unset)
    assert resolved.config.dataset_builder == data(path)
    kept = resolve_problem_config(ProblemConfig(), RL_DEFAULTS, data(path)).config
    assert (kept.groups_per_batch, kept.group_size) == (4, 3)
    with pytest.raises(ConfigurationError, match="groups_per_batch=5 has no effect"):
        resolve_problem_config(ProblemConfig(groups_per_batch=5), RL_DEFAULTS, data(path))


# In the loop


async def test_a_run_with_a_judge_that_fails_now_and_then(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", pairs(8))
    judge = JudgeBuilder(fails_on="q1")
    config = train_config(
        tmp_path / "run", dataset_builder=data(path, preference_model_builder=judge)
    )
    await train.main(config)
    rows = rows_of(tmp_path / "run")
    assert sum(row.get("rollout_errors/group_error", 0) for row in rows) == 1
    assert sum(row.get("rollout_errors/groups_lost", 0) for row in rows) == 1
    assert [row["env/all/total_episodes"] for row in rows] in ([9, 12], [12, 9])
    assert all(abs(row["env/all/win_minus_loss"]) < 1e-9 for row in rows)


async def test_transcripts_show_the_score_and_its_mean_is_not_diagnosed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = write(tmp_path / "pairs.jsonl", pairs(4)), tmp_path / "run"
    monkeypatch.delattr(training_step, "RunDiagnostics")
    await train.main(train_config(run, dataset_builder=data(path), transcripts_every=1))
    (record, *_) = read_rollouts(rollouts_file(run, "train", 0))
    assert record["final_reward"] == record["trajectory_metrics"]["win_minus_loss"]
    (step,) = record["steps"]
    assert step["logs"].keys() == {"prompt", "reply"} and step["metrics"].keys() == {"format"}


@chz.chz
class ConnectingBuilder(PreferenceModelBuilder):
    def __call__(self) -> PreferenceModel:
        connect()
        raise ConfigurationError("connected")


async def test_judges_are_built_inside_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that they share its engine instead of loading their model into a second one."""
    engines: list[EngineConfig] = []
    # sys.modules: the package's `connect` is the function
    monkeypatch.setattr(sys.modules["tinker_cookbook.service.connect"], "_engine", engines.append)
    path = write(tmp_path / "pairs.jsonl", pairs(4))
    config = train_config(
        tmp_path / "run",
        dataset_builder=data(path, preference_model_builder=ConnectingBuilder()),
        engine=EngineConfig(num_threads=1),
    )
    with pytest.raises(ConfigurationError, match="connected"):
        await train.main(config)
    assert engines == [config.engine, config.engine]
