"""Metrics of groups worked out by hand, and the evaluator over scripted and real models."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker

from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.metric_util import (
    RLTestSetEvaluator,
    compute_trajectory_metrics,
    dataset_to_env_group_builders,
)
from tinker_cookbook.rl.metrics import SampleTrainGap
from tinker_cookbook.rl.rollouts.strategy import FailFast, RolloutFailedError
from tinker_cookbook.rl.signals import GroupReward, ReferenceKL
from tinker_cookbook.rl.testing import trajectory, turn
from tinker_cookbook.rl.trajectories import TrainingGroup, remove_mask
from tinker_cookbook.rl.types import (
    Env,
    EnvGroupBuilder,
    RLDataset,
    RolloutError,
    StepResult,
    StopReason,
    Trajectory,
    TrajectoryGroup,
)
from tinker_cookbook.service import EngineConfig, connect
from tinker_cookbook.testing import ScriptedEngine, scripted_service


def member(
    *rewards: float,
    metrics: Sequence[dict[str, float]] = (),
    cut: bool = False,
    stop: StopReason = StopReason.DONE,
) -> Trajectory:
    """An episode with prompts of 3, 6, ... tokens and replies of 2 tokens."""
    turns = [turn(range(3 * (i + 1)), [1, 2], reward=reward) for i, reward in enumerate(rewards)]
    for each, values in zip(turns, metrics):
        each.metrics = values
    if cut:
        turns[-1].ac = TokensWithLogprobs([1, 2], [-1.0, -1.0], "length")
    return dataclasses.replace(trajectory(*turns), stop_reason=stop)


def group_of(
    *members: Trajectory,
    finals: list[float] | None = None,
    metrics: list[dict[str, float]] | None = None,
    errors: Sequence[RolloutError] = (),
) -> TrajectoryGroup:
    finals = finals or [0.0] * len(members)
    return TrajectoryGroup(
        list(members), list(finals), metrics or [{} for _ in members], list(errors)
    )


GROUPS = [
    group_of(  # mixed: total rewards 1.5 and 0
        member(0.5, 1.0, metrics=[{"correct": 0}, {"correct": 1, "format": True}]),
        member(0.0, cut=True, stop=StopReason.MAX_TURNS, metrics=[{"correct": 0}]),
        metrics=[{"rank": 1}, {"rank": 2}],
    ),
    group_of(member(0.25), member(0.0), finals=[0.25, 0.5]),  # all good
    group_of(member(0.0, cut=True), member(0.0)),  # all bad
    group_of(  # lost
        errors=[RolloutError("env_error", "x", 0), RolloutError("env_error", "x", 1)]
    ),
]


def test_metrics_by_hand() -> None:
    found = compute_trajectory_metrics(GROUPS, [["a"], ["a", "b"], [], ["c"]])
    everything = {k.removeprefix("env/all/"): v for k, v in found.items() if "env/all/" in k}
    assert everything == {
        "ac_tokens_per_turn": 2,
        "ob_tokens_per_turn": (3 + 6 + 5 * 3) / 7,
        "frac_cut": 2 / 7,
        "turns_per_episode": 7 / 6,
        "total_episodes": 6,
        "total_turns": 7,
        "total_ac_tokens": 14,
        "total_ob_tokens": 24,
        "reward/total": (1.5 + 0 + 0.5 + 0.5 + 0 + 0) / 6,
        "by_group/frac_mixed": 1 / 3,
        "by_group/frac_all_good": 1 / 3,
        "by_group/frac_all_bad": 1 / 3,
        "stopped/max_turns": 1 / 6,
        "correct": 1 / 3,
        "format": 1.0,
        "rank": 1.5,
    }
    assert found["env/a/total_episodes"] == 4 and found["env/b/total_episodes"] == 2
    assert found["env/a/reward/total"] == 2.5 / 4 and found["env/b/reward/total"] == 0.5
    assert found["env/c/total_episodes"] == 0 and "env/c/reward/total" not in found
    assert found["rollout_errors/env_error"] == 2 and found["rollout_errors/groups_lost"] == 1
    assert not [key for key in found if key.startswith("env/d")]


def test_a_tag_of_all_groups_is_not_repeated_and_lists_must_match() -> None:
    found = compute_trajectory_metrics(GROUPS[:2], [["a", "a"], ["a"]])
    assert {key.split("/")[1] for key in found} == {"all"}
    assert not [key for key in found if key.startswith("rollout_errors")]
    found = compute_trajectory_metrics(GROUPS[:2], [["a", "a"], []])
    assert found["env/a/total_episodes"] == 2  # a tag named twice counts once
    with pytest.raises(ValueError, match="different lengths"):
        compute_trajectory_metrics(GROUPS, [["a"]])


def test_a_batch_of_nothing_has_counts_and_no_ratio() -> None:
    found = compute_trajectory_metrics(GROUPS[3:], [[]])
    assert found["env/all/total_episodes"] == 0 and "env/all/reward/total" not in found
    assert found["rollout_errors/groups_lost"] == 1
    empty = group_of(member())  # an episode without a turn
    found = compute_trajectory_metrics([empty], [[]])
    assert found["env/all/turns_per_episode"] == 0 and found["env/all/reward/total"] == 0


def test_metrics_that_are_no_numbers_cost_no_step_and_are_counted() -> None:
    values = {"a": None, "b": math.nan, "c": "x", "d": np.float32(0.5), "reward/total": 99}
    found = compute_trajectory_metrics([group_of(member(1.0, metrics=[values]))], [[]])
    assert found["env/all/metrics_not_numbers"] == 3
    assert found["env/all/d"] == 0.5 and type(found["env/all/d"]) is float
    assert found["env/all/reward/total"] == 1.0  # ours stays ours
    assert not {"env/all/a", "env/all/b", "env/all/c"} & found.keys()


class Sum(Env):
    """The reward is the sum of the reply's tokens; a negative prompt token makes it fail."""

    def __init__(self, token: int) -> None:
        self.token = token

    async def initial_observation(self) -> tuple[tinker.ModelInput, list[int]]:
        return tinker.ModelInput.from_ints([5, abs(self.token)]), [2]

    async def step(self, action: list[int]) -> StepResult:
        if self.token < 0:
            raise RuntimeError("broken")
        return StepResult(
            float(sum(action)), True, tinker.ModelInput.from_ints([]), [2], {"length": len(action)}
        )


