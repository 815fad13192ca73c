"""How often a model's sampled replies to sums have what nano's pairs prefer."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Literal

import chz
import tinker

from tinker_cookbook.completers import derive_seed
from tinker_cookbook.nano import tasks
from tinker_cookbook.preference.types import Comparison, PreferenceModel, PreferenceModelBuilder
from tinker_cookbook.renderers import get_renderer, get_text_content
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import SamplingClientEvaluator
from tinker_cookbook.training.fields import COUNT, SEED, CheckedConfig

if TYPE_CHECKING:
    from tinker_cookbook.renderers import Renderer
    from tinker_cookbook.service.api import SamplingClient

Preference = Literal["polite", "short", "correct"]
MAX_TOKENS = 64
NUM_PRINTED = 3


def has_style(reply: str, preference: Preference, answer: int) -> bool:
    """Whether a reply is of the kind that the pairs of a preference choose."""
    if preference == "polite":
        return tasks.is_polite(reply)
    if preference == "short":
        return reply.strip().isdecimal()
    return tasks.last_integer(reply) == answer


class StyleJudge(PreferenceModel):
    """Prefers the reply that has the style, by the rule that made nano's pairs."""

    def __init__(self, preference: Preference) -> None:
        self.preference: Preference = preference

    async def __call__(self, comparison: Comparison) -> float:
        question = get_text_content(comparison.prompt_conversation[-1])
        answer = sum(map(int, re.findall(r"\d+", question)))
        first, second = (
            has_style(get_text_content(completion[-1]), self.preference, answer)
            for completion in (comparison.completion_A, comparison.completion_B)
        )
        return float(second - first)


@chz.chz
class StyleJudgeBuilder(PreferenceModelBuilder):
    """Builder of a StyleJudge."""

    preference: Preference = chz.field(doc="the kind of reply that is preferred")

    def __call__(self) -> StyleJudge:
        return StyleJudge(self.preference)


class SampledStyleEvaluator(SamplingClientEvaluator):
    """`sampled/<preference>`: the rate of replies of the preferred kind, sampled at temperature 1,
    to sums that are never trained. `sampled/right`: of replies with the right number."""

    def __init__(
        self, renderer: Renderer, preference: Preference, num_prompts: int, seed: int
    ) -> None:
        self._renderer, self._seed = renderer, seed
        self._preference: Preference = preference
        rng = random.Random(seed)
        self._problems = [
            tasks.add_problem(rng, "held_out", phrasing=None) for _ in range(num_prompts)
        ]
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        stop = self._renderer.get_stop_sequences()
        futures = [
            client.sample(
                self._renderer.build_generation_prompt(
                    [{"role": m["role"], "content": m["content"]} for m in problem["messages"]]
                ),
                1,
                tinker.SamplingParams(
                    max_tokens=MAX_TOKENS, seed=derive_seed(self._seed, index), stop=stop
                ),
            )
            for index, problem in enumerate(self._problems)
        ]
        num_preferred = num_right = 0
        printed: list[str] = []
        for problem, future in zip(self._problems, futures):
            message, _ = self._renderer.parse_response((await future).sequences[0].tokens)
            reply = get_text_content(message)
            num_preferred += has_style(reply, self._preference, problem["answer"])
            num_right += tasks.last_integer(reply) == problem["answer"]
            if len(printed) < NUM_PRINTED:
                printed.append(f"  {problem['messages'][-1]['content']!r} -> {reply.strip()!r}")
        count = len(futures)
        self._lines = [
            f"{num_preferred} of {count} sampled replies are {self._preference}, {num_right} have"
            " the right number, e.g.",
            *printed,
        ]
        return {
            f"sampled/{self._preference}": num_preferred / count,
            "sampled/right": num_right / count,
        }

    def lines(self) -> list[str]:
        return self._lines


@chz.chz
class SampledStyle(CheckedConfig):
    """Builder of a SampledStyleEvaluator."""

    model_name: str = chz.field(doc="model whose tokenizer is used")
    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    preference: Preference = chz.field(doc="the kind of reply to count")
    num_prompts: int = chz.field(default=128, doc="held-out sums to reply to", metadata=COUNT)
    seed: int = chz.field(default=0, doc="seed of sums and replies", metadata=SEED)

    def __call__(self) -> SampledStyleEvaluator:
        tokenizer = get_tokenizer(self.model_name)
        renderer = get_renderer(self.renderer_name, tokenizer, model_name=self.model_name)
        return SampledStyleEvaluator(renderer, self.preference, self.num_prompts, self.seed)
