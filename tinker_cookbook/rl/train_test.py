"""The loop on nano, in process: what it learns, what it refuses, and what it survives."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest
from safetensors.numpy import load_file

from tinker_cookbook.exceptions import (
    AllTrajectoriesFailedError,
    ConfigurationError,
    TrainingError,
)
from tinker_cookbook.rl import train, training_step
from tinker_cookbook.rl.rollouts.strategy import FailFast
from tinker_cookbook.rl.signals import sequence_logprobs
from tinker_cookbook.rl.testing import Additions, SomeAdditions, rows_of, train_config
from tinker_cookbook.rl.training_step import PolicyTrainer
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.rl.transcripts import read_rollouts
from tinker_cookbook.rl.types import (
    EnvGroupBuilder,
)
from tinker_cookbook.service import EngineConfig
from tinker_cookbook.utils import ml_log
from tinker_cookbook.utils.ml_log import Sample


def adapter_of(log_path: Path, store: Path) -> dict[str, np.ndarray]:
    record = json.loads((log_path / "checkpoints.jsonl").read_text().splitlines()[-1])
    run, _, name = record["sampler_path"].removeprefix("tinker://").partition("/")
    (file,) = store.glob(f"runs/*{run.split(':')[0]}*/{name}/adapter_model.safetensors")
    return load_file(file)


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TINKER_COOKBOOK_STORE_DIR", str(tmp_path / "store"))
    return tmp_path / "store"


async def test_nano_learns_to_add(tmp_path: Path) -> None:
    """Ten steps; other seeds and the rest of the curve are in recipes/rl_basic.py."""
    data = SomeAdditions(batches=10, groups=32, size=8)
    await train.main(train_config(tmp_path / "run", data, max_tokens=40, lora_rank=32))
    rows = rows_of(tmp_path / "run")
    assert np.mean([row["env/all/reward/total"] for row in rows[:3]]) < 0.6
    assert np.mean([row["env/all/reward/total"] for row in rows[-3:]]) > 0.8
    assert rows[-1]["env/all/ac_tokens_per_turn"] > 1.5 * rows[0]["env/all/ac_tokens_per_turn"]
    # sampler and trainer are one model: fp32 rounding is all that is between them
    assert max(row["optim/logprob_gap_mean"] for row in rows) < 2e-6
    assert max(row["optim/logprob_gap_max"] for row in rows) < 5e-5


async def gradient(tmp_path: Path, store: Path, name: str, **changes: Any) -> np.ndarray:
    """Of one optimizer step on 8 x 4 rollouts: with an eps far above it, Adam's step is -lr / eps
    times the gradient."""
    data = SomeAdditions(batches=1, groups=8)
    keys = {"learning_rate": 1e6, "adam_eps": 1e6, **changes}
    await train.main(train_config(tmp_path / name, data, **keys))
    adapter = adapter_of(tmp_path / name, store)
    return np.concatenate([adapter[key].ravel() for key in sorted(adapter) if "lora_B" in key])


@pytest.mark.parametrize("changes", [{}, {"kl_penalty_coef": 0.1}, {"advantage": "grpo"}])
async def test_minibatches_change_no_gradient(
    tmp_path: Path, store: Path, changes: dict[str, Any]
) -> None:
    whole = await gradient(tmp_path, store, "whole", **changes)
    parts = await gradient(tmp_path, store, "parts", num_minibatches=4, **changes)
    ahead = await gradient(tmp_path, store, "ahead", max_lag=3, num_minibatches=3, **changes)
    largest = np.abs(whole).max()
    assert largest > 1e-3
    assert np.abs(whole - parts).max() <= 1e-5 * largest
    assert np.abs(whole - ahead).max() <= 1e-5 * largest


async def test_no_group_is_older_than_max_lag(tmp_path: Path) -> None:
    data = SomeAdditions(batches=6)
    await train.main(train_config(tmp_path / "run", data, max_lag=2, num_minibatches=2))
    rows = rows_of(tmp_path / "run")
    lags = [row["step"] - row["sampling_client/step_min"] for row in rows]
    assert len(rows) == 6
    assert max(lags) == 2
    assert rows[0]["optim/logprob_gap_mean"] < 2e-6  # on-policy
    assert max(row["optim/logprob_gap_mean"] for row in rows[2:]) > 1e-4  # the weights had moved


async def test_several_optimizer_steps_of_a_batch(tmp_path: Path, store: Path) -> None:
    keys = {"learning_rate": 1e-3, "data": SomeAdditions(batches=1)}
    one = train_config(tmp_path / "one", **keys)
    two = train_config(tmp_path / "two", num_substeps=2, **keys)
    await train.main(one)
    await train.main(two)
    # Adam's first step is +-lr everywhere: two steps reach further than one
    reach = [
        max(np.abs(value).max() for key, value in adapter.items() if "lora_B" in key)
        for adapter in (adapter_of(tmp_path / name, store) for name in ("one", "two"))
    ]
    assert reach[0] == pytest.approx(1e-3, rel=0.01)
    assert 1.2e-3 < reach[1] < 2.1e-3


async def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: dict[str, Any] = {
        "save_every": 1,
        "engine": EngineConfig(deterministic=True),
        "data": SomeAdditions(batches=3, groups=2),
    }
    await train.main(train_config(tmp_path / "whole", **keys))

    real = PolicyTrainer.step

    async def crash(self: PolicyTrainer, queue: Any, step: int, sampling_client: Any) -> Any:
        if step == 2:
            raise RuntimeError("the power went out")
        return await real(self, queue, step, sampling_client)

    monkeypatch.setattr(PolicyTrainer, "step", crash)
    with pytest.raises(RuntimeError, match="power"):
        await train.main(train_config(tmp_path / "broken", **keys))
    monkeypatch.setattr(PolicyTrainer, "step", real)
    await train.main(train_config(tmp_path / "broken", **keys))

    def without_clock(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]

    assert without_clock(rows_of(tmp_path / "broken")) == without_clock(rows_of(tmp_path / "whole"))
    whole, broken = (adapter_of(tmp_path / name, store) for name in ("whole", "broken"))
    for key, value in whole.items():
        np.testing.assert_array_equal(value, broken[key])


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [("raises", "env_error"), ("nan", "bad_reward"), ("long", "prompt_too_long")],
)
async def test_failed_members_are_left_out_and_counted(
    tmp_path: Path, trouble: str, kind: str
) -> None:
    troubles = {"0.1": trouble, **{f"2.{i}": trouble for i in range(4)}}
    data = SomeAdditions(batches=1, troubles=troubles)
    await train.main(train_config(tmp_path / "run", data))
    (row,) = rows_of(tmp_path / "run")
    assert row[f"rollout_errors/{kind}"] == 5
    assert row["rollout_errors/groups_lost"] == 1
    assert row["env/all/total_episodes"] == 11


async def test_without_any_group_the_run_stops_with_the_reason(tmp_path: Path) -> None:
    troubles = {f"{i}.{j}": "raises" for i in range(4) for j in range(4)}
    data = SomeAdditions(batches=1, troubles=troubles)
    with pytest.raises(AllTrajectoriesFailedError, match=r"the game crashed.*train\.html"):
        await train.main(train_config(tmp_path / "run", data, transcripts_every=1))
    page = (tmp_path / "run" / "iteration_000000" / "train.html").read_text()
    assert "RuntimeError: the game crashed" in page


async def test_fail_fast_names_the_environment(tmp_path: Path) -> None:
    data = SomeAdditions(batches=1, troubles={"1.2": "raises"})
    with pytest.raises(TrainingError, match=r"member 2.*Addition.step.*the game crashed"):
        await train.main(train_config(tmp_path / "run", data, rollout_strategy=FailFast()))


async def test_equal_rewards_and_single_members_are_steps_without_a_gradient(
    tmp_path: Path, store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    troubles = {f"{i}.{j}": "equal" for i in range(4) for j in range(4)}
    for name, data in {
        "equal": SomeAdditions(batches=1, troubles=troubles),
        "single": SomeAdditions(batches=1, size=1),
    }.items():
        await train.main(train_config(tmp_path / name, data))
        (row,) = rows_of(tmp_path / name)
        assert row["env/all/by_group/frac_mixed"] == 0
        adapter = adapter_of(tmp_path / name, store)
        assert all(not value.any() for key, value in adapter.items() if "lora_B" in key)
        reason = {"equal": "rewards within each group are all equal", "single": "group_size=2"}
        lines = [
            line
            for line in capsys.readouterr().out.splitlines()
            if "every advantage is zero" in line
        ]
        assert len(lines) == 1 and reason[name] in lines[0]


async def test_constant_groups_can_be_left_out(tmp_path: Path) -> None:
    troubles = {f"0.{j}": "equal" for j in range(4)}
    data = SomeAdditions(batches=1, groups=2, troubles=troubles)
    await train.main(train_config(tmp_path / "run", data, remove_constant_reward_groups=True))
    (row,) = rows_of(tmp_path / "run")
    assert row["env/all/by_group/frac_mixed"] == 0.5  # with this seed
    assert 0.2 < row["optim/frac_masked"] < 0.8
    every = {f"{i}.{j}": "equal" for i in range(2) for j in range(4)}
    data = SomeAdditions(batches=1, groups=2, troubles=every)
    await train.main(train_config(tmp_path / "all", data, remove_constant_reward_groups=True))
    (row,) = rows_of(tmp_path / "all")
    assert 0.2 < row["optim/frac_masked"] < 0.8  # one is kept


async def test_an_endless_episode_is_cut(tmp_path: Path) -> None:
    data = SomeAdditions(batches=1, groups=2, size=2, troubles={"0.0": "endless"})
    limits = train.Config(dataset_builder=data).limits
    await train.main(train_config(tmp_path / "run", data, limits=chz.replace(limits, max_turns=3)))
    (row,) = rows_of(tmp_path / "run")
    assert row["env/all/stopped/max_turns"] == 0.25
    assert row["env/all/turns_per_episode"] == (3 + 1 + 1 + 1) / 4


async def test_a_gap_between_sampler_and_trainer_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="max_logprob_gap=1e-12"):
        await train.main(train_config(tmp_path / "run", max_logprob_gap=1e-12))
    assert len(rows_of(tmp_path / "run")) == 1  # the step that shows it is written
    await train.main(train_config(tmp_path / "free", max_logprob_gap=None))


@pytest.mark.parametrize("changes", [{"max_lag": 1}, {"num_substeps": 2}])
async def test_the_gap_of_same_weights_is_measured_in_every_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Also where no sampled logprob can tell, as the policy has changed."""
    data = SomeAdditions(batches=3)
    await train.main(train_config(tmp_path / "run", data, **changes))
    rows = rows_of(tmp_path / "run")
    assert len(rows) == 3
    for row in rows:
        assert row["optim/same_weights_logprob_gap_mean"] < 2e-6
        assert row["optim/same_weights_logprob_gap_max"] < 5e-5
    assert max(row["optim/logprob_gap_mean"] for row in rows) > 1e-4  # which they are not
    if "num_substeps" in changes:  # the first substep's samples tell
        return

    async def another_model(client: Any, tokens: Any, temperature: float) -> list[np.ndarray]:
        scored = await sequence_logprobs(client, tokens, temperature)
        return [logprobs - 0.5 for logprobs in scored]

    monkeypatch.setattr(training_step, "sequence_logprobs", another_model)
    with pytest.raises(TrainingError, match=r"differ by 0\.5 .*max_logprob_gap=0\.1"):
        await train.main(train_config(tmp_path / "bound", data, **changes))


