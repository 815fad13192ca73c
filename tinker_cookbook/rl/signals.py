"""Signals: what writes the advantage of each sampled token before it is trained.

The signals of a run are asked in turn, and each adds to what the others have written. All losses
are sums over tokens, so the size of a group and the length of a reply count as they are, unless a
signal divides by them.
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
    """What the loop asks of a signal."""

    @property
    def needs_batch(self) -> bool:
        """Whether `add` must see all groups of an optimizer step at once."""
        ...

    async def prepare(self, group: TrainingGroup) -> None:
        """Called as soon as a group was played, while others still are: the time to ask a model."""
        ...

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        """Adds to `advantages_G` on trained tokens; returns metrics."""
        ...


def group_advantages(
    rewards_G: Sequence[float],
    kind: AdvantageKind,
    num_tokens_G: Sequence[int],
    max_tokens: int | None = None,
) -> np.ndarray:
    """The advantage of every trained token of each member, float64 [G], from total rewards R.

    centered        R_i - mean(R)
    leave_one_out   R_i - mean of the other members' R: G / (G - 1) times the first
                    (Ahmadian et al. 2024, RLOO, arXiv 2402.14740)
    grpo            (R_i - mean(R)) / (std(R) + 1e-6) / T_i with the std of a sample (ddof 1) and
                    T_i the member's trained tokens (Shao et al. 2024, arXiv 2402.03300)
    dr_grpo         (R_i - mean(R)) / max_tokens: the division by each reply's own length, which
                    favours long wrong replies, and by the std, which favours very easy and very
                    hard problems, are left out (Liu et al. 2025, arXiv 2503.20783)

    Exactly 0 for all where there is nothing to compare: a single member, or equal rewards.
    """
    rewards = np.asarray(rewards_G, np.float64)
    if len(rewards) < 2 or (rewards == rewards[0]).all():
        return np.zeros(len(rewards))
    return _KINDS[kind](rewards, np.asarray(num_tokens_G, np.float64), max_tokens)


def _centered(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    return rewards - rewards.mean()


def _leave_one_out(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    return rewards - (rewards.sum() - rewards) / (len(rewards) - 1)


def _grpo(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    scaled = (rewards - rewards.mean()) / (rewards.std(ddof=1) + 1e-6)
    return scaled / np.maximum(tokens, 1)  # without a trained token it counts nowhere


def _dr_grpo(rewards: np.ndarray, tokens: np.ndarray, max_tokens: int | None) -> np.ndarray:
    assert max_tokens is not None, "GroupReward has seen to it"
    return (rewards - rewards.mean()) / max_tokens


_KINDS: dict[AdvantageKind, Callable[[np.ndarray, np.ndarray, int | None], np.ndarray]] = {
    "centered": _centered,
    "leave_one_out": _leave_one_out,
    "grpo": _grpo,
    "dr_grpo": _dr_grpo,
}


@dataclass(frozen=True)
class GroupReward:
    """How much better than its group an episode was, the same on all its trained tokens: see
    `group_advantages`. max_tokens: of a reply, the divisor of dr_grpo."""

    kind: AdvantageKind = "centered"
    max_tokens: int | None = None

    @property
    def needs_batch(self) -> bool:
        return False

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ConfigurationError(
                f"advantage={self.kind!r}: expected {', '.join(get_args(AdvantageKind))}"
            )
        if self.kind == "dr_grpo" and not (self.max_tokens or 0) > 0:
            raise ConfigurationError(
                f"advantage=dr_grpo divides by max_tokens, found {self.max_tokens}: set max_tokens"
            )

    async def prepare(self, group: TrainingGroup) -> None:
        """Rewards come with the group."""

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        for group in groups:
            values = group_advantages(
                group.group.get_total_rewards(),
                self.kind,
                [sum(each.num_loss_tokens for each in member) for member in group.sequences_G],
                self.max_tokens,
            )
            for value, member, advantages in zip(values, group.sequences_G, group.advantages_G):
                for sequence, row in zip(member, advantages, strict=True):
                    row[sequence.loss_mask] += value
        return {}


class ModelSignal(ABC):
    """A signal from the logprobs that another model gives to what the policy has sampled.

    Asks for them once per sequence, as soon as a group was played. d = lp_sampled - lp_model, in
    nats, on trained tokens; `add` decides what becomes of it.

    Both logprobs are of softmax(logits / temperature): where the model is the policy, d is 0 at any
    temperature.
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
        """client: a SamplingClient of that model. timeout: seconds that one group may wait.
        temperature: of the policy's sampling; other than 1 only with clients in process."""
        if not math.isfinite(coef):
            raise ConfigurationError(f"kl_penalty_coef={coef}: must be a finite number")
        if not 0 <= discount <= 1:
            raise ConfigurationError(f"kl_discount_factor={discount}: must be from 0 to 1")
        if temperature != 1:
            _scorer(client, temperature)  # refuses before anything is played
        self._client, self.coef, self.discount = client, coef, discount
        self._timeout, self.temperature = timeout, temperature
        self._logprobs: WeakKeyDictionary[TrainingGroup, list[np.ndarray]] = WeakKeyDictionary()

    @abstractmethod
    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]: ...

    def identity(self) -> dict[str, float]:
        """What a run must have in common to go on with another's checkpoint."""
        settings = {"coef": self.coef, "discount": self.discount}
        return settings if self.temperature == 1 else {**settings, "temperature": self.temperature}

    def client_for(self, group: TrainingGroup) -> SamplingClient:
        """The SamplingClient of the model that judges this group."""
        return self._client

    async def prepare(self, group: TrainingGroup) -> None:
        """Raises TrainingError where the model takes too long."""
        tokens = [group.sequences_G[i][j].tokens.tolist() for i, j in group.trained()]
        try:
            async with asyncio.timeout(self._timeout):
                self._logprobs[group] = await sequence_logprobs(
                    self.client_for(group), tokens, self.temperature
                )
        except TimeoutError as error:
            raise TrainingError(
                f"{type(self).__name__}: no logprobs of a group of {len(tokens)} sequences from the"
                f" other model within {self._timeout:g} s"
            ) from error

    def differences(self, groups: Sequence[TrainingGroup]) -> list[list[np.ndarray]]:
        """d of each group and member: float64, its trained tokens in the order of sampling."""
        return [self._differences(group) for group in groups]

    def _differences(self, group: TrainingGroup) -> list[np.ndarray]:
        if group not in self._logprobs:
            raise TrainingError(f"{type(self).__name__}.add needs prepare(group) to be awaited")
        differences: list[list[np.ndarray]] = [[] for _ in group.sequences_G]
        for (i, j), logprobs in zip(group.trained(), self._logprobs[group], strict=True):
            sequence = group.sequences_G[i][j]
            assert sequence.logprobs is not None, "trajectory_to_sequences has set it"
            mask = sequence.loss_mask
            differences[i].append(sequence.logprobs[mask].astype(np.float64) - logprobs[mask])
        return [np.concatenate(parts) if parts else np.zeros(0) for parts in differences]


