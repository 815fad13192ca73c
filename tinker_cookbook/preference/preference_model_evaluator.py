"""How often a preference model in training agrees with held-out comparisons."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import chz
import numpy as np

from tinker_cookbook.preference.comparison_datasets import (
    DatasetBuilderFromComparisons,
    read_comparisons,
)
from tinker_cookbook.preference.types import LabeledComparison, PreferenceModel
from tinker_cookbook.renderers import Renderer
from tinker_cookbook.service.api import SamplingClient
from tinker_cookbook.training.evaluators import SamplingClientEvaluator
from tinker_cookbook.training.fields import COUNT, CheckedConfig

MakePreferenceModel = Callable[[Renderer, SamplingClient], PreferenceModel]


class PreferenceAccuracyEvaluator(SamplingClientEvaluator):
    """`test/preference_accuracy`: share of verdicts that prefer the chosen reply, over both orders
    of each comparison, with ties as a half. `test/order_consistency`: share of comparisons with the
    same preference in both orders. Ties among the comparisons are left out. No metric without a
    comparison."""

    def __init__(
        self,
        make_model: MakePreferenceModel,
        renderer: Renderer,
        labeled: Sequence[LabeledComparison],
    ) -> None:
        self._make_model, self._renderer = make_model, renderer
        self._labeled = [each for each in labeled if each.label != "Tie"]

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        if not self._labeled:
            return {}
        model = self._make_model(self._renderer, client)
        sides = [-1.0 if each.label == "A" else 1.0 for each in self._labeled]
        forward = await _verdicts(model, self._labeled)
        swapped = await _verdicts(model, [each.swap() for each in self._labeled])
        # the chosen reply's share, once with the labels as they are and once with them exchanged
        agreement = [np.sign(forward) * sides, -np.sign(swapped) * sides]
        return {
            "test/preference_accuracy": float((np.mean(agreement) + 1) / 2),
            "test/order_consistency": float(np.mean(agreement[0] * agreement[1] > 0)),
        }


async def _verdicts(model: PreferenceModel, labeled: Sequence[LabeledComparison]) -> np.ndarray:
    return np.array(await asyncio.gather(*(model(each.comparison) for each in labeled)))


@chz.chz
class PreferenceAccuracy(CheckedConfig):
    """Builder of a PreferenceAccuracyEvaluator on the test split of a preference model's data.

    Comparisons that training would skip, e.g. those longer than max_length, are left out.
    """

    data: DatasetBuilderFromComparisons = chz.field(doc="training data of the preference model")
    make_model: MakePreferenceModel = chz.field(
        doc="class of the preference model, e.g. RewardModel"
    )
    num_comparisons: int = chz.field(
        default=256, doc="comparisons to judge, the first ones of the test split", metadata=COUNT
    )

    def __call__(self) -> PreferenceAccuracyEvaluator:
        test = self.data.comparison_builder.open_splits()[1]
        labeled: list[LabeledComparison] = []
        if test is not None:
            render = self.data.make_render()
            labeled = read_comparisons(
                test, self.num_comparisons, lambda each: bool(render(each).datums)
            )
        return PreferenceAccuracyEvaluator(self.make_model, self.data.renderer, labeled)
