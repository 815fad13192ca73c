"""The pointwise reward model: a language model that says how good a single reply is.

It reads a chat, and its reward is r = log p("Yes") - log p("No") for the next token:

    prompt, completion, system: "==== Is this a good reply? ====", assistant: "Yes" or "No"

Trained on comparisons by the Bradley-Terry model, p(chosen beats rejected) = sigmoid(r_chosen -
r_rejected) (Bradley & Terry 1952; the loss of Ouyang et al. 2022, arXiv 2203.02155), with the
supervised loop and `BradleyTerryObjective`. As no layer is added, its checkpoints are adapters like
any other.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import chz

from tinker_cookbook import models
from tinker_cookbook.preference.chat_labels import ChatLabels
from tinker_cookbook.preference.comparison_datasets import (
    DatasetBuilderFromComparisons,
    RenderComparison,
    excluded,
)
from tinker_cookbook.preference.context_window import fits_context
from tinker_cookbook.preference.preference_model_evaluator import PreferenceAccuracy
from tinker_cookbook.preference.types import (
    CheckpointedPreferenceModelBuilder,
    Comparison,
    LabeledComparison,
    PreferenceModel,
)
from tinker_cookbook.renderers import Message, Renderer
from tinker_cookbook.sequences import Sequence as TokenSequence
from tinker_cookbook.sequences import to_datum
from tinker_cookbook.supervised.datasets import Rendered
from tinker_cookbook.training.evaluators import EvaluatorBuilder

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

_CACHE_SIZE = 4096  # rewards


class RewardRenderer:
    """Writes a prompt and a completion as the chat that a reward model reads."""

    def __init__(self, convo_renderer: Renderer) -> None:
        self.labels = ChatLabels(convo_renderer, ("Yes", "No"))

    def conversation(self, prompt: list[Message], completion: list[Message]) -> list[Message]:
        question = Message(role="system", content="==== Is this a good reply? ====")
        return [*prompt, *completion, question]

    def prompt(self, prompt: list[Message], completion: list[Message]) -> list[int]:
        """The tokens before "Yes" or "No"."""
        return self.labels.prompt(self.conversation(prompt, completion))


class RewardModel(PreferenceModel):
    """Scores replies by r. The preference is 2 sigmoid(r_B - r_A) - 1: the probability that B is
    better minus the probability that A is.

    context_window: see `fits_context`.
    """

    def __init__(
        self,
        convo_renderer: Renderer,
        sampling_client: SamplingClient,
        context_window: int | None = None,
    ) -> None:
        self.reward_renderer = RewardRenderer(convo_renderer)
        self.sampling_client, self.context_window = sampling_client, context_window
        # A tournament asks for the same reward once for each comparison of a reply.
        # Keyed by the tokens before the label; the oldest reward is dropped first.
        self._rewards: OrderedDict[tuple[int, ...], float] = OrderedDict()
        # Done once the first caller's request has ended; not the request itself, so that a caller
        # who is cancelled takes no other one with it.
        self._pending: dict[tuple[int, ...], asyncio.Future[None]] = {}

    async def reward(self, prompt: list[Message], completion: list[Message]) -> float:
        """log p("Yes") - log p("No") in nats."""
        return await self._cached_reward(tuple(self.reward_renderer.prompt(prompt, completion)))

    async def _cached_reward(self, key: tuple[int, ...]) -> float:
        while key in self._pending:
            await asyncio.wait([self._pending[key]])
        if key not in self._rewards:
            self._pending[key] = computed = asyncio.get_running_loop().create_future()
            try:
                labels = self.reward_renderer.labels
                yes, no = await labels.logprobs_after(self.sampling_client, key)
                self._rewards[key] = float(yes - no)
            finally:  # if it failed, one of the callers that wait tries again
                del self._pending[key]
                computed.set_result(None)
            if len(self._rewards) > _CACHE_SIZE:
                self._rewards.popitem(last=False)
        return self._rewards[key]

    async def __call__(self, comparison: Comparison) -> float:
        keys = [
            tuple(self.reward_renderer.prompt(comparison.prompt_conversation, completion))
            for completion in (comparison.completion_A, comparison.completion_B)
        ]
        if not fits_context(max(map(len, keys)) + 1, self.context_window):
            return 0.0
        first, second = await asyncio.gather(*map(self._cached_reward, keys))
        return math.tanh((second - first) / 2)


@chz.chz
class RewardModelBuilder(CheckpointedPreferenceModelBuilder):
    """A pointwise reward model from a checkpoint."""

    def model_of(self, renderer: Renderer, client: SamplingClient) -> PreferenceModel:
        return RewardModel(renderer, client, models.context_length(self.model_name))


@chz.chz
class RewardDatasetBuilderFromComparisons(DatasetBuilderFromComparisons):
    """Training data of a pointwise reward model: pairs of chats that end with "Yes".

    A batch holds 2 * batch_size datums [chosen, rejected, ...]; see `BradleyTerryObjective`. Ties
    are dropped; so is a pair with a chat longer than max_length, because the question at its end
    would be truncated.
    """

    def default_evaluator_builders(self) -> list[EvaluatorBuilder]:
        return [PreferenceAccuracy(data=self, make_model=RewardModel)]

    def make_render(self) -> RenderComparison:
        return partial(
            render_reward_pair,
            renderer=RewardRenderer(self.renderer),
            max_length=self.config.max_length,
        )

    def unit(self) -> str:
        return "pair"


def render_reward_pair(
    labeled: LabeledComparison, renderer: RewardRenderer, max_length: int | None
) -> Rendered:
    """The chats of the chosen and of the rejected completion; only the label is trained."""
    if labeled.chosen is None or labeled.rejected is None:
        return excluded("tie")
    prompt = labeled.comparison.prompt_conversation
    tokens = [
        [*renderer.prompt(prompt, completion), renderer.labels.tokens[0]]
        for completion in (labeled.chosen, labeled.rejected)
    ]
    longest = max(map(len, tokens))
    if max_length is not None and longest > max_length:
        reason = f"{longest} tokens, more than max_length={max_length}"
        return Rendered([], skipped=[reason])
    if tokens[0] == tokens[1]:
        return Rendered([], skipped=["chosen and rejected have the same tokens"])
    return Rendered([to_datum(TokenSequence(each, _train_last(each))) for each in tokens])


def _train_last(tokens: Sequence[int]) -> list[float]:
    return [0.0] * (len(tokens) - 1) + [1.0]
