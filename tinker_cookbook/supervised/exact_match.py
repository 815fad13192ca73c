"""Exact-match evaluation: sample greedy completions and compare them with the expected replies.

`is_right` decides whether a reply matches: by default if the texts are equal. It may also compare
the final answers alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    from tinker_cookbook.utils.ml_log import Sample

NUM_PRINTED = 4  # completions printed per evaluation
MAX_TRUNCATED = 0.1  # larger fractions of truncated completions are warned of
MAX_PRINTED_CHARS = 200  # of a printed prompt or completion; the middle of a longer one is left out

IsRight = Callable[[str, str], bool]  # (reply, expected reply)


def is_same_text(reply: str, expected: str) -> bool:
    """Whether the texts are equal without leading and trailing white space."""
    return reply.strip() == expected.strip()


class ExactMatchEvaluator(SamplingClientEvaluator):
    """Fractions of greedy completions: right (`<name>/exact_match`) and truncated at `max_tokens`
    tokens (`<name>/truncated`).

    The last message of each conversation is the expected reply; the messages before it are the
    prompt. A truncated completion is compared like any other. context: maximum tokens of a prompt
    with its completion (None: unknown); a long prompt leaves less than `max_tokens`.
    """

    def __init__(
        self,
        conversations: Sequence[list[Message]],
        renderer: Renderer,
        name: str,
        max_tokens: int,
        is_right: IsRight = is_same_text,
        context: int | None = None,
    ) -> None:
        self.conversations, self.renderer = list(conversations), renderer
        self.name, self.max_tokens, self.is_right = name, max_tokens, is_right
        self.context = context
        self._lines: list[str] = []
        self._samples: list[Sample] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        prompts = [self.renderer.build_generation_prompt(each[:-1]) for each in self.conversations]
        futures = [client.sample(prompt, 1, self._params(prompt)) for prompt in prompts]
        num_correct = num_truncated = 0
        printed: list[str] = []
        self._samples = []
        stride = max(1, len(futures) // NUM_PRINTED)
        for index, (messages, future) in enumerate(zip(self.conversations, futures)):
            sequence = (await future).sequences[0]
            message, _ = self.renderer.parse_response(sequence.tokens)
            reply = get_text_content(message).strip()
            expected = get_text_content(messages[-1])
            right = self.is_right(reply, expected)
            truncated = sequence.stop_reason == "length"
            num_correct += right
            num_truncated += truncated
            self._samples.append(
                {
                    "prompt": get_text_content(messages[-2]),
                    "reply": reply,
                    "expected": expected,
                    "right": right,
                    "truncated": truncated,
                }
            )
            if index % stride == 0 and len(printed) < NUM_PRINTED:
                mark = ("right" if right else "wrong") + (", truncated" if truncated else "")
                question = _shorten(get_text_content(messages[-2]))
                printed.append(f"  {question!r} -> {_shorten(reply)!r} ({mark})")
        cut = f", {num_truncated} truncated at {self.max_tokens} tokens" if num_truncated else ""
        self._lines = [
            f"{self.name}: {num_correct} of {len(futures)} replies are right{cut}, e.g.",
            *printed,
        ]
        if num_truncated > MAX_TRUNCATED * len(futures):
            self._lines.append(
                f"{self.name}: replies that are truncated may hide right answers: a renderer"
                " without reasoning, e.g. qwen3_disable_thinking, makes them shorter"
            )
        return {
            f"{self.name}/exact_match": num_correct / len(futures),
            f"{self.name}/truncated": num_truncated / len(futures),
        }

    def _params(self, prompt: tinker.ModelInput) -> tinker.SamplingParams:
        room = self.max_tokens
        if self.context is not None:
            room = max(1, min(room, self.context - prompt.length))
        stop = self.renderer.get_stop_sequences()
        return tinker.SamplingParams(max_tokens=room, temperature=0.0, stop=stop)

    def lines(self) -> list[str]:
        return self._lines

    def samples(self) -> dict[str, list[Sample]]:
        return {self.name: self._samples}


def _shorten(text: str) -> str:
    """Keep both ends of a long text: a final answer is at the end."""
    half = MAX_PRINTED_CHARS // 2
    return text if len(text) <= MAX_PRINTED_CHARS else f"{text[:half]} ... {text[-half:]}"


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