class Sums(EnvGroupBuilder):
    def __init__(self, *tokens: int) -> None:
        self.tokens = tokens

    async def make_envs(self) -> list[Sum]:
        return [Sum(token) for token in self.tokens]

    def logging_tags(self) -> list[str]:
        return ["even" if self.tokens[0] % 2 == 0 else "odd"]


class Problems(RLDataset):
    def __init__(self, *batches: Sequence[EnvGroupBuilder]) -> None:
        self.batches = batches

    def get_batch(self, index: int) -> Sequence[EnvGroupBuilder]:
        return self.batches[index]

    def __len__(self) -> int:
        return len(self.batches)


@pytest.fixture
def engine() -> ScriptedEngine:
    """Replies with the prompt's last token and the stop token."""
    return ScriptedEngine(lambda asked: [asked.prompt[-1], 2])


@pytest.fixture
def client(engine: ScriptedEngine, tmp_path: Path) -> tinker.SamplingClient:
    service = scripted_service(engine, tmp_path)
    return service.create_sampling_client(base_model="nano").result()


DATASET = Problems([Sums(10, 10), Sums(11, 11)], [Sums(20, 20), Sums(31, -1)])


async def test_the_evaluator_plays_every_group_once(
    engine: ScriptedEngine, client: tinker.SamplingClient
) -> None:
    evaluator = RLTestSetEvaluator(DATASET, max_tokens=7, name="held", temperature=0.5)
    found = await evaluator(client)
    assert [builder.tokens[0] for builder in dataset_to_env_group_builders(DATASET)] == [
        10,
        11,
        20,
        31,
    ]
    assert found["held/env/all/reward/total"] == (12 * 2 + 13 * 2 + 22 * 2 + 33) / 7
    assert found["held/env/even/reward/total"] == (12 * 2 + 22 * 2) / 4
    assert found["held/env/all/length"] == 2
    assert found["held/rollout_errors/env_error"] == 1
    assert "held/rollout_errors/groups_lost" not in found
    assert all(each.max_tokens == 7 and each.temperature == 0.5 for each in engine.samples)
    decode = client.get_tokenizer().decode
    assert evaluator.lines() == [
        "held: 4 of 4 groups completed, 1 failure, the first: env_error: Sums, member 1: Sum.step:"
        " RuntimeError: broken",
        *[
            f"  {decode([5, first])!r} -> {decode([first, 2])!r} (reward {first + 2})"
            for first in (10, 11, 20)
        ],
    ]
    assert [len(group.trajectories_G) for group in evaluator.groups_P] == [2, 2, 2, 1]
    assert evaluator.taglist_P == [["even"], ["odd"], ["even"], ["odd"]]


