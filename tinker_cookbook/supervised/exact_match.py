"""How many replies equal the expected ones, by sampling them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import chz
import tinker

from tinker_cookbook.renderers import Message, get_renderer, get_text_content
from tinker_cookbook.renderers.chats import read_chats
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import SamplingClientEvaluator

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer
    from tinker_cookbook.service.api import SamplingClient

SHOWN = 4  # replies that a person gets to see


class ExactMatchEvaluator(SamplingClientEvaluator):
    """`{"<name>/exact_match": fraction}`: greedy replies to conversations that end with the
    expected reply, compared as text without surrounding white space."""

    def __init__(
        self,
        conversations: Sequence[list[Message]],
        renderer: Renderer,
        name: str,
        max_tokens: int,
    ) -> None:
        self.conversations, self.renderer = list(conversations), renderer
        self.name, self.max_tokens = name, max_tokens
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        params = tinker.SamplingParams(
            max_tokens=self.max_tokens, temperature=0.0, stop=self.renderer.get_stop_sequences()
        )
        futures = [
            client.sample(self.renderer.build_generation_prompt(messages[:-1]), 1, params)
            for messages in self.conversations
        ]
        right, shown = 0, []
        step = max(1, len(futures) // SHOWN)
        for number, (messages, future) in enumerate(zip(self.conversations, futures)):
            message, _ = self.renderer.parse_response((await future).sequences[0].tokens)
            reply, expected = get_text_content(message).strip(), get_text_content(messages[-1])
            right += reply == expected.strip()
            if number % step == 0 and len(shown) < SHOWN:
                mark = "right" if reply == expected.strip() else "wrong"
                shown.append(f"  {get_text_content(messages[-2])!r} -> {reply!r} ({mark})")
        self._lines = [f"{self.name}: {right} of {len(futures)} replies are right, e.g.", *shown]
        return {f"{self.name}/exact_match": right / len(futures)}

    def lines(self) -> list[str]:
        return self._lines


@chz.chz
class ExactMatch:
    """Builds an ExactMatchEvaluator over a JSONL file of conversations."""

    path: str = chz.field(doc="JSONL file; each conversation ends with the expected reply")
    name: str = chz.field(doc="prefix of the metric")
    model_name: str = chz.field(doc="model whose tokenizer is used")
    renderer_name: str = chz.field(doc="how messages become tokens")
    max_tokens: int = chz.field(default=64, doc="tokens of a reply at most")

    def __call__(self) -> ExactMatchEvaluator:
        tokenizer = get_tokenizer(self.model_name)
        renderer = get_renderer(self.renderer_name, tokenizer, model_name=self.model_name)
        return ExactMatchEvaluator(
            [chat.messages_for(renderer) for chat in read_chats(self.path)],
            renderer,
            self.name,
            self.max_tokens,
        )