async def test_an_evaluation_that_cannot_be_played_stops_the_run(tmp_path: Path) -> None:
    data = SomeAdditions(test_groups=2, troubles={"0.0": "raises", "1.0": "raises"})
    with pytest.raises(
        AllTrajectoriesFailedError, match=r"test: all 2 groups failed.*the game crashed"
    ):
        await train.main(train_config(tmp_path / "run", data))


class Uneven(Additions):
    """Batches of 4 groups and of 1."""

    def get_batch(self, index: int) -> list[EnvGroupBuilder]:
        return super().get_batch(index)[: (4, 1)[index % 2]]


async def test_a_batch_may_be_smaller_than_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tinker_cookbook.rl.testing.Additions", Uneven)
    keys = {"num_substeps": 2, "num_minibatches": 2, "max_lag": 1}
    await train.main(train_config(tmp_path / "run", **keys))
    assert [row["env/all/total_episodes"] for row in rows_of(tmp_path / "run")] == [16, 4]


@dataclass
class Liking:
    """A signal of a user: so much more for every token."""

    amount: float
    needs_batch: bool = False

    async def prepare(self, group: TrainingGroup) -> None:
        pass

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        for group in groups:
            for member, advantages in zip(group.sequences_G, group.advantages_G):
                for sequence, row in zip(member, advantages):
                    row[sequence.loss_mask] += self.amount
        return {"groups": len(groups)}


