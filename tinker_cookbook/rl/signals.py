"""Signals: compute the advantage of each sampled token.

The signals of a run are applied in order, and each adds to the advantages so far. All losses are
sums over tokens, so longer replies and larger groups weigh more, unless a signal divides by length
or size.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, Protocol, TypeGuard, get_args, runtime_checkable
from weakref import WeakKeyDictionary

import numpy as np
import tinker

from tinker_cookbook.exceptions import ConfigurationError, TrainingError
from tinker_cookbook.rl.trajectories import TrainingGroup
from tinker_cookbook.sequences import as_numpy

if TYPE_CHECKING:
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.service.api import SamplingClient, ScoresAtTemperature

AdvantageKind = Literal["centered", "leave_one_out", "grpo", "dr_grpo"]


@runtime_checkable
class Signal(Protocol):
    """The interface of signals, as the training loop calls it."""

    @property
    def needs_batch(self) -> bool:
        """Whether `add` must see all groups of an optimizer step at once."""
        ...

    async def prepare(self, group: TrainingGroup) -> None:
        """Called once a group's rollouts are finished, while other groups still run: the place for
        requests to other models."""
        ...

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        """Add to `advantages_G` on trained tokens; return metrics."""
        ...


def group_advantages(
    rewards_G: Sequence[float],
    kind: AdvantageKind,
    num_tokens_G: Sequence[int],
    max_tokens: int | None = None,
) -> np.ndarray:
    """Return the advantage of each member's trained tokens, float64 [G], from total rewards R.

    centered        R_i - mean(R)
    leave_one_out   R_i - mean of the other members' R; equals G / (G - 1) times `centered`
                    (Ahmadian et al. 2024, RLOO, arXiv 2402.14740)
    grpo            (R_i - mean(R)) / (std(R) + 1e-6) / T_i, with the sample std (ddof 1) and T_i
                    the member's number of trained tokens (Shao et al. 2024, arXiv 2402.03300)
    dr_grpo         (R_i - mean(R)) / max_tokens: GRPO without its length bias (dividing by each
                    reply's length favours long wrong replies) and its difficulty bias (dividing by
                    the std favours very easy and very hard problems); Liu et al. 2025, arXiv
                    2503.20783

    Exactly 0 for all members if there is no contrast: a single member, or equal rewards.
    """
    rewards = np.asarray(rewards_G, np.float64)
    # The mean of equal floats may differ from them in the last bit, and GRPO's division by a std
    # near 0 would blow that up.
    if len(rewards) < 2 or (rewards == rewards[0]).all():
        return np.zeros(len(rewards))
    return _ADVANTAGES[kind](rewards, np.asarray(num_tokens_G, np.float64), max_tokens)


def _centered(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    return rewards - rewards.mean()


def _leave_one_out(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def _grpo(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    scaled = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    return scaled / np.maximum(tokens, 1)  # no division by 0; no token receives that value


def _dr_grpo(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    assert max_tokens is not None, "GroupReward checks it"
    return (rewards - rewards.mean()) / max_tokens


_ADVANTAGES: dict[AdvantageKind, Callable[[np.ndarray, np.ndarray, int | None], np.ndarray]] = {
    "centered": _centered,
    "leave_one_out": _leave_one_out,
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
}


@dataclass(frozen=True)
class GroupReward:
    """The group-relative advantage of an episode, the same on all its trained tokens: see
    `group_advantages`. max_tokens: the maximum reply length, divisor of dr_grpo."""

    kind: AdvantageKind = "centered"
    max_tokens: int | None = None

    @property
    def needs_batch(self) -> bool:
        return False

    def __post_init__(self) -> None:
        if self.kind not in _ADVANTAGES:
            raise ConfigurationError(
                f"advantage={self.kind!r}: expected {', '.join(get_args(AdvantageKind))}"
            )
        if self.kind == "dr_grpo" and not (self.max_tokens or 0) > 0:
            raise ConfigurationError(
                f"advantage=dr_grpo divides by max_tokens, found {self.max_tokens}: set max_tokens"
            )

    async def prepare(self, group: TrainingGroup) -> None:
        """Nothing to do: the rewards are part of the group."""

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        for group in groups:
            values = group_advantages(
                group.group.get_total_rewards(),
                self.kind,
                [sum(seq.num_loss_tokens for seq in member) for member in group.sequences_G],
                self.max_tokens,
            )
            for value, member, advantages in zip(values, group.sequences_G, group.advantages_G):
                # added, not assigned: an earlier signal may have written here
                for sequence, token_advantages in zip(member, advantages, strict=True):
                    token_advantages[sequence.loss_mask] += value
        return {}


class ModelSignal(ABC):
    """Base of signals that use another model's logprobs of the sampled tokens.

    Requests them once per sequence, as soon as the group's rollouts are finished. Subclasses turn
    d = lp_sampled - lp_model (nats, on trained tokens) into advantages in `add`.

    Both logprobs are of softmax(logits / temperature), so that d is 0 at any temperature if the
    model is the policy itself.
    """

    needs_batch: bool = False

    def __init__(
        self,
        client: SamplingClient,
        coef: float,
        discount: float = 0.0,
        timeout: float = 1800.0,
        temperature: float = 1.0,
    ) -> None:
        """client: samples from that model. timeout: seconds per group. temperature: the policy's
        sampling temperature; must be 1 unless the client is in process."""
        if not math.isfinite(coef):
            raise ConfigurationError(f"kl_penalty_coef={coef}: must be a finite number")
        if not 0 <= discount <= 1:
            raise ConfigurationError(f"kl_discount_factor={discount}: must be from 0 to 1")
        if temperature != 1:
            _logprob_function(client, temperature)  # raises here, before any rollout is spent
        self._client, self.coef, self.discount = client, coef, discount
        self._timeout, self.temperature = timeout, temperature
        # weak, so that the logprobs are freed with their group at the end of its step
        self._logprobs: WeakKeyDictionary[TrainingGroup, list[np.ndarray]] = WeakKeyDictionary()

    @abstractmethod
    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]: ...

    def identity(self) -> dict[str, float]:
        """Settings that belong to a run's identity: a run with others cannot be resumed."""
        settings = {"coef": self.coef, "discount": self.discount}
        return settings if self.temperature == 1 else {**settings, "temperature": self.temperature}

    def client_for(self, group: TrainingGroup) -> SamplingClient:
        """The SamplingClient of the model that scores this group."""
        return self._client

    async def prepare(self, group: TrainingGroup) -> None:
        """Request the model's logprobs of the group; raises TrainingError after `timeout`."""
        tokens = [group.sequences_G[i][j].tokens.tolist() for i, j in group.trained_sequences()]
        try:
            async with asyncio.timeout(self._timeout):
                self._logprobs[group] = await sequence_logprobs(
                    self.client_for(group), tokens, self.temperature
                )
        except TimeoutError as error:
            raise TrainingError(
                f"{type(self).__name__}: the reference model returned no logprobs of a group of"
                f" {len(tokens)} sequences within {self._timeout:g} s"
            ) from error

    def differences(self, groups: Sequence[TrainingGroup]) -> list[list[np.ndarray]]:
        """d per group and member: float64, over its trained tokens in sampling order."""
        return [self._differences(group) for group in groups]

    def _differences(self, group: TrainingGroup) -> list[np.ndarray]:
        if group not in self._logprobs:
            raise TrainingError(f"{type(self).__name__}.add needs prepare(group) to be awaited")
        differences: list[list[np.ndarray]] = [[] for _ in group.sequences_G]
        # trained tokens only: elsewhere the sampled logprobs are placeholders of 0, not data
        for (i, j), logprobs in zip(group.trained_sequences(), self._logprobs[group], strict=True):
            sequence = group.sequences_G[i][j]
            assert sequence.logprobs is not None, "trajectory_to_sequences has set it"
            mask = sequence.loss_mask
            differences[i].append(sequence.logprobs[mask].astype(np.float64) - logprobs[mask])
        return [np.concatenate(parts) if parts else np.zeros(0) for parts in differences]


