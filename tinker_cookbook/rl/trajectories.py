"""Convert trajectories into token sequences to train on, with advantages.

Turns whose prompts extend one another share a sequence, so a conversation of ten turns costs one
pass over its tokens instead of ten. Sampled tokens are used as sampled; nothing is re-tokenised.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import tinker

from tinker_cookbook import sequences
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.rl.types import EnvGroupBuilder, Trajectory, TrajectoryGroup, Transition
from tinker_cookbook.sequences import Sequence, model_input_tokens, to_datum


def trajectory_to_sequences(trajectory: Trajectory) -> list[Sequence]:
    """Merge the turns of an episode into as few sequences as possible, with every prompt exactly as
    the model saw it.

    A turn extends the current sequence if its observation starts with that sequence; otherwise it
    starts a new one. weights: 1 on tokens of trainable actions, else 0. logprobs: the sampled ones,
    0 on tokens without any.

    Raises DataValidationError if a trainable action does not have one logprob per token.
    """
    finished: list[Sequence] = []
    tokens: list[int] = []
    weights: list[float] = []
    logprobs: list[float] = []
    for number, transition in enumerate(trajectory.transitions):
        observation = model_input_tokens(transition.ob)
        # Compared as tokens, not as text: an env may shorten or rewrite the history, and a chat
        # format may drop reasoning from earlier turns. Attending to a merged context that the model
        # never saw would change the logprobs and with them the importance ratios.
        if observation[: len(tokens)] != tokens:
            finished.append(Sequence(tokens, weights, logprobs))
            tokens, weights, logprobs = [], [], []
        # the tokens between two actions (tool results, the next turn's header) are context only
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
    # Zeros in their place would be read as probability 1 when the tokens were sampled.
    count = "no" if logprobs is None else str(len(logprobs))
    raise DataValidationError(
        f"turn {number} of a trajectory has {count} logprobs for the {length} tokens of its action:"
        " only sampled tokens can be trained on; set trainable=False for others"
    )


@dataclass(eq=False)
class TrainingGroup:
    """A group prepared for training: the sequences of each member and their advantages.

    `advantages_G[i][j]`: float32 [N], unshifted, for the N tokens of `sequences_G[i][j]`. They
    start at 0, and signals add to them on trained tokens only. builder: what made the group's envs,
    for signals that treat groups differently. eq=False makes groups hashable by identity, so that
    signals can use them as keys.
    """

    group: TrajectoryGroup
    sequences_G: list[list[Sequence]]
    advantages_G: list[list[np.ndarray]]
    builder: EnvGroupBuilder | None = None

    @classmethod
    def from_group(
        cls, group: TrajectoryGroup, builder: EnvGroupBuilder | None = None
    ) -> TrainingGroup:
        """Build from finished rollouts, with zero advantages."""
        sequences_G = [trajectory_to_sequences(trajectory) for trajectory in group.trajectories_G]
        return cls(
            group,
            sequences_G,
            [[np.zeros(len(seq), np.float32) for seq in member] for member in sequences_G],
            builder,
        )

    @property
    def num_sampled_tokens(self) -> int:
        """Number of tokens of all actions, trainable or not."""
        return sum(
            len(transition.ac.tokens)
            for trajectory in self.group.trajectories_G
            for transition in trajectory.transitions
        )

    def trained_sequences(self) -> list[tuple[int, int]]:
        """(member, sequence) indices of each sequence with a trained token, in the order of
        `datums`. A sequence without any, e.g. of turns that are not trainable, is never sent."""
        return [
            (i, j)
            for i, member in enumerate(self.sequences_G)
            for j, sequence in enumerate(member)
            if sequence.num_loss_tokens
        ]

    def datums(self, loss_fn: str = "importance_sampling") -> list[tinker.Datum]:
        """Datums of `trained_sequences()`, with the inputs of the loss and `mask`. The service does
        not accept `mask`, which diagnostics need: send `remove_mask(datum, loss_fn)`."""
        datums = [
            to_datum(replace(self.sequences_G[i][j], advantages=self.advantages_G[i][j]))
            for i, j in self.trained_sequences()
        ]
        # GSPO has one importance ratio per sequence: the mean over the tokens of this mask
        if loss_fn == "gspo":
            for datum in datums:
                datum.loss_fn_inputs["sequence_ratio_mask"] = datum.loss_fn_inputs["mask"]
        return datums


def remove_mask(datum: tinker.Datum, loss_fn: str = "importance_sampling") -> tinker.Datum:
    """Return the datum in the form that the service accepts. `dro` keeps the mask: its quadratic
    term covers every token, and without the mask it would pull prompt tokens, which have no sampled
    logprob, towards logprob 0."""
    return datum if loss_fn == "dro" else sequences.remove_mask(datum)
