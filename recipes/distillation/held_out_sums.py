"""The share of held-out sums that a supervised run gets right, measured as in RL."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import chz

from recipes.math_rl.arithmetic import Arithmetic
from tinker_cookbook.rl.metric_util import RLTestSetEvaluator
from tinker_cookbook.rl.transcripts import sample_rows
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.training.evaluators import SamplingClientEvaluator
from tinker_cookbook.training.fields import COUNT, CheckedConfig

if TYPE_CHECKING:
    from tinker_cookbook.service.api import SamplingClient
    from tinker_cookbook.utils.ml_log import Sample


@chz.chz
class HeldOutSums(CheckedConfig):
    """Builder of nano's evaluator in rl_basic: `test/env/all/correct` and others, for replies that
    are sampled at temperature 1."""

    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    max_tokens: int = chz.field(doc="maximum tokens per reply", metadata=COUNT)
    num_sums: int = chz.field(default=500, doc="held-out sums", metadata=COUNT)

    def __call__(self) -> HeldOutSumsEvaluator:
        return HeldOutSumsEvaluator(self)


class HeldOutSumsEvaluator(SamplingClientEvaluator):
    """`RLTestSetEvaluator` on a data set that can only be built asynchronously."""

    def __init__(self, config: HeldOutSums) -> None:
        self._config = config
        self._evaluator: RLTestSetEvaluator | None = None

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        if self._evaluator is None:
            self._evaluator = await self._make()
        return await self._evaluator(client)

    async def _make(self) -> RLTestSetEvaluator:
        config = self._config
        data = Arithmetic(
            model_name_for_tokenizer="nano",
            renderer_name=config.renderer_name,
            group_size=1,
            groups_per_batch=1,
            num_batches=1,
            test_size=config.num_sums,
            seed=0,
        )
        _, test = await data()
        assert test is not None  # num_sums is at least 1
        return RLTestSetEvaluator(test, config.max_tokens)

    def lines(self) -> list[str]:
        return [] if self._evaluator is None else self._evaluator.lines()

    def samples(self) -> dict[str, Iterable[Sample]]:
        if self._evaluator is None:
            return {}
        return {"test": sample_rows(self._evaluator.groups_P, get_tokenizer("nano"))}