class ReferenceKL(ModelSignal):
    """KL penalty towards a reference model: A_t += coef * (mean(d) - d_t).

    The mean is over all trained tokens of the optimizer step. Centring keeps the penalty from
    adding a constant to all advantages; it only shifts probability between tokens. With
    discount > 0 a token is also credited with later ones: its term becomes the sum over s >= t of
    discount^(s - t) * coef * (mean(d) - d_s), over the trained tokens of its episode.
    """

    # The mean of a minibatch would make the gradient depend on how the step is split.
    needs_batch = True

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        """Add the penalty. Metric `kl_policy_base`: mean(d), an estimate of KL(policy || reference)
        per token."""
        differences = self.differences(groups)
        # without any trained token there is no mean, and kl_policy_base would be NaN
        all_differences = [d for members in differences for d in members]
        if not sum(len(d) for d in all_differences):
            return {}
        mean = float(np.concatenate(all_differences).mean())
        for group, members in zip(groups, differences):
            for i, d in enumerate(members):
                add_to_trained(group, i, kl_advantages(d, self.coef, self.discount, centre=mean))
        return {"kl_policy_base": mean}


def kl_advantages(
    differences: np.ndarray, coef: float, discount: float = 0.0, centre: float = 0.0
) -> np.ndarray:
    """Discounted future sum of coef * (centre - d_t) over an episode's T trained tokens."""
    return discounted_future_sum(coef * (centre - differences), discount)


