"""Win rate of a policy in training against a fixed model, by one or more judges."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import chz

from tinker_cookbook import models
from tinker_cookbook.completers import TinkerMessageCompleter, derive_seed
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.preference.comparison_datasets import (
    ComparisonDatasetBuilder,
    read_comparisons,
)
from tinker_cookbook.preference.comparison_policy_evaluator import compute_win_rate
from tinker_cookbook.preference.types import (
    Comparison,
    LabeledComparison,
    PreferenceModel,
    PreferenceModelBuilder,
)
from tinker_cookbook.renderers import Message, Renderer, get_renderer, get_text_content
from tinker_cookbook.service import connect, locate_checkpoint
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import SamplingClientEvaluator
from tinker_cookbook.training.fields import COUNT, NON_NEGATIVE, SEED, CheckedConfig
from tinker_cookbook.utils.misc_utils import counted
from tinker_cookbook.utils.threads import in_thread

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient

NUM_PRINTED = 2


@chz.chz
class WinRate(CheckedConfig):
    """Builder of a WinRateEvaluator, on the prompts of comparisons.

    Prompts that leave no room for a reply in the model's context are left out.
    """

    model_name: str = chz.field(doc="base model of policy and baseline")
    renderer_name: str = chz.field(doc="renderer of policy and baseline")
    comparison_builder: ComparisonDatasetBuilder = chz.field(
        doc="comparisons; the prompts of the test split are used"
    )
    judges: Mapping[str, PreferenceModelBuilder] = chz.field(
        doc="preference models by the name of their metric"
    )
    baseline_path: str | None = chz.field(
        default=None,
        doc="weights of the baseline: tinker://.../sampler_weights/..., a run directory or a PEFT"
        " adapter directory (None: the base model)",
    )
    max_tokens: int = chz.field(default=64, doc="maximum tokens per reply", metadata=COUNT)
    temperature: float = chz.field(
        default=1.0, doc="sampling temperature of policy and baseline", metadata=NON_NEGATIVE
    )
    num_prompts: int = chz.field(default=128, doc="prompts to reply to", metadata=COUNT)
    seed: int = chz.field(default=0, doc="seed of the replies", metadata=SEED)
    base_url: str | None = chz.field(
        default=None, doc="Tinker API server URL (None: where the run's policy is)"
    )

    @chz.validate
    def _check_judges(self) -> None:
        if not self.judges:
            raise ConfigurationError(
                "judges={}: a win rate needs a judge, e.g. judges={'name': RewardModelBuilder(...)}"
            )

    def __call__(self) -> WinRateEvaluator:
        return WinRateEvaluator(self, self._prompts())

    def _prompts(self) -> list[list[Message]]:
        test = self.comparison_builder.open_splits()[1]
        if test is None:
            return []
        renderer, window = self.renderer(), models.context_length(self.model_name)

        def leaves_room(labeled: LabeledComparison) -> bool:
            prompt = renderer.build_generation_prompt(labeled.comparison.prompt_conversation)
            return window is None or prompt.length < window

        labeled = read_comparisons(test, self.num_prompts, leaves_room)
        return [each.comparison.prompt_conversation for each in labeled]

    def renderer(self) -> Renderer:
        tokenizer = get_tokenizer(self.model_name)
        return get_renderer(self.renderer_name, tokenizer, model_name=self.model_name)

    def completer(self, client: SamplingClient) -> TinkerMessageCompleter:
        return TinkerMessageCompleter(
            client,
            self.renderer(),
            self.max_tokens,
            temperature=self.temperature,
            context_window=models.context_length(self.model_name),
        )

    async def baseline(self) -> TinkerMessageCompleter:
        path = self.baseline_path
        if path is not None:
            path = locate_checkpoint(path, "sampler_weights", "baseline_path", self.base_url)
        client = await connect(self.base_url).create_sampling_client(
            model_path=path, base_model=self.model_name
        )
        return self.completer(client)


class WinRateEvaluator(SamplingClientEvaluator):
    """`win_rate/<judge>`, from 0 to 1 with ties as a half, and its standard error
    `win_rate/<judge>/stderr`. Each pair of replies is judged in both orders, by the text of the
    replies without reasoning and tool calls.

    The baseline replies once, and again in a resumed run, with the same seeds. Policy and baseline
    use the same random numbers: equal weights give equal replies, a win rate of exactly 0.5. No
    metric without a prompt.
    """

    def __init__(self, config: WinRate, prompts: Sequence[list[Message]]) -> None:
        self._config, self._prompts = config, prompts
        self._baseline: list[Comparison] | None = None
        self._judges: dict[str, PreferenceModel] = {}
        self._lines: list[str] = []

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        config = self._config
        if not self._prompts:
            return {}
        if self._baseline is None:
            # in a thread, since loading a model blocks
            self._judges = {name: await in_thread(build) for name, build in config.judges.items()}
            replies = await self._replies(await config.baseline())
            self._baseline = [
                Comparison(prompt, [reply], []) for prompt, reply in zip(self._prompts, replies)
            ]
        replies = await self._replies(config.completer(client))
        pairs = [
            replace(pair, completion_B=[reply]) for pair, reply in zip(self._baseline, replies)
        ]
        metrics: dict[str, float] = {}
        rates = []
        for name, judge in self._judges.items():
            rate, stderr = await compute_win_rate(judge, pairs)
            metrics |= {f"win_rate/{name}": rate, f"win_rate/{name}/stderr": stderr}
            rates.append(f"{rate:.3f} ± {stderr:.3f} ({name})")
        examples = [
            f"  {_last_text(pair.prompt_conversation)} -> {_last_text(pair.completion_B)}"
            f" (baseline: {_last_text(pair.completion_A)})"
            for pair in pairs[:NUM_PRINTED]
        ]
        prompts = counted(len(pairs), "prompt")
        self._lines = [
            f"win rate against {config.baseline_path or config.model_name} on {prompts}:"
            f" {', '.join(rates)}",
            *examples,
        ]
        return metrics

    async def _replies(self, policy: TinkerMessageCompleter) -> list[Message]:
        seeds = (derive_seed(self._config.seed, index) for index in range(len(self._prompts)))
        replies = await asyncio.gather(
            *(policy.seeded(seed)(prompt) for seed, prompt in zip(seeds, self._prompts))
        )
        # without reasoning, as in training (`preference/envs.py`)
        return [Message(role="assistant", content=get_text_content(reply)) for reply in replies]

    def lines(self) -> list[str]:
        return self._lines


def _last_text(messages: Sequence[Message]) -> str:
    text = get_text_content(messages[-1]).strip()
    return repr(text if len(text) <= 100 else f"{text[:100]}...")
