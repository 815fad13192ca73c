"""No group is older than max_lag, none is lost or played twice, and failures reach the trainer."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, NoReturn

import pytest

from tinker_cookbook.exceptions import TrainingError
from tinker_cookbook.rl.rollouts.rollout_queue import RolloutQueue, RolloutTask
from tinker_cookbook.rl.types import EnvGroupBuilder

if TYPE_CHECKING:
    from tinker_cookbook.rl.rollouts.rollout_queue import GroupRollout


class Named(EnvGroupBuilder):
    def __init__(self, batch: int, index: int) -> None:
        self.name = (batch, index)

    async def make_envs(self) -> NoReturn:
        raise AssertionError("the source only hands builders on")


def batches(sizes: list[int]) -> Callable[[int], list[Named]]:
    return lambda i: [Named(i, j) for j in range(sizes[i])]


async def collect(
    source: RolloutQueue, steps: range, between: Callable[[int], Awaitable[None]] | None = None
) -> dict[int, list[GroupRollout]]:
    """What arrives in each step, while weights of each step are published."""
    seen = {}
    async with source:
        for step in steps:
            source.publish(f"weights {step}", step)
            seen[step] = [played async for played in source.arrivals(step)]
            if between is not None:
                await between(step)
    return seen


@pytest.mark.parametrize("max_lag", [0, 1, 3])
@pytest.mark.parametrize("workers", [None, 1, 7])
async def test_every_group_once_and_never_too_old(max_lag: int, workers: int | None) -> None:
    rng = random.Random(0)
    sizes = [4, 4, 1, 6, 4, 4]
    running = most = 0

    async def play(task: RolloutTask) -> tuple[int, int]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(rng.random() * 0.004)
        running -= 1
        return task.builder.name

    async def train(step: int) -> None:
        await asyncio.sleep(0.003)

    source = RolloutQueue(batches(sizes), play, steps=range(6), max_lag=max_lag, workers=workers)
    seen = await collect(source, range(6), train)
    lags = set()
    for step, played in seen.items():
        assert sorted(each.group for each in played) == [(step, j) for j in range(sizes[step])]
        for each in played:
            assert each.task.sampling_client == f"weights {each.task.version}"
            lags.add(step - each.task.version)
    assert lags <= set(range(max_lag + 1))
    assert workers == 1 or max(lags) >= min(1, max_lag)  # and the freedom is used
    assert most <= (workers or 4)


async def test_every_batch_is_played_by_all_workers() -> None:
    running = 0
    most: dict[int, int] = {}

    async def play(task: RolloutTask) -> None:
        nonlocal running
        running += 1
        await asyncio.sleep(0.001)
        most[task.batch] = max(most.get(task.batch, 0), running)
        running -= 1

    await collect(RolloutQueue(batches([3, 5, 3]), play, steps=range(3)), range(3))
    assert most == {0: 3, 1: 3, 2: 3}


async def test_a_resumed_run_begins_where_it_was() -> None:
    asked = []

    def get_batch(i: int) -> list[Named]:
        asked.append(i)
        return [Named(i, 0)]

    async def play(task: RolloutTask) -> int:
        return task.batch

    source = RolloutQueue(get_batch, play, steps=range(5, 8), max_lag=9)
    seen = await collect(source, range(5, 8))
    assert {step: [each.group for each in played] for step, played in seen.items()} == {
        5: [5],
        6: [6],
        7: [7],
    }
    assert asked == [5, 6, 7]


async def test_groups_come_in_the_order_they_finish() -> None:
    async def play(task: RolloutTask) -> int:
        await asyncio.sleep(0.05 if task.index == 0 else 0.0)
        return task.index

    seen = await collect(RolloutQueue(batches([3]), play, steps=range(1)), range(1))
    assert [each.group for each in seen[0]] == [1, 2, 0]


async def test_what_play_raises_reaches_the_trainer_although_it_is_of_a_later_batch() -> None:
    never = asyncio.Event()

    async def play(task: RolloutTask) -> int:
        if task.batch == 1:
            raise RuntimeError("the server is gone")
        await never.wait()
        return 0

    source = RolloutQueue(batches([1, 1]), play, steps=range(2), max_lag=1, workers=2)
    with pytest.raises(RuntimeError, match="the server is gone"):
        async with asyncio.timeout(5):
            await collect(source, range(2))


async def test_a_cancelled_future_inside_is_a_failure_and_no_silence() -> None:
    async def play(task: RolloutTask) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        future.cancel()
        return await future

    source = RolloutQueue(batches([2]), play, steps=range(1))
    with pytest.raises(TrainingError, match="cancelled from inside"):
        async with asyncio.timeout(5):
            await collect(source, range(1))


def test_workers_are_needed() -> None:
    with pytest.raises(ValueError, match="workers=0"):
        RolloutQueue(batches([2]), lambda task: None, steps=range(1), workers=0)


async def test_leaving_early_ends_what_is_being_played() -> None:
    cleaned = []

    async def play(task: RolloutTask) -> int:
        try:
            await asyncio.sleep(60)
        finally:
            cleaned.append(task.index)
        return 0

    source = RolloutQueue(batches([3]), play, steps=range(1))
    with pytest.raises(KeyboardInterrupt):
        async with source:
            source.publish("weights", 0)
            await asyncio.sleep(0.01)
            raise KeyboardInterrupt
    assert sorted(cleaned) == [0, 1, 2]


async def test_it_says_what_it_waits_for() -> None:
    reminders = []

    async def play(task: RolloutTask) -> int:
        await asyncio.sleep(0.1 if task.index else 0.0)
        return 0

    source = RolloutQueue(
        batches([3]),
        play,
        steps=range(1),
        waiting=lambda missing, seconds: reminders.append((missing, seconds)),
        remind_seconds=0.02,
    )
    await collect(source, range(1))
    assert len(reminders) >= 2
    assert {missing for missing, _ in reminders} == {2}
    assert reminders[0][1] >= 0.02
