"""Notice a wrong renderer by the loss of the first step, compared with the recommended renderer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import chz
import numpy as np
import tinker

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, TinkerCookbookError
from tinker_cookbook.sequences import as_numpy
from tinker_cookbook.supervised.datasets import epoch_seed
from tinker_cookbook.supervised.nll_evaluator import forward_logprobs
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDatasetBuilder

if TYPE_CHECKING:
    from tinker_cookbook.service.api import TrainingClient

# Nats per trained token by which the recommended renderer must be better. SmolLM2-135M-Instruct on
# Alpaca and oasst: 0.40 and 0.29 with qwen3, 0.19 and 0.12 with role_colon, 0.01 and 0.08 with
# qwen3_instruct, which differs from its template by the default system prompt alone.
MARGIN = 0.15
NUM_COMPARED = 8  # examples


@dataclass(frozen=True)
class RendererCheck:
    """The check of a run whose renderer is not among those that fit its chat model.

    recommended: the renderer that follows the model's own chat template. seed: that of the config.
    """

    data: ChatDatasetBuilder
    model_name: str
    renderer_name: str
    recommended: str
    seed: int

    async def line(
        self,
        client: TrainingClient,
        batch: Sequence[tinker.Datum],
        logprobs: Sequence[np.ndarray],
    ) -> str | None:
        """The line to print if the renderer looks wrong, else None.

        batch, logprobs: the first batch and the logprobs of its targets. To be called before
        the first optim_step is submitted, so that the same weights compute both losses. Costs a
        forward of NUM_COMPARED examples, and the time to render the data again.
        """
        if any(values.ndim > 1 for values in logprobs):
            return None  # an objective of its own, with several targets at each position
        try:
            examples = self._examples_as_recommended()
        except TinkerCookbookError:
            return None  # that renderer cannot write the data: there is nothing to compare with
        fitting_nll = _mean_nll(examples, await forward_logprobs(client, examples))
        nll = _mean_nll(batch[:NUM_COMPARED], logprobs)
        if not nll - fitting_nll > MARGIN:
            return None
        return (
            f"the first training loss is {nll:.2f} nats per token with"
            f" renderer_name={self.renderer_name}, but {fitting_nll:.2f} with"
            f" renderer_name={self.recommended}: unless the model is to learn this format, set"
            f" renderer_name={self.recommended}, and look at both with `python -m"
            f" tinker_cookbook.renderers.show model_name={self.model_name} renderer_name=...`"
        )

    def _examples_as_recommended(self) -> list[tinker.Datum]:
        """The first examples of batch 0 with the recommended renderer: the same conversations,
        unless one of the renderers splits or skips some."""
        common = chz.replace(self.data.config, renderer_name=self.recommended)
        train, _ = chz.replace(self.data, common_config=common)()
        train.set_epoch(epoch_seed(self.seed, 0))
        return train.get_batch(0)[:NUM_COMPARED]


def make_renderer_check(
    data: SupervisedDatasetBuilder, model_name: str, renderer_name: str, seed: int
) -> RendererCheck | None:
    """The check for a run; None if its renderer fits, the model is a base model or unknown, or the
    data is not rendered from conversations by `common_config`."""
    try:
        info = models.lookup(model_name)
    except ConfigurationError:
        return None
    if not (info.is_chat and info.renderers) or renderer_name in (*info.renderers, "template"):
        return None
    if not isinstance(data, ChatDatasetBuilder) or data.common_config is None:
        return None
    return RendererCheck(data, model_name, renderer_name, info.renderers[0], seed)


def _mean_nll(data: Sequence[tinker.Datum], logprobs: Sequence[np.ndarray]) -> float:
    """Mean NLL in nats of the trained tokens, each with weight 1; `logprobs` may be longer."""
    trained = np.concatenate(
        [
            values[as_numpy(datum.loss_fn_inputs["weights"]) != 0]
            for datum, values in zip(data, logprobs)
        ]
    )
    return -float(trained.mean()) if len(trained) else math.nan
