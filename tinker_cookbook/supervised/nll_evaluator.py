"""Evaluators of the NLL of held-out datums: for a training client and for a sampling client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import tinker

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.sequences import as_numpy, from_datum
from tinker_cookbook.supervised.common import compute_bpb, compute_mean_nll
from tinker_cookbook.supervised.types import SupervisedDataset
from tinker_cookbook.training.evaluators import SamplingClientEvaluator, TrainingClientEvaluator

if TYPE_CHECKING:
    from tinker_cookbook.sequences import Values
    from tinker_cookbook.service.api import SamplingClient, TrainingClient
    from tinker_cookbook.tokenizer_utils import Tokenizer

DATUMS_PER_REQUEST = 128  # keeps an HTTP request to a few megabytes


class _DatumEvaluator:
    """Base of both evaluators: the datums, the metric prefix, and a tokenizer (None: no bpb)."""

    def __init__(
        self,
        data: Sequence[tinker.Datum],
        name: str = "test",
        tokenizer: Tokenizer | None = None,
    ) -> None:
        self.data, self.name, self.tokenizer = _check_not_empty(data, name), name, tokenizer

    @classmethod
    def from_dataset(
        cls,
        dataset: SupervisedDataset,
        name: str = "test",
        tokenizer: Tokenizer | None = None,
    ) -> Self:
        return cls(all_datums(dataset), name, tokenizer)


class NLLEvaluator(_DatumEvaluator, TrainingClientEvaluator):
    """`{"<name>/nll", "<name>/bpb"}` of the current training weights, without saving a checkpoint.

    nll: `compute_mean_nll` with the datums' weights, like the training metric. bpb: only with a
    tokenizer.
    """

    async def __call__(self, client: TrainingClient, /) -> dict[str, float]:
        logprobs = await forward_logprobs(client, self.data)
        return _metrics(self.name, self.data, logprobs, self.tokenizer)


class SamplerNLLEvaluator(_DatumEvaluator, SamplingClientEvaluator):
    """The metrics of `NLLEvaluator` for a sampling client, by `compute_logprobs`."""

    async def __call__(self, client: SamplingClient, /) -> dict[str, float]:
        futures = [
            client.compute_logprobs(tinker.ModelInput.from_ints(from_datum(datum).tokens.tolist()))
            for datum in self.data
        ]
        # The first token has no logprob because nothing precedes it. Dropping it aligns the
        # logprobs with the datum's target tokens, which are shifted left by one.
        logprobs: list[Values] = [as_numpy(await future)[1:] for future in futures]
        return _metrics(self.name, self.data, logprobs, self.tokenizer)


async def forward_logprobs(
    client: TrainingClient, data: Sequence[tinker.Datum]
) -> list[np.ndarray]:
    """Logprobs of the targets under the client's weights, without a gradient; float64 arrays.

    Inputs that cross_entropy does not take, such as labels, are left out.
    """
    datums = [
        tinker.Datum(
            model_input=datum.model_input,
            loss_fn_inputs={
                key: value
                for key, value in datum.loss_fn_inputs.items()
                if key in ("target_tokens", "weights")
            },
        )
        for datum in data
    ]
    # Submit every request before awaiting any result, so that the engine never waits for us.
    futures = [
        client.forward(datums[start : start + DATUMS_PER_REQUEST], "cross_entropy")
        for start in range(0, len(datums), DATUMS_PER_REQUEST)
    ]
    outputs = [await future for future in futures]
    return [as_numpy(each["logprobs"]) for output in outputs for each in output.loss_fn_outputs]


def all_datums(dataset: SupervisedDataset) -> list[tinker.Datum]:
    """Every datum of every batch, in order. Our test sets are one batch, so none is dropped."""
    return [datum for index in range(len(dataset)) for datum in dataset.get_batch(index)]


def _check_not_empty(data: Sequence[tinker.Datum], name: str) -> list[tinker.Datum]:
    if not data:
        raise ConfigurationError(f"the evaluator {name!r} has no data: pass at least one datum")
    return list(data)


def _metrics(
    name: str,
    data: list[tinker.Datum],
    logprobs: Sequence[Values],
    tokenizer: Tokenizer | None,
) -> dict[str, float]:
    weights: list[Values] = [datum.loss_fn_inputs["weights"] for datum in data]
    targets: list[Values] = [datum.loss_fn_inputs["target_tokens"] for datum in data]
    metrics = {f"{name}/nll": compute_mean_nll(logprobs, weights)}
    if tokenizer is not None:
        metrics[f"{name}/bpb"] = compute_bpb(logprobs, weights, targets, tokenizer)
    return metrics
