"""Logprobs of replies under the reference model: the weights before training."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
import tinker

from tinker_cookbook.exceptions import TrainingError
from tinker_cookbook.sequences import as_numpy, from_datum
from tinker_cookbook.supervised.nll_evaluator import forward_logprobs
from tinker_cookbook.utils import jsonl

if TYPE_CHECKING:
    from tinker_cookbook.service.api import ServiceClient, TrainingClient

FILE_NAME = "reference_logprobs.jsonl"


class ReferenceKeys(Protocol):
    """The config keys that define the reference model."""

    @property
    def model_name(self) -> str: ...
    @property
    def load_checkpoint_path(self) -> str | None: ...


class ReferenceLogprobs:
    """The sum of weight * logprob over the target tokens of datums, under the reference model.

    Each datum is scored once per run: the values are stored in the run directory by a digest of
    tokens and weights, so a resumed run keeps those that it has. They are computed by the forward
    pass of training, not by a sampler, so before the first step they equal the policy's.
    """

    def __init__(self, service: ServiceClient, config: ReferenceKeys, log_path: Path) -> None:
        self._service, self._config = service, config
        self._client: TrainingClient | None = None
        self._file = log_path / FILE_NAME
        self._values: dict[str, float] = {}
        # The first line names the model: a run directory may be used again with another one.
        model = {"model": f"{config.model_name} {config.load_checkpoint_path}"}
        stored = [line.value for line in jsonl.read_lines(self._file)]
        if stored[:1] == [model]:
            for values in stored[1:]:
                self._values |= values
        else:
            jsonl.write_lines(self._file, [model])

    async def compute(self, data: Sequence[tinker.Datum]) -> None:
        """Score the datums that were not scored before."""
        digests = map(_digest, data)
        missing = {key: datum for key, datum in zip(digests, data) if key not in self._values}
        if not missing:
            return
        client = await self._reference_client()
        logprobs = await forward_logprobs(client, list(missing.values()))
        new = {
            key: weighted_sum(datum, values)
            for (key, datum), values in zip(missing.items(), logprobs, strict=True)
        }
        if not all(map(math.isfinite, new.values())):
            raise TrainingError("the reference model gives a reply a logprob that is not finite")
        jsonl.append_line(self._file, new)
        self._values |= new

    def values(self, data: Sequence[tinker.Datum]) -> np.ndarray:
        """The values of datums that `compute` has scored, float64 [D]."""
        return np.array([self._values[_digest(datum)] for datum in data])

    async def _reference_client(self) -> TrainingClient:
        """A client with the weights at step 0, for a resumed run as well; never trained."""
        if self._client is None:
            config, metadata = self._config, {"recipe": "reference"}
            if config.load_checkpoint_path is not None:
                self._client = await self._service.create_training_client_from_state(
                    config.load_checkpoint_path, config.model_name, user_metadata=metadata
                )
            else:
                # A new adapter changes nothing, because its B is 0: the smallest one will do.
                self._client = await self._service.create_lora_training_client(
                    config.model_name,
                    rank=1,
                    seed=0,
                    train_mlp=False,
                    train_unembed=False,
                    user_metadata=metadata,
                )
        return self._client


def weighted_sum(datum: tinker.Datum, logprobs: np.ndarray) -> float:
    """Sum of weight * logprob over the target tokens in float64; untrained tokens may be NaN."""
    weights = as_numpy(datum.loss_fn_inputs["weights"])
    trained = weights != 0
    return float(np.dot(weights[trained], logprobs[trained]))


def _digest(datum: tinker.Datum) -> str:
    sequence = from_datum(datum)
    return hashlib.sha256(sequence.tokens.tobytes() + sequence.weights.tobytes()).hexdigest()[:32]