class ReferenceKL(ModelSignal):
    """Holds the policy near to a reference: A_t += coef * (mean(d) - d_t).

    The mean is over all trained tokens of the groups that `add` is given, which are those of the
    optimizer step: centred, the term moves probability between tokens and adds no constant to all
    of them. With discount > 0 a token also answers for the later ones of its episode: the term
    becomes sum over s >= t of discount^(s - t) times it, over the episode's trained tokens.
    """

    needs_batch = True

    def add(self, groups: Sequence[TrainingGroup]) -> dict[str, float]:
        """Metric `kl_policy_base`: mean(d), which estimates KL(policy || reference) per token."""
        differences = self.differences(groups)
        everything = [d for members in differences for d in members]
        if not sum(len(d) for d in everything):
            return {}
        mean = float(np.concatenate(everything).mean())
        for group, members in zip(groups, differences):
            for i, d in enumerate(members):
                add_to_trained(group, i, kl_advantages(d, self.coef, self.discount, centre=mean))
        return {"kl_policy_base": mean}


def kl_advantages(
    differences: np.ndarray, coef: float, discount: float = 0.0, centre: float = 0.0
) -> np.ndarray:
    """coef * (centre - d_t) for the T trained tokens of an episode, as discounted future sum."""
    return discounted_future_sum(coef * (centre - differences), discount)


def discounted_future_sum(values: np.ndarray, discount: float) -> np.ndarray:
    """y[t] = sum over s >= t of discount^(s - t) * values[s]; float64 [T]. 0: the values."""
    total = np.array(values, np.float64)
    step, factor = 1, float(discount)
    # after each round total[t] holds the terms of the 2 * step values from t on
    while step < len(total) and factor != 0.0:
        total[:-step] += factor * total[step:]
        step, factor = 2 * step, factor * factor
    return total


def add_to_trained(group: TrainingGroup, member: int, values: np.ndarray) -> None:
    """Adds values [T] to the advantages of a member's T trained tokens, in their order."""
    start = 0
    for sequence, advantages in zip(group.sequences_G[member], group.advantages_G[member]):
        mask = sequence.loss_mask
        end = start + int(mask.sum())
        advantages[mask] += values[start:end]
        start = end


async def sequence_logprobs(
    client: SamplingClient, tokens: Sequence[list[int]], temperature: float = 1.0
) -> list[np.ndarray]:
    """Logprobs of whole sequences under the weights of a SamplingClient, of its distribution at a
    temperature, float64 [N] each; NaN for the first token, which nothing predicts. All are asked
    for before the first is awaited.

    Raises ConfigurationError where the client scores at temperature 1 only.
    """
    score = _scorer(client, temperature)
    futures = [score(tinker.ModelInput.from_ints(each)) for each in tokens]
    return [as_numpy(await future) for future in futures]


def _scorer(
    client: SamplingClient, temperature: float
) -> Callable[[tinker.ModelInput], APIFuture[list[float | None]]]:
    """The client's logprobs at this temperature; ConfigurationError where it has none. Tokens
    sampled at temperature T have logprobs of softmax(logits / T); scored at 1, they would seem to
    be far from the very weights that sampled them."""
    if temperature == 1:
        return client.compute_logprobs
    if not _scores_at_temperature(client):
        raise ConfigurationError(
            f"temperature={temperature:g}: {type(client).__name__}.compute_logprobs scores at"
            " temperature 1 only, which cannot be compared with what was sampled; set"
            " temperature=1, or score with a model in process (without base_url)"
        )
    return partial(client.compute_logprobs, temperature=temperature)


def _scores_at_temperature(client: SamplingClient) -> TypeGuard[ScoresAtTemperature]:
    """Every client has a method of this name, so its parameters tell."""
    return "temperature" in inspect.signature(client.compute_logprobs).parameters