async def seeds_of_samples(
    evaluator: RLTestSetEvaluator,
    client: tinker.SamplingClient,
    engine: ScriptedEngine,
    at_a_time: int,
) -> list[int]:
    """Of all 8; so many of them are asked for before the first of these is answered."""
    engine.requests.clear()
    engine.hold()
    task = asyncio.ensure_future(evaluator(client))
    for total in range(at_a_time, 9, at_a_time):
        async with asyncio.timeout(5):
            while len(engine.samples) < total:
                await asyncio.sleep(0.001)
        await asyncio.sleep(0.005)
        assert len(engine.samples) == total
        engine.release()
        engine.hold()
    await task
    return [each.seed for each in engine.samples]


async def test_evaluations_sample_with_the_same_seeds(
    engine: ScriptedEngine, client: tinker.SamplingClient
) -> None:
    evaluator = RLTestSetEvaluator(DATASET, max_tokens=7, groups_at_a_time=1)
    first, second = [
        await seeds_of_samples(evaluator, client, engine, at_a_time=2)  # members of one group
        for _ in range(2)
    ]
    evaluator = RLTestSetEvaluator(DATASET, max_tokens=7, seed=1)
    other = await seeds_of_samples(evaluator, client, engine, at_a_time=8)  # members of all
    assert first == second and len(set(first + other)) == 16


async def test_a_failure_of_the_evaluation_ends_it_and_gives_back_every_environment(
    client: tinker.SamplingClient,
) -> None:
    cleaned = []

    class Tidy(Sums):
        async def cleanup(self) -> None:
            cleaned.append(self.tokens[0])

        async def compute_group_rewards(self, trajectories_G: Any, env_group: Any) -> Any:
            await asyncio.Event().wait()  # the others would wait for ever

    dataset = Problems([Tidy(-1), Tidy(1), Tidy(2)])
    with pytest.raises(RolloutFailedError, match="broken"):
        async with asyncio.timeout(10):
            await RLTestSetEvaluator(dataset, max_tokens=7, strategy=FailFast())(client)
    assert sorted(cleaned) == [-1, 1, 2]


async def test_nano_from_sampling_to_a_step(tmp_path: Path) -> None:
    """Sampled, weighed and trained in process: sampler, trainer and reference agree, and a step
    moves the sampled tokens the way their advantages point."""
    service = connect(engine=EngineConfig(device="cpu"), store_dir=tmp_path / "store")
    client = await service.create_lora_training_client(base_model="nano", rank=8, seed=0)
    sampler = await client.save_weights_and_get_sampling_client()
    dataset = Problems([Sums(*[20 + i] * 4) for i in range(3)])
    evaluator = RLTestSetEvaluator(dataset, max_tokens=12)
    metrics = await evaluator(sampler)
    assert metrics["test/env/all/total_episodes"] == 12
    assert metrics["test/env/all/by_group/frac_mixed"] > 0

    groups = [TrainingGroup.from_group(group) for group in evaluator.groups_P]
    reference = ReferenceKL(sampler, coef=1.0, discount=0.9)
    for group in groups:
        await reference.prepare(group)
    assert abs(reference.add(groups)["kl_policy_base"]) < 1e-5
    assert max(abs(r).max() for g in groups for m in g.advantages_G for r in m) < 1e-3
    GroupReward("grpo").add(groups)

    datums = [datum for group in groups for datum in group.datums()]
    output = await client.forward_backward([remove_mask(d) for d in datums], "importance_sampling")
    logprobs = [each["logprobs"] for each in output.loss_fn_outputs]
    gap = SampleTrainGap()
    gap.add(datums, logprobs)
    found = gap.metrics(sum(group.num_sampled_tokens for group in groups))
    assert found["optim/logprob_gap_max"] < 1e-5 and found["optim/frac_masked"] == 0
    assert found["optim/entropy"] > 0
    await client.optim_step(tinker.AdamParams(learning_rate=1e-3))
    for loss_fn in ("dro", "gspo"):  # the engine takes what these losses are sent
        sent = [remove_mask(datum, loss_fn) for group in groups for datum in group.datums(loss_fn)]
        output = await client.forward(sent, loss_fn)
    moved = sum(
        float(datum.loss_fn_inputs["advantages"].to_numpy() @ (b.to_numpy() - a.to_numpy()))
        for datum, a, b in zip(datums, logprobs, [o["logprobs"] for o in output.loss_fn_outputs])
    )
    assert moved > 0
