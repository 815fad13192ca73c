"""A language model's verdict as the log probabilities of one-word replies, e.g. "Yes" and "No"."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import tinker

from tinker_cookbook.exceptions import ConfigurationError, RendererError
from tinker_cookbook.renderers import Message, Renderer

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

_PROBE = [Message(role="user", content="?")]


class ChatLabels:
    """The possible one-word replies to a conversation; a reply is scored by its first token.

    `tokens`: the first token of each label. Raises ConfigurationError if two labels begin with the
    same token, e.g. with a renderer that begins every reply with `<think>`.
    """

    def __init__(self, renderer: Renderer, labels: Sequence[str]) -> None:
        self.renderer, self.labels = renderer, tuple(labels)
        self.tokens = [self._render(_PROBE, label)[1] for label in labels]
        if len(set(self.tokens)) < len(self.tokens):
            first = str(renderer.tokenizer.decode(self.tokens[:1]))
            raise ConfigurationError(
                f"renderer {type(renderer).__name__} begins more than one of the replies"
                f" {', '.join(map(repr, labels))} with {first!r}: choose one without thinking, e.g."
                " qwen3_instruct or qwen3_disable_thinking"
            )

    def prompt(self, conversation: list[Message]) -> list[int]:
        """The tokens before the label in the reply to a conversation."""
        prompt, token = self._render(conversation, self.labels[0])
        if token != self.tokens[0]:
            raise RendererError(
                f"{self.labels[0]!r} does not begin with its usual token after this conversation"
            )
        return prompt

    async def logprobs(self, client: SamplingClient, conversation: list[Message]) -> np.ndarray:
        """log p of each label after a conversation, in nats, float64 [number of labels].

        Not renormalized: the model may also write something else.
        """
        return await self.logprobs_after(client, self.prompt(conversation))

    async def logprobs_after(self, client: SamplingClient, prompt: Sequence[int]) -> np.ndarray:
        """`logprobs` after the tokens of a `prompt`."""
        futures = [
            client.compute_logprobs(
                tinker.ModelInput.from_ints([*prompt, token]), prompt_logprobs_last_n=1
            )
            for token in self.tokens
        ]
        results = await asyncio.gather(*futures)
        return np.array([result[-1] for result in results], dtype=np.float64)

    def _render(self, conversation: list[Message], label: str) -> tuple[list[int], int]:
        """The tokens before the first trained one of the reply, and that token."""
        reply = Message(role="assistant", content=label)
        model_input, weights = self.renderer.build_supervised_example([*conversation, reply])
        tokens, start = model_input.to_ints(), int(np.flatnonzero(weights.numpy())[0])
        return tokens[:start], tokens[start]
