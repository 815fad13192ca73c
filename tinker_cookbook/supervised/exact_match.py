"""Exact-match evaluation: sample greedy completions and compare them with the expected replies."""

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

NUM_PRINTED = 4  # completions printed per evaluation


class ExactMatchEvaluator(SamplingClientEvaluator):
    """`{"<name>/exact_match": fraction}` of greedy completions that equal the expected reply.

    The last message of each conversation is the expected reply; the messages before it are the
    prompt. Text is compared without leading and trailing white space.
    """

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
        num_correct, printed = 0, []
        stride = max(1, len(futures) // NUM_PRINTED)
        for index, (messages, future) in enumerate(zip(self.conversations, futures)):
            message, _ = self.renderer.parse_response((await future).sequences[0].tokens)
            reply, expected = get_text_content(message).strip(), get_text_content(messages[-1])
            num_correct += reply == expected.strip()
            if index % stride == 0 and len(printed) < NUM_PRINTED:
                mark = "right" if reply == expected.strip() else "wrong"
                printed.append(f"  {get_text_content(messages[-2])!r} -> {reply!r} ({mark})")
        self._lines = [
            f"{self.name}: {num_correct} of {len(futures)} replies are right, e.g.",
            *printed,
        ]
        return {f"{self.name}/exact_match": num_correct / len(futures)}

    def lines(self) -> list[str]:
        return self._lines


@chz.chz
class ExactMatch:
    """Builder of an ExactMatchEvaluator for a JSONL file of conversations."""

    path: str = chz.field(doc="JSONL file; each conversation ends with the expected reply")
    name: str = chz.field(doc="prefix of the metric name")
    model_name: str = chz.field(doc="model whose tokenizer is used")
    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    max_tokens: int = chz.field(default=64, doc="maximum tokens per completion")

    def __call__(self) -> ExactMatchEvaluator:
        tokenizer = get_tokenizer(self.model_name)
        renderer = get_renderer(self.renderer_name, tokenizer, model_name=self.model_name)
        return ExactMatchEvaluator(
            [chat.messages_for(renderer) for chat in read_chats(self.path)],
            renderer,
            self.name,
            self.max_tokens,
        )
