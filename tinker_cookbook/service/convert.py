"""SDK types <-> the engine's requests and results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from uuid import uuid4

import numpy as np
from tinker import types
from tinker.types.topk_logprobs import MASK_LOGPROB as EMPTY_LOGPROB
from tinker.types.topk_logprobs import TopkLogprobs

from tinker_cookbook.engine.requests import (
    AdamConfig,
    SampleRequest,
    SampleResult,
    TopK,
    TrainResult,
    TrainSequence,
)
from tinker_cookbook.exceptions import DataValidationError


def tokens_of(model_input: types.ModelInput, where: str) -> np.ndarray:
    """Token ids int64 [N]; anything but text is refused."""
    _expect(model_input, types.ModelInput, where)
    for index, chunk in enumerate(model_input.chunks):
        if chunk.type != "encoded_text":
            raise DataValidationError(
                f"{where}: chunk {index} is of type {chunk.type!r}; the engine reads text only"
            )
    return np.asarray(model_input.to_ints(), dtype=np.int64)


def train_sequences(data: Sequence[types.Datum]) -> list[TrainSequence]:
    """Datums as training rows; sparse tensors are filled up with zeros."""
    rows = []
    for where, datum in _named(data):
        inputs = {
            key: tensor.to_numpy().astype(np.float32)
            for key, tensor in datum.loss_fn_inputs.items()
            if key != "target_tokens"
        }
        rows.append(
            TrainSequence(tokens_of(datum.model_input, where), _targets(datum, where), inputs)
        )
    return rows


def custom_loss_sequences(data: Sequence[types.Datum]) -> list[TrainSequence]:
    """Datums for a custom loss, which reads everything but the targets by itself."""
    return [
        TrainSequence(tokens_of(datum.model_input, where), _targets(datum, where))
        for where, datum in _named(data)
    ]


def _named(data: Sequence[types.Datum]) -> Iterator[tuple[str, types.Datum]]:
    """Each datum with its name in errors."""
    if not isinstance(data, Sequence):
        raise DataValidationError(f"data is a {type(data).__name__}, not a list of tinker.Datum")
    for index, datum in enumerate(data):
        _expect(datum, types.Datum, f"datum {index}")
        yield f"datum {index}", datum


def _targets(datum: types.Datum, where: str) -> np.ndarray:
    """int64 [N] or [N, K]."""
    tensor = datum.loss_fn_inputs.get("target_tokens")
    if tensor is None:
        raise DataValidationError(f"{where}: loss_fn_inputs has no target_tokens")
    targets = tensor.to_numpy()
    if targets.dtype.kind not in "iu":  # which would be cut to the whole numbers below
        raise DataValidationError(
            f"{where}: target_tokens has dtype {targets.dtype}; token ids are whole numbers (int64)"
        )
    return targets.astype(np.int64)


def _expect(value: object, kind: type, where: str) -> None:
    if not isinstance(value, kind):
        raise DataValidationError(
            f"{where} is of type {type(value).__name__}; expected tinker.{kind.__name__}"
        )


def output_of(result: TrainResult) -> types.ForwardBackwardOutput:
    return types.ForwardBackwardOutput(
        loss_fn_output_type="ArrayRecord",
        loss_fn_outputs=[
            {"logprobs": types.TensorData.from_numpy(array)} for array in result.logprobs
        ],
        metrics=result.metrics,
    )


def adam_of(params: types.AdamParams) -> AdamConfig:
    return AdamConfig(
        learning_rate=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        grad_clip_norm=params.grad_clip_norm,
    )


def request_of(
    prompt: types.ModelInput,
    num_samples: int,
    params: types.SamplingParams,
    *,
    prompt_logprobs: bool = False,
    prompt_top_k: int = 0,
    sample_top_k: int = 0,
    prompt_targets: types.TensorData | None = None,
    prompt_temperature: float = 1.0,
) -> SampleRequest:
    """A sampling request.

    `stop=None` means the model's own end tokens, `stop=[]` none at all; `max_tokens=None` means as
    far as the context goes, and what the memory for keys and values holds.
    """
    tokens = tokens_of(prompt, "prompt")
    _expect(params, types.SamplingParams, "sampling_params")
    if prompt_targets is not None and not isinstance(prompt_targets, types.TensorData):
        kind = type(prompt_targets).__name__
        raise DataValidationError(f"target_prompt_logprobs is {kind}, not TensorData")
    stop_tokens, stop_strings = None, ()
    if params.stop is not None:
        stop = [params.stop] if isinstance(params.stop, str) else list(params.stop)
        stop_strings = tuple(item for item in stop if isinstance(item, str))
        stop_tokens = frozenset(item for item in stop if not isinstance(item, str))
        if "" in stop_strings:
            raise DataValidationError("stop holds an empty string, which would stop at once")
    return SampleRequest(
        prompt=tokens,
        max_tokens=params.max_tokens,
        num_samples=num_samples,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
        seed=params.seed,
        stop_tokens=stop_tokens,
        stop_strings=stop_strings,
        prompt_logprobs=prompt_logprobs,
        prompt_top_k=prompt_top_k,
        sample_top_k=sample_top_k,
        prompt_targets=None if prompt_targets is None else prompt_targets.to_numpy(),
        prompt_temperature=prompt_temperature,
    )


def response_of(result: SampleResult, last_n: int | None = None) -> types.SampleResponse:
    """`last_n`: prompt logprobs before the last n positions are left out (NaN)."""
    prompt_logprobs = result.prompt_logprobs
    if prompt_logprobs is not None and last_n is not None:
        prompt_logprobs = prompt_logprobs.copy()
        prompt_logprobs[: max(len(prompt_logprobs) - last_n, 0)] = np.nan
    return types.SampleResponse(
        sequences=[
            types.SampledSequence(
                stop_reason=sequence.stop_reason,
                sequence_id=uuid4().hex,
                tokens_np=np.asarray(sequence.tokens, dtype=np.int32),
                logprobs_np=np.asarray(sequence.logprobs, dtype=np.float32),
                topk_logprobs_np=_top_k(sequence.top_k),
            )
            for sequence in result.sequences
        ],
        prompt_logprobs_np=prompt_logprobs,
        topk_prompt_logprobs_np=_top_k([result.prompt_top_k], first=True)
        if result.prompt_top_k is not None
        else None,
        target_prompt_logprobs=types.TensorData.from_numpy(result.prompt_target_logprobs)
        if result.prompt_target_logprobs is not None
        else None,
    )


def _top_k(parts: Sequence[TopK], first: bool = False) -> TopkLogprobs | None:
    """Positions one behind the other; `first`: behind one that nothing precedes, left empty."""
    if not parts:
        return None
    tokens, logprobs = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("tokens", "logprobs")
    )
    if first:
        tokens = np.pad(tokens, ((1, 0), (0, 0)))
        logprobs = np.pad(logprobs, ((1, 0), (0, 0)), constant_values=EMPTY_LOGPROB)
    return TopkLogprobs(token_ids=tokens, logprobs=logprobs)
