"""From what was played to what is trained: trajectories as token sequences, with advantages.

Turns whose prompts extend one another share one sequence, so a conversation of ten turns costs one
pass over its tokens and not ten. Sampled tokens are taken as they are: nothing is tokenised here.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tinker

from tinker_cookbook import sequences
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.rl.types import Trajectory, TrajectoryGroup, Transition
from tinker_cookbook.sequences import Sequence, model_input_tokens, to_datum


def trajectory_to_sequences(trajectory: Trajectory) -> list[Sequence]:
    """The turns of an episode in as few sequences as hold each prompt exactly as the model saw it.

    A turn goes on with the sequence so far where its observation begins with it, and begins a new
    one otherwise. weights: 1 for the tokens of trainable actions, else 0. logprobs: those of every
    sampled token that has one, else 0.

    Raises DataValidationError where a trainable action has not one logprob per token.
    """
    finished: list[Sequence] = []
    tokens: list[int] = []
    weights: list[float] = []
    logprobs: list[float] = []
    for number, transition in enumerate(trajectory.transitions):
        observation = model_input_tokens(transition.ob)
        if observation[: len(tokens)] != tokens:
            finished.append(Sequence(tokens, weights, logprobs))
            tokens, weights, logprobs = [], [], []
        new = observation[len(tokens) :]
        action = transition.ac.tokens
        tokens += [*new, *action]
        weights += [0.0] * len(new) + [float(transition.trainable)] * len(action)
        logprobs += [0.0] * len(new) + _action_logprobs(transition, number)
    if tokens:
        finished.append(Sequence(tokens, weights, logprobs))
    return finished


def _action_logprobs(transition: Transition, number: int) -> list[float]:
    length, logprobs = len(transition.ac.tokens), transition.ac.maybe_logprobs
    if logprobs is not None and len(logprobs) == length:
        return logprobs
    if not transition.trainable:
        return [0.0] * length
    found = "no" if logprobs is None else str(len(logprobs))
    raise DataValidationError(
        f"turn {number} of a trajectory has {found} logprobs for the {length} tokens of its action:"
        " only what a model has sampled can be trained on, else set trainable=False"
    )


@dataclass(eq=False)
class TrainingGroup:
    """A group as it is trained: for each member its sequences, and their advantages.

    `advantages_G[i][j]` float32 [N] belongs to the N tokens of `sequences_G[i][j]`, unshifted.
    They are 0 at first and signals add to them, on trained tokens only. Without equality, so that a
    group can be a key.
    """

    group: TrajectoryGroup
    sequences_G: list[list[Sequence]]
    advantages_G: list[list[np.ndarray]]

    @classmethod
    def from_group(cls, group: TrajectoryGroup) -> TrainingGroup:
        sequences_G = [trajectory_to_sequences(each) for each in group.trajectories_G]
        return cls(
            group,
            sequences_G,
            [[np.zeros(len(each), np.float32) for each in member] for member in sequences_G],
        )

    @property
    def num_sampled_tokens(self) -> int:
        """Tokens of all actions, trainable or not."""
        return sum(
            len(transition.ac.tokens)
            for trajectory in self.group.trajectories_G
            for transition in trajectory.transitions
        )

    def trained(self) -> list[tuple[int, int]]:
        """(member, sequence) of each sequence with a trained token, in the order of `datums`."""
        return [
            (i, j)
            for i, member in enumerate(self.sequences_G)
            for j, sequence in enumerate(member)
            if sequence.num_loss_tokens
        ]

    def datums(self, loss_fn: str = "importance_sampling") -> list[tinker.Datum]:
        """A datum for each of `trained()`, with the inputs of the loss and `mask`, which readers
        need and the service does not take: send `remove_mask(datum, loss_fn)`."""
        datums = [
            to_datum(replace(self.sequences_G[i][j], advantages=self.advantages_G[i][j]))
            for i, j in self.trained()
        ]
        if loss_fn == "gspo":  # one ratio for a whole reply: over all of its trained tokens
            for datum in datums:
                datum.loss_fn_inputs["sequence_ratio_mask"] = datum.loss_fn_inputs["mask"]
        return datums


def remove_mask(datum: tinker.Datum, loss_fn: str = "importance_sampling") -> tinker.Datum:
    """The datum as the service takes it. `dro` keeps the mask: a prompt token has no sampled
    logprob, and would be pulled towards one of 0."""
    return datum if loss_fn == "dro" else sequences.remove_mask(datum)