async def test_a_signal_of_ones_own(tmp_path: Path, store: Path) -> None:
    """It is heard, and other settings of it are another run."""
    data = SomeAdditions(batches=1, groups=2, size=1)  # whose rewards say nothing
    await train.main(train_config(tmp_path / "run", data, signals=[Liking(1.0)], num_minibatches=2))
    (row,) = rows_of(tmp_path / "run")
    assert row["groups"] == 1  # of each part
    assert any(v.any() for k, v in adapter_of(tmp_path / "run", store).items() if "lora_B" in k)
    with pytest.raises(ConfigurationError, match="a different config"):
        await train.main(train_config(tmp_path / "run", data, signals=[Liking(2.0)], max_steps=9))
    with pytest.raises(ConfigurationError, match=r"signals=\[<object .*: expected list\["):
        await train.main(train_config(tmp_path / "other", data, signals=[object()]))
    parts = {"needs_batch": False, "prepare": Liking.prepare, "add": Liking.add}
    silent = type("Silent", (), parts)()
    with pytest.raises(ConfigurationError, match="Silent does not expose"):
        await train.main(train_config(tmp_path / "other", data, signals=[silent]))


async def test_kl_to_the_base_model(tmp_path: Path) -> None:
    data = SomeAdditions(batches=4)
    await train.main(
        train_config(
            tmp_path / "run", data, kl_penalty_coef=0.05, compute_post_kl=True, lora_rank=32
        )
    )
    rows = rows_of(tmp_path / "run")
    assert abs(rows[0]["kl_policy_base"]) < 1e-6
    assert rows[-1]["kl_policy_base"] > 1e-3
    assert all(row["kl_pre_post_v2"] > 1e-6 for row in rows)


