from typing import Any

import tinker

from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.rl.transcripts import sample_rows
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition


class Bytes:
    """A tokenizer whose tokens are bytes."""

    def decode(self, tokens: list[int]) -> str:
        return bytes(tokens).decode()


BYTES: Any = Bytes()


def ints(text: str) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(list(text.encode()))


def episode(*turns: tuple[str, str, float]) -> Trajectory:
    transitions = [
        Transition(ints(ob), TokensWithLogprobs(list(ac.encode()), None), reward, False)
        for ob, ac, reward in turns
    ]
    return Trajectory(transitions, ints(""))


def group(*episodes: Trajectory, final_reward: float = 0.0) -> TrajectoryGroup:
    count = len(episodes)
    return TrajectoryGroup(list(episodes), [final_reward] * count, [{} for _ in range(count)])


def test_the_first_rows_are_of_different_groups() -> None:
    groups = [
        group(episode(("1+1?", "2", 1.0)), episode(("1+1?", "3", 0.0)), final_reward=0.5),
        group(),  # all its episodes failed
        group(episode(("2+2?", "4", 1.0))),
    ]
    assert list(sample_rows(groups, BYTES)) == [
        {"group": 0, "prompt": "1+1?", "reply": "2", "reward": 1.5},
        {"group": 2, "prompt": "2+2?", "reply": "4", "reward": 1.0},
        {"group": 0, "prompt": "1+1?", "reply": "3", "reward": 0.5},
    ]


def test_several_turns_are_one_reply() -> None:
    grown = episode(("Q", "a", 0.25), ("QaX", "b", 0.5))
    rewritten = episode(("Q", "long", 0.25), ("P", "b", 0.5))
    rows = list(sample_rows([group(grown, rewritten)], BYTES))
    assert [(row["prompt"], row["reply"]) for row in rows] == [("Q", "aXb"), ("Q", "longb")]
    assert rows[0]["reward"] == 0.75