def discounted_future_sum(values: np.ndarray, discount: float) -> np.ndarray:
    """y[t] = sum over s >= t of discount^(s - t) * values[s]; float64 [T]. With discount 0 these
    are the values themselves."""
    total = np.array(values, np.float64)
    step, factor = 1, float(discount)
    # Doubling, O(T log T) in numpy where a loop would be T steps of Python. Invariant: before each
    # round total[t] sums the `step` terms from t on, and factor = discount^step.
    while step < len(total) and factor != 0.0:
        total[:-step] += factor * total[step:]
        step, factor = 2 * step, factor * factor
    return total


def add_to_trained(group: TrainingGroup, member: int, values: np.ndarray) -> None:
    """Add values [T] to the advantages of a member's T trained tokens, in sampling order.

    The tokens may be spread over several sequences, and over several turns of each.
    """
    start = 0
    for sequence, advantages in zip(group.sequences_G[member], group.advantages_G[member]):
        mask = sequence.loss_mask
        end = start + int(mask.sum())
        advantages[mask] += values[start:end]
        start = end


async def sequence_logprobs(
    client: SamplingClient, tokens: Sequence[list[int]], temperature: float = 1.0
) -> list[np.ndarray]:
    """Logprobs of full sequences under a client's weights and a temperature, float64 [N] each; NaN
    for the first token, which has no context.

    Raises ConfigurationError if the client can score at temperature 1 only.
    """
    score = _logprob_function(client, temperature)
    # all submitted before the first is awaited, so that the engine can pack them together
    futures = [score(tinker.ModelInput.from_ints(sequence)) for sequence in tokens]
    return [as_numpy(await future) for future in futures]


def _logprob_function(
    client: SamplingClient, temperature: float
) -> Callable[[tinker.ModelInput], APIFuture[list[float | None]]]:
    """Return `compute_logprobs` at this temperature; raises ConfigurationError if unsupported.

    Tokens sampled at temperature T have logprobs of softmax(logits / T). Scored at temperature 1,
    they would seem far from the very weights that sampled them.
    """
    if temperature == 1:
        return client.compute_logprobs
    if not _scores_at_temperature(client):
        raise ConfigurationError(
            f"temperature={temperature:g}: {type(client).__name__}.compute_logprobs supports"
            " temperature 1 only, which is not comparable with the sampled logprobs; set"
            " temperature=1, or use a model in process (without base_url)"
        )
    return partial(client.compute_logprobs, temperature=temperature)


def _scores_at_temperature(client: SamplingClient) -> TypeGuard[ScoresAtTemperature]:
    """Decided by the signature: every client has a method of this name, so a Protocol check by
    `isinstance` would accept all of them."""
    return "temperature" in inspect.signature(client.compute_logprobs).parameters
