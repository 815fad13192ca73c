"""A few rollouts as rows of a table: prompt, reply and reward as text and numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from tinker_cookbook.sequences import model_input_tokens

if TYPE_CHECKING:
    from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.utils.ml_log import Sample


def sample_rows(groups: Sequence[TrajectoryGroup], tokenizer: Tokenizer) -> Iterator[Sample]:
    """Yield every rollout, the first of each group first, so that the first rows are of different
    problems.

    reply: everything after the first prompt, i.e. with the later prompts of an episode of several
    turns.
    """
    members = [
        [
            (index, trajectory, reward)
            for trajectory, reward in zip(group.trajectories_G, group.get_total_rewards())
        ]
        for index, group in enumerate(groups)
    ]
    for rank in zip_longest(*members):
        for member in rank:
            if member is not None and member[1].transitions:
                index, trajectory, reward = member
                prompt, reply = _texts(trajectory, tokenizer)
                yield {"group": index, "prompt": prompt, "reply": reply, "reward": reward}


def _texts(trajectory: Trajectory, tokenizer: Tokenizer) -> tuple[str, str]:
    first, last = trajectory.transitions[0], trajectory.transitions[-1]
    prompt = model_input_tokens(first.ob)
    tokens = model_input_tokens(last.ob) + list(last.ac.tokens)
    if tokens[: len(prompt)] == prompt:
        reply = tokens[len(prompt) :]
    else:  # the prompt was rewritten, e.g. without earlier reasoning
        reply = [token for turn in trajectory.transitions for token in turn.ac.tokens]
    return str(tokenizer.decode(prompt)), str(tokenizer.decode(reply))