async def test_evaluations_and_transcripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def log_samples(_: object, name: str, rows: Iterable[Sample], step: int) -> None:
        tables.append((name, step, list(rows)))

    tables: list[tuple[str, int, list[Sample]]] = []
    monkeypatch.setattr(ml_log.JsonLogger, "log_samples", log_samples)
    data = SomeAdditions(batches=3, test_groups=5)
    await train.main(
        train_config(tmp_path / "run", data, eval_every=2, eval_greedy=True, transcripts_every=2)
    )
    rows = rows_of(tmp_path / "run")
    evaluated = [row["step"] for row in rows if "test/env/all/correct" in row]
    assert evaluated == [0, 2, 3]  # before, in between, and of the final weights
    assert all("test_greedy/env/all/correct" in rows[step] for step in evaluated)
    folders = sorted(path.name for path in (tmp_path / "run").glob("iteration_*"))
    assert folders == ["iteration_000000", "iteration_000002", "iteration_000003"]
    folder = tmp_path / "run" / "iteration_000002"
    rollouts = read_rollouts(folder / "train_rollout_summaries.jsonl")
    assert len(rollouts) == 16
    tokens = sum(len(step["ac_tokens"]) for each in rollouts for step in each["steps"])
    assert tokens == rows[2]["env/all/total_ac_tokens"]
    assert len(read_rollouts(folder / "eval_test_rollout_summaries.jsonl")) == 5
    assert [(name, step) for name, step, _ in tables] == [
        *(("test", 0), ("test_greedy", 0), ("train", 0)),
        *(("test", 2), ("test_greedy", 2), ("train", 2)),
        *(("test", 3), ("test_greedy", 3)),
    ]
    shown = {(row["prompt"], row["reply"], row["reward"]) for row in tables[5][2]}
    assert shown == {
        (each["steps"][0]["ob_text"], each["steps"][0]["ac_text"], each["total_reward"])
        for each in rollouts
    }
    assert (folder / "train.html").stat().st_size > 5000


