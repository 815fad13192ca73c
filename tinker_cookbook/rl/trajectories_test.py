"""Merging of turns and what becomes of them, by values worked out by hand and by property."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import tinker
from hypothesis import given
from hypothesis import strategies as st

from tinker_cookbook.completers import TokensWithLogprobs
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.rl.testing import trajectory, turn
from tinker_cookbook.rl.trajectories import TrainingGroup, remove_mask, trajectory_to_sequences
from tinker_cookbook.rl.types import TrajectoryGroup, Transition


def values(sequence: Sequence) -> tuple[list[int], list[float], list[float]]:
    return sequence.tokens.tolist(), sequence.weights.tolist(), sequence.logprobs.tolist()


def test_turns_that_extend_one_another_share_a_sequence() -> None:
    (sequence,) = trajectory_to_sequences(
        trajectory(turn([1, 2], [3, 4]), turn([1, 2, 3, 4, 5], [6]))
    )
    assert values(sequence) == (
        [1, 2, 3, 4, 5, 6],
        [0, 0, 1, 1, 0, 1],
        [0, 0, -0.5, -1.0, 0, -0.5],
    )


def test_a_prompt_that_does_not_extend_begins_a_new_sequence() -> None:
    # the second prompt re-writes the reply (4 -> 9), the third one is shorter than what is there
    found = trajectory_to_sequences(
        trajectory(turn([1, 2], [3, 4]), turn([1, 2, 3, 9], [5]), turn([1, 2, 3], [6]))
    )
    assert [values(each)[0] for each in found] == [[1, 2, 3, 4], [1, 2, 3, 9, 5], [1, 2, 3, 6]]
    assert [values(each)[1] for each in found] == [[0, 0, 1, 1], [0, 0, 0, 0, 1], [0, 0, 0, 1]]


def test_a_prompt_that_only_begins_alike_but_stops_inside_the_reply_is_new() -> None:
    found = trajectory_to_sequences(trajectory(turn([1], [2, 3]), turn([1, 2], [3])))
    assert [values(each)[0] for each in found] == [[1, 2, 3], [1, 2, 3]]


def test_untrainable_turns_are_context() -> None:
    first = turn([1], [2, 3], trainable=False)
    (sequence,) = trajectory_to_sequences(trajectory(first, turn([1, 2, 3], [4])))
    assert values(sequence)[1] == [0, 0, 0, 1]
    scripted = Transition(
        tinker.ModelInput.from_ints([1]), TokensWithLogprobs([2], None), 0.0, True, trainable=False
    )
    assert values(trajectory_to_sequences(trajectory(scripted))[0]) == ([1, 2], [0, 0], [0, 0])


def test_actions_without_logprobs_cannot_be_trained() -> None:
    for logprobs, found in ((None, "no"), ([-1.0], "1")):
        bad = turn([1], [2])
        bad.ac = TokensWithLogprobs([2, 3], logprobs)
        with pytest.raises(DataValidationError, match=f"turn 1 .* has {found} logprobs for the 2"):
            trajectory_to_sequences(trajectory(turn([1], [2]), bad))


def test_an_empty_episode_and_an_empty_action() -> None:
    assert trajectory_to_sequences(trajectory()) == []
    (sequence,) = trajectory_to_sequences(trajectory(turn([1], []), turn([1, 5], [6])))
    assert values(sequence)[:2] == ([1, 5, 6], [0, 0, 1])


@given(st.data())
def test_every_sampled_token_is_trained_once_behind_the_prompt_it_was_sampled_from(
    data: st.DataObject,
) -> None:
    """Whatever prompts an environment makes: of few tokens, so that they often extend by chance."""
    turns, so_far = [], []
    for number in range(data.draw(st.integers(0, 6))):
        token = st.integers(0, 1)
        extends = data.draw(st.booleans())
        new = data.draw(st.lists(token, min_size=1, max_size=3))
        ob = so_far + new if extends else new
        ac = data.draw(st.lists(token, max_size=3))
        logprobs = [-(100.0 * number + i + 1) for i in range(len(ac))]
        turns.append(turn(ob, ac, logprobs, trainable=data.draw(st.booleans())))
        so_far = ob + ac
    sequences = trajectory_to_sequences(trajectory(*turns))

    ends = []  # (sequence, end of its reply) of each turn, found from logprobs that occur once
    for number, each in enumerate(turns):
        expected = np.array([-(100.0 * number + i + 1) for i in range(len(each.ac.tokens))])
        if not len(expected):
            continue
        found = [
            (index, position)
            for index, sequence in enumerate(sequences)
            for position in np.flatnonzero(sequence.logprobs == expected[0])
        ]
        assert len(found) == 1
        index, start = found[0]
        sequence, end = sequences[index], start + len(expected)
        assert sequence.tokens[:end].tolist() == each.ob.to_ints() + each.ac.tokens
        assert sequence.logprobs[start:end].tolist() == expected.tolist()
        assert (sequence.weights[start:end] == float(each.trainable)).all()
        ends.append((index, end))
    assert ends == sorted(ends)
    trained = sum(len(each.ac.tokens) for each in turns if each.trainable)
    assert sum(sequence.num_loss_tokens for sequence in sequences) == trained
    # as few as possible: no sequence is the beginning of the prompt after it
    for before, after in itertools.pairwise(turns):
        extended = before.ob.to_ints() + before.ac.tokens
        if after.ob.to_ints()[: len(extended)] == extended and before.ac.tokens and after.ac.tokens:
            a, b = (
                next(
                    i
                    for i, sequence in enumerate(sequences)
                    if each.ac.maybe_logprobs[0] in sequence.logprobs
                )
                for each in (before, after)
            )
            assert a == b


def two_members() -> TrajectoryGroup:
    """The first member has an untrainable sequence before a trained one."""
    first = trajectory(turn([1], [2], trainable=False), turn([7, 8], [9, 10]))
    second = trajectory(turn([1, 2], [3]), turn([1, 2, 3, 4], [5]))
    return TrajectoryGroup([first, second], [0.0, 1.0], [{}, {}])


def test_a_training_group_starts_without_advantages() -> None:
    group = TrainingGroup.from_group(two_members())
    assert [[len(each) for each in member] for member in group.sequences_G] == [[2, 4], [5]]
    assert [[each.tolist() for each in member] for member in group.advantages_G] == [
        [[0] * 2, [0] * 4],
        [[0] * 5],
    ]
    assert group.num_sampled_tokens == 5
    assert group.trained_sequences() == [(0, 1), (1, 0)]
    assert TrainingGroup.from_group(TrajectoryGroup([], [], [])).datums() == []


def test_datums_of_a_group_hold_what_the_loss_takes() -> None:
    group = TrainingGroup.from_group(two_members())
    group.advantages_G[0][1][:] = [0, 0, 1.5, 1.5]
    group.advantages_G[1][0][:] = [0, 0, -1.5, 0, -1.5]
    for loss_fn in ("importance_sampling", "ppo", "cispo", "dro", "gspo"):
        first, second = group.datums(loss_fn)
        assert first.model_input.to_ints() == [7, 8, 9]
        inputs = {k: v.tolist() for k, v in second.loss_fn_inputs.items()}
        mask = [0, 1, 0, 1]
        expected = {
            "target_tokens": [2, 3, 4, 5],
            "logprobs": [0, -0.5, 0, -0.5],
            "advantages": [0, -1.5, 0, -1.5],
            "mask": mask,
        }
        assert inputs == expected | ({"sequence_ratio_mask": mask} if loss_fn == "gspo" else {})
        sent = set(remove_mask(second, loss_fn).loss_fn_inputs)
        assert sent == set(inputs) - (set() if loss_fn == "dro" else {"mask"})
