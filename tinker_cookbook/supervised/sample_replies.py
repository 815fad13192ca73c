"""What the model replies to a few prompts of the data, beside what the data says."""

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

MAX_REPLY = 64  # tokens
MAX_PROMPT = 1024  # tokens; of longer conversations nothing is shown
SHOWN = 200  # characters of a reply
SHOWN_PROMPT = 80  # ... and of what was asked
TOKENS_PER_CHARACTER = 4  # at most, one for each byte; so much is decoded for what is shown


class _Example(NamedTuple):
    prompt: list[int]
    reply: list[int]


class SampleReplies(SamplingClientEvaluator):
    """Greedy replies to the last trained message of `count` examples; no metric, only lines.

    datums: where to take them from, called when they are first needed. What is trained from its
    first token on (`train_on_what=all_tokens`) has no prompt, and nothing is shown of it.
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

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        if self._examples is None:
            self._examples = _spread(_examples(self._datums()), self._count)
        stop = self._renderer.get_stop_sequences()
        params = tinker.SamplingParams(max_tokens=MAX_REPLY, temperature=0.0, stop=stop)
        futures = [
            client.sample(tinker.ModelInput.from_ints(each.prompt), 1, params)
            for each in self._examples
        ]
        self._lines = ["greedy replies, and what the data says:"] if futures else []
        for example, future in zip(self._examples, futures):
            reply = (await future).sequences[0].tokens
            self._lines += [
                f"  {self._question(example.prompt)}",
                f"    -> {self._text(reply)}",
                f"  data {self._text(example.reply)}",
            ]
        return {}

    def lines(self) -> list[str]:
        return self._lines

    def _text(self, tokens: Sequence[int]) -> str:
        """A reply as far as it is shown, without what ends it."""
        stops = self._renderer.get_stop_sequences()
        tokens = list(tokens)
        if tokens and tokens[-1] in stops:
            tokens.pop()
        text = str(self._tokenizer.decode(tokens[: TOKENS_PER_CHARACTER * SHOWN])).strip()
        for stop in stops:
            text = text.removesuffix(stop).strip() if isinstance(stop, str) else text
        return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")

    def _question(self, prompt: list[int]) -> str:
        """The end of the last message before the reply, found by what surrounds any message."""
        before, after = _surroundings(self._renderer)
        if after and prompt[-len(after) :] == after:
            prompt = prompt[: -len(after)]
        start = next(
            (end for end in range(len(prompt), 0, -1) if before and _ends(prompt[:end], before)), 0
        )
        asked = prompt[start:][-TOKENS_PER_CHARACTER * SHOWN_PROMPT :]
        text = str(self._tokenizer.decode(asked)).strip()
        return repr(text if len(text) <= SHOWN_PROMPT else f"...{text[-SHOWN_PROMPT:]}")


def _examples(datums: Sequence[tinker.Datum]) -> list[_Example]:
    """The prompt of the last trained span of each datum, and the span."""
    found = []
    for datum in datums:
        sequence = from_datum(datum)
        trained = np.flatnonzero(sequence.loss_mask)
        if not len(trained):
            continue
        end = int(trained[-1]) + 1
        gaps = np.flatnonzero(~sequence.loss_mask[:end])
        start = int(gaps[-1]) + 1  # the first token is never trained
        if 1 < start <= MAX_PROMPT:
            tokens = sequence.tokens.tolist()
            found.append(_Example(tokens[:start], tokens[start:end]))
    return found


def _spread(examples: list[_Example], count: int) -> list[_Example]:
    """`count` of them, evenly over the whole."""
    picked = min(count, len(examples))
    return [examples[number * len(examples) // picked] for number in range(picked)]


def _surroundings(renderer: Renderer) -> tuple[list[int], list[int]]:
    """Tokens that stand right before and after what a user says, up to where the reply begins."""
    one, two = (
        renderer.build_generation_prompt([{"role": "user", "content": text}]).to_ints()
        for text in ("0", "1")
    )
    return _common_prefix(one, two)[-3:], _common_prefix(one[::-1], two[::-1])[::-1]


def _common_prefix(one: list[int], two: list[int]) -> list[int]:
    return [a for a, _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, two))]


def _ends(tokens: list[int], with_these: list[int]) -> bool:
    return tokens[-len(with_these) :] == with_these
