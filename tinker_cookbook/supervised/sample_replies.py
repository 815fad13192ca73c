"""Print greedy completions for a few prompts of the data next to the reference replies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import tinker

from tinker_cookbook.sequences import from_datum
from tinker_cookbook.training.evaluators import SamplingClientEvaluator

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer
    from tinker_cookbook.service.api import SamplingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer
    from tinker_cookbook.utils.ml_log import Sample

MAX_NEW_TOKENS = 64
MAX_PROMPT_TOKENS = 1024  # examples with longer prompts are skipped
MAX_REPLY_CHARS = 200  # maximum length of a printed reply
MAX_QUESTION_CHARS = 80  # maximum length of the printed end of the prompt's last message
# One token per UTF-8 byte is the worst case. Decoding no more than this many tokens keeps printing
# fast even if a reference reply has thousands.
MAX_TOKENS_PER_CHAR = 4


class _Example(NamedTuple):
    prompt: list[int]
    reply: list[int]


class SampleRepliesEvaluator(SamplingClientEvaluator):
    """Samples greedy completions to compare with the last trained span of `count` examples.

    datums: called once, at the first evaluation. Examples whose loss mask begins with the first
    token (`train_on_what=all_tokens`) have no prompt and are skipped.
    """

    def __init__(
        self,
        datums: Callable[[], Sequence[tinker.Datum]],
        renderer: Renderer,
        tokenizer: Tokenizer,
        count: int,
    ) -> None:
        self._datums, self._count = datums, count
        self._renderer, self._tokenizer = renderer, tokenizer
        self._examples: list[_Example] | None = None
        self._lines: list[str] = []
        self._samples: list[Sample] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        if self._examples is None:
            self._examples = _evenly_spaced(_split_examples(self._datums()), self._count)
        stop = self._renderer.get_stop_sequences()
        params = tinker.SamplingParams(max_tokens=MAX_NEW_TOKENS, temperature=0.0, stop=stop)
        futures = [
            client.sample(tinker.ModelInput.from_ints(example.prompt), 1, params)
            for example in self._examples
        ]
        self._lines = ["greedy replies (->) and reference replies (data):"] if futures else []
        self._samples = []
        for example, future in zip(self._examples, futures):
            reply = (await future).sequences[0].tokens
            texts = {"prompt": example.prompt, "reply": reply, "reference": example.reply}
            self._samples.append(
                {name: str(self._tokenizer.decode(tokens)) for name, tokens in texts.items()}
            )
            self._lines += [
                f"  {self._format_question(example.prompt)}",
                f"    -> {self._format_reply(reply)}",
                f"  data {self._format_reply(example.reply)}",
            ]
        return {}

    def lines(self) -> list[str]:
        return self._lines

    def samples(self) -> dict[str, list[Sample]]:
        return {"replies": self._samples}

    def _format_reply(self, tokens: Sequence[int]) -> str:
        """Decode a reply for printing, truncated and without its stop token or stop string."""
        stops = self._renderer.get_stop_sequences()
        tokens = list(tokens)
        if tokens and tokens[-1] in stops:
            tokens.pop()
        text = str(self._tokenizer.decode(tokens[: MAX_TOKENS_PER_CHAR * MAX_REPLY_CHARS])).strip()
        for stop in stops:
            text = text.removesuffix(stop).strip() if isinstance(stop, str) else text
        return repr(text if len(text) <= MAX_REPLY_CHARS else f"{text[:MAX_REPLY_CHARS]}...")

    def _format_question(self, prompt: list[int]) -> str:
        """Decode the end of the last message of the prompt.

        Works for any renderer: the message is located by the tokens that the renderer puts around
        every user message. If they are not found, the end of the prompt is used as it is.
        """
        before, after = _user_turn_delimiters(self._renderer)
        if after and prompt[-len(after) :] == after:
            prompt = prompt[: -len(after)]
        start = next(
            (
                end
                for end in range(len(prompt), 0, -1)
                if before and _ends_with(prompt[:end], before)
            ),
            0,
        )
        question = prompt[start:][-MAX_TOKENS_PER_CHAR * MAX_QUESTION_CHARS :]
        text = str(self._tokenizer.decode(question)).strip()
        return repr(text if len(text) <= MAX_QUESTION_CHARS else f"...{text[-MAX_QUESTION_CHARS:]}")


def _split_examples(datums: Sequence[tinker.Datum]) -> list[_Example]:
    """Split each datum into the last trained span and the prompt before it."""
    examples = []
    for datum in datums:
        sequence = from_datum(datum)
        trained = np.flatnonzero(sequence.loss_mask)
        if not len(trained):
            continue
        end = int(trained[-1]) + 1
        untrained = np.flatnonzero(~sequence.loss_mask[:end])
        start = int(untrained[-1]) + 1  # never empty: a datum's first token has no loss
        if 1 < start <= MAX_PROMPT_TOKENS:
            tokens = sequence.tokens.tolist()
            examples.append(_Example(tokens[:start], tokens[start:end]))
    return examples


def _evenly_spaced(examples: list[_Example], count: int) -> list[_Example]:
    """Pick up to `count` evenly spaced examples."""
    num_picked = min(count, len(examples))
    return [examples[i * len(examples) // num_picked] for i in range(num_picked)]


def _user_turn_delimiters(renderer: Renderer) -> tuple[list[int], list[int]]:
    """Template tokens right before and after a user message, up to the start of the reply.

    Found by rendering two prompts that differ only in the message: their common prefix and suffix
    are the template. Only the last 3 tokens of the prefix are kept: a longer prefix would include
    text that a template writes once, at the start of a conversation.
    """
    first, second = (
        renderer.build_generation_prompt([{"role": "user", "content": text}]).to_ints()
        for text in ("0", "1")
    )
    prefix = _common_prefix(first, second)[-3:]
    return prefix, _common_prefix(first[::-1], second[::-1])[::-1]


def _common_prefix(first: list[int], second: list[int]) -> list[int]:
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second))]


def _ends_with(tokens: list[int], suffix: list[int]) -> bool:
    return tokens[-len(suffix) :] == suffix
