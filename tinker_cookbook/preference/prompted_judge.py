"""A preference model that is prompted, not trained: it judges two replies under criteria in words.

The judge reads one user message with the conversation, both replies and the criteria, and is asked
for "A" or "B". With p(A) and p(B), its probabilities of the two labels, a verdict is

    (p(B) - p(A)) / (p(A) + p(B))                                                      in [-1, 1]

and the preference is the mean over both orders, the second one negated, so that a judge that
prefers a position gives 0.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import chz
import numpy as np

from tinker_cookbook import models
from tinker_cookbook.checkpoint_utils import resolve_renderer_name_from_checkpoint_or_default
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.chat_labels import ChatLabels
from tinker_cookbook.preference.context_window import fits_context
from tinker_cookbook.preference.types import Comparison, PreferenceModel, PreferenceModelBuilder
from tinker_cookbook.renderers import Message, Renderer, get_renderer, get_text_content
from tinker_cookbook.service import connect, locate_checkpoint
from tinker_cookbook.tokenizer_utils import get_tokenizer

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

DEFAULT_CRITERIA = (
    "The better reply answers the last message correctly and helpfully, is honest about what it"
    " does not know, and does not help anyone to do harm."
)
_PROMPT = """\
Compare two replies to the conversation below.

[Conversation]
{conversation}

[Reply A]
{reply_a}

[Reply B]
{reply_b}

[Criteria]
{criteria}

Which reply meets the criteria better? Answer with one letter, A or B."""


class PromptedPreferenceModel(PreferenceModel):
    """Judges by criteria in words; four log probabilities of one token per comparison.

    context_window: see `fits_context`.
    """

    def __init__(
        self,
        client: SamplingClient,
        renderer: Renderer,
        criteria: str,
        context_window: int | None = None,
    ) -> None:
        _check_criteria(criteria)
        self.client, self.criteria = client, criteria
        self.context_window = context_window
        self.labels = ChatLabels(renderer, ["A", "B"])

    async def __call__(self, comparison: Comparison) -> float:
        conversations = [
            judge_conversation(each, self.criteria) for each in (comparison, comparison.swap())
        ]
        if not all(map(self._fits, conversations)):
            return 0.0
        given, swapped = await asyncio.gather(*map(self._verdict, conversations))
        return (given - swapped) / 2

    async def _verdict(self, conversation: list[Message]) -> float:
        """p(B) - p(A), renormalized over both labels, in one order of the replies."""
        first, second = await self.labels.logprobs(self.client, conversation)
        return float(np.tanh((second - first) / 2))

    def _fits(self, conversation: list[Message]) -> bool:
        return fits_context(len(self.labels.prompt(conversation)) + 1, self.context_window)


def _check_criteria(criteria: str) -> None:
    if not criteria.strip():
        raise ConfigurationError(f"criteria={criteria!r} is empty: describe the better reply")


def judge_conversation(comparison: Comparison, criteria: str) -> list[Message]:
    """The conversation that a prompted judge replies to; reasoning and tool calls are left out."""
    text = _PROMPT.format(
        conversation=_transcript(comparison.prompt_conversation),
        reply_a=_reply_text(comparison.completion_A),
        reply_b=_reply_text(comparison.completion_B),
        criteria=criteria.strip(),
    )
    return [Message(role="user", content=text)]


def _reply_text(completion: Sequence[Message]) -> str:
    """The text of a completion; with the roles if it has several messages."""
    if len(completion) == 1:
        return get_text_content(completion[0]).strip()
    return _transcript(completion)


def _transcript(messages: Sequence[Message]) -> str:
    return "\n".join(f"{m['role']}: {get_text_content(m).strip()}" for m in messages)


@chz.chz
class PromptedPreferenceModelBuilder(PreferenceModelBuilder):
    """A prompted judge; called inside a run, it shares the run's engine or server."""

    model_name: str = chz.field(doc="base model of the judge")
    model_path: str | None = chz.field(
        default=None,
        doc="weights of the judge: tinker://.../sampler_weights/..., a run directory or a PEFT"
        " adapter directory (None: the base model)",
    )
    renderer_name: str | None = chz.field(
        default=None,
        doc="renderer of the judge, without thinking (None: that of the checkpoint, else the"
        " model's default)",
    )
    criteria: str = chz.field(
        default=DEFAULT_CRITERIA, doc="description of the better reply, in words"
    )
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: that of the run, else in process)"
    )

    @chz.validate
    def _check_criteria(self) -> None:
        _check_criteria(self.criteria)  # now, not after the stages of a pipeline that come first

    def __call__(self) -> PromptedPreferenceModel:
        path = self.model_path
        if path is not None:
            path = locate_checkpoint(path, "sampler_weights", "model_path", self.base_url)
        renderer_name = resolve_renderer_name_from_checkpoint_or_default(
            model_name=self.model_name,
            explicit_renderer_name=self.renderer_name,
            load_checkpoint_path=path,
            base_url=self.base_url,
        )
        tokenizer = get_tokenizer(self.model_name)
        renderer = get_renderer(renderer_name, tokenizer, model_name=self.model_name)
        client = connect(self.base_url).create_sampling_client(
            model_path=path, base_model=self.model_name
        )
        context_window = models.context_length(self.model_name)
        return PromptedPreferenceModel(client.result(), renderer, self.criteria, context_window)