@pytest.mark.parametrize("loss_fn", ["ppo", "cispo", "dro", "gspo"])
async def test_every_loss(tmp_path: Path, store: Path, loss_fn: str) -> None:
    """On-policy all of them have the gradient of importance sampling."""
    reference = await gradient(tmp_path, store, "importance_sampling")
    found = await gradient(tmp_path, store, loss_fn, loss_fn=loss_fn)
    # gspo's one ratio per reply is inside its very narrow bounds, and all others are 1
    assert np.abs(found - reference).max() <= 1e-4 * np.abs(reference).max()


def test_the_known_spellings_are_put_into_the_keys_they_mean(tmp_path: Path) -> None:
    from tinker_cookbook.rl.config import with_alias_keys

    known = train_config(
        tmp_path,
        async_config=train.AsyncConfig(max_steps_off_policy=3, groups_per_batch=4),
        stream_minibatch_config=train.StreamMinibatchConfig(groups_per_batch=4, num_minibatches=2),
    )
    found = with_alias_keys(known)
    assert (found.max_lag, found.num_minibatches) == (3, 2)
    assert found.async_config is None
    with pytest.raises(ConfigurationError, match="max_lag=1 and async_config"):
        with_alias_keys(chz.replace(known, max_lag=1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_substeps": 5}, "num_substeps=5: a batch has only 4 groups"),
        ({"num_minibatches": 64}, "num_minibatches=64: a batch has only 4 groups"),
        ({"max_tokens": 2048}, "max_tokens=2048: nano has a context of 2048"),
        ({"kl_discount_factor": 0.9}, "kl_discount_factor has no effect without kl_penalty_coef"),
        ({"groups_at_a_time": 0}, "groups_at_a_time=0: expected 1 or more"),
        ({"loss_fn": "ppo", "loss_fn_config": {"clip_hi": 1.2}}, "clip_hi"),
        (
            {"async_config": train.AsyncConfig(max_steps_off_policy=1, groups_per_batch=32)},
            "async_config.groups_per_batch=32, but the data's batches have 4",
        ),
        ({"max_lag": -1}, "max_lag=-1: expected 0 or more"),
        ({"advantage": "dr_grpo", "max_tokens": 0}, "max_tokens=0: expected 1 or more"),
        (
            {"kl_penalty_coef": 1.0, "load_checkpoint_path": "tinker://x/weights/y"},
            "kl_reference_config.base_model",
        ),
    ],
)
async def test_wrong_keys_are_errors_before_the_first_rollout(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        await train.main(train_config(tmp_path / "run", **changes))


async def test_an_executor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="rollout_executor"):
        await train.main(train_config(tmp_path), rollout_executor=object())
