"""The engine's requests and results: frozen dataclasses of arrays and plain values.

A request refers to its run or weights by id only, so it can be pickled: recorded and replayed,
broadcast to other processes, sent to a sampler elsewhere. The one exception is the function of
`ForwardBackwardCustom`, which must live in the engine's process.

Shapes: N tokens of a sequence, P tokens of a prompt, K targets per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Literal, TypeVar

import numpy as np

from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.exceptions import DataValidationError

if TYPE_CHECKING:
    import torch

R = TypeVar("R", covariant=True)
StopReason = Literal["stop", "length"]
# Below this, logits / temperature is so large that fp32 has too few digits left for a softmax.
MIN_TEMPERATURE = 1e-4
# Logprobs of each sequence, in the order of the request -> scalar loss, metrics
CustomLoss = Callable[[list["torch.Tensor"]], tuple["torch.Tensor", dict[str, float]]]


@dataclass(frozen=True)
class Request(Generic[R]):
    """A request to the engine whose result is an R.

    Requests of one `lane` are executed in the order in which they were submitted.
    """

    @property
    def lane(self) -> str:
        raise NotImplementedError


def run_lane(id: str) -> str:
    return f"run {id}"


def weights_lane(id: str) -> str:
    return f"weights {id}"


# -- weights


@dataclass(frozen=True)
class BaseWeights:
    """A base model without an adapter. model: hub name or path."""

    model: str
    id: str


@dataclass(frozen=True)
class SnapshotWeights:
    """Weights that a `Snapshot` of a run left in the engine's memory."""

    model: str
    id: str


@dataclass(frozen=True)
class CheckpointWeights:
    """The files of an adapter. foreign: written by PEFT, not by this engine."""

    model: str
    id: str
    directory: str
    foreign: bool = False


# A reference to weights to sample from, never the tensors: each sampler loads them in its own form.
# The caller chooses a unique `id`; the same files loaded under two ids are two sets of weights.
WeightsRef = BaseWeights | SnapshotWeights | CheckpointWeights


# -- runs


@dataclass(frozen=True)
class ModelFacts:
    """Facts about a model from its config.json and generation_config.json."""

    model_type: str
    context_length: int  # tokens
    vocab_size: int
    num_layers: int
    eos_tokens: frozenset[int]  # end a sample if the caller gives no stop condition
    tied: bool  # whether embedding and unembedding share weights


@dataclass(frozen=True)
class RunFacts:
    """Facts about a new run. computation: lines on CPU threads, precision and size of passes."""

    model: ModelFacts
    spec: LoraSpec
    computation: list[str]


@dataclass(frozen=True)
class RunRequest(Request[R]):
    """A request about one run."""

    run: str

    @property
    def lane(self) -> str:
        return run_lane(self.run)


@dataclass(frozen=True)
class CreateRun(RunRequest[RunFacts]):
    """Create a run: a fresh adapter with `spec`, or the adapter and spec of a checkpoint.

    optimizer: also load the optimizer state, to resume exactly.
    """

    model: str
    spec: LoraSpec | None = None
    weights: CheckpointWeights | None = None
    optimizer: bool = False


@dataclass(frozen=True)
class DropRun(RunRequest[None]):
    """Free a run."""


@dataclass(frozen=True)
class TrainSequence:
    """One sequence of a training batch, already shifted: `tokens[: i + 1]` predict `targets[i]`."""

    tokens: np.ndarray  # int64 [N], the model's input
    targets: np.ndarray  # int64 [N], or [N, K] with K targets per position
    # loss inputs by name (weights, advantages, ...), float32, shaped like targets
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class TrainResult:
    """The result of forward and forward_backward, in the order of the sequences."""

    logprobs: list[np.ndarray]  # float32, each shaped like its sequence's targets
    metrics: dict[str, float]  # named "name:reduction": "loss:sum", or those of a custom loss


@dataclass(frozen=True)
class Train(RunRequest[TrainResult]):
    """A pass over sequences with a loss, given by its name and configuration."""

    sequences: Sequence[TrainSequence]
    loss_fn: str
    loss_config: Mapping[str, float | str] | None = None


@dataclass(frozen=True)
class Forward(Train):
    """Logprobs of the targets and the loss, without a gradient."""


@dataclass(frozen=True)
class ForwardBackward(Train):
    """As `Forward`, and add the gradient of the summed loss to the run's."""


@dataclass(frozen=True)
class ForwardBackwardCustom(RunRequest[TrainResult]):
    """As `ForwardBackward`, with any differentiable function of all sequences' logprobs."""

    sequences: Sequence[TrainSequence]
    function: CustomLoss


@dataclass(frozen=True)
class AdamConfig:
    """AdamW, with decoupled weight decay (Loshchilov & Hutter 2019, arXiv 1711.05101).

    grad_clip_norm: maximum global L2 norm of the gradient; 0: no clipping. The defaults are those
    of the SDK's AdamParams; training loops have their own in `training.config`.
    """

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        for key in ("learning_rate", "eps", "weight_decay", "grad_clip_norm"):
            value = getattr(self, key)
            if not (math.isfinite(value) and value >= 0):
                raise DataValidationError(f"adam {key}={value} must be finite and at least 0")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise DataValidationError(f"adam {key}={getattr(self, key)} must be in [0, 1)")


@dataclass(frozen=True)
class OptimStep(RunRequest[dict[str, float]]):
    """One optimizer step with the accumulated gradient. Returns {"grad_norm": before clipping}."""

    adam: AdamConfig


@dataclass(frozen=True)
class Save(RunRequest[None]):
    """Write the adapter into an existing directory, in PEFT's layout.

    base_model: its name in the files. optimizer: also write everything that the next optimizer step
    depends on.
    """

    directory: str
    base_model: str
    optimizer: bool


@dataclass(frozen=True)
class Load(RunRequest[None]):
    """Load the weights of a checkpoint into a run.

    optimizer: also load the optimizer state; otherwise it is reset.
    """

    weights: CheckpointWeights
    optimizer: bool


@dataclass(frozen=True)
class Snapshot(RunRequest[None]):
    """Copy a run's current weights, to sample from; later steps do not change the copy."""

    weights: SnapshotWeights


# -- sampling


@dataclass(frozen=True)
class WeightsRequest(Request[R]):
    """A request about weights to sample from."""

    weights: WeightsRef

    @property
    def lane(self) -> str:
        return weights_lane(self.weights.id)


@dataclass(frozen=True)
class LoadWeights(WeightsRequest[None]):
    """Load the weights of a checkpoint or a base model, to sample from."""


@dataclass(frozen=True)
class DropWeights(Request[None]):
    """Free weights to sample from."""

    id: str

    @property
    def lane(self) -> str:
        return weights_lane(self.id)


@dataclass(frozen=True)
class SampleRequest:
    """`num_samples` completions of one prompt.

    temperature 0 is greedy decoding. Stop tokens and strings are part of the sampled sequence.
    `max_tokens=0` only scores the prompt: every sample is empty, with stop reason "length". A seed
    fixes the random numbers of every sample. Prompt logprobs are at `prompt_temperature`, whatever
    the sampling temperature is.
    """

    prompt: np.ndarray  # int64 [P]
    max_tokens: int | None  # None: as many as the context and the KV cache allow
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = -1  # -1: all
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: frozenset[int] | None = frozenset()  # None: the model's own
    stop_strings: tuple[str, ...] = ()
    prompt_temperature: float = 1.0
    prompt_logprobs: bool = False
    prompt_top_k: int = 0  # most likely tokens to report at each prompt position
    sample_top_k: int = 0  # ... and at each sampled position
    # int64 [P-1, K]: tokens to score at positions 1..P-1; -1 is padding, with a logprob of 0
    prompt_targets: np.ndarray | None = None


@dataclass(frozen=True)
class TopK:
    """The k most likely tokens at each of several positions, in descending order."""

    tokens: np.ndarray  # int32 [positions, k]
    logprobs: np.ndarray  # float32 [positions, k]


@dataclass
class SampledTokens:
    tokens: list[int]
    logprobs: list[float]
    stop_reason: StopReason
    top_k: list[TopK] = field(default_factory=list)  # one position each


@dataclass
class SampleResult:
    """Sampled sequences and, if requested, logprobs of the prompt at `prompt_temperature`."""

    sequences: list[SampledTokens]
    prompt_logprobs: np.ndarray | None = None  # float32 [P], NaN at position 0
    prompt_top_k: TopK | None = None  # of positions 1..P-1
    prompt_target_logprobs: np.ndarray | None = None  # float32 [P-1, K]


@dataclass(frozen=True)
class Sample(WeightsRequest[SampleResult]):
    """Sample completions of one prompt, or only score it (`max_tokens=0`)."""

    request: SampleRequest


OnDone = Callable[[SampleResult | Exception], None]
OnToken = Callable[[int, int, float], None]  # index of the sample, its next token, its logprob
Cancelled = Callable[[], bool]  # whether the caller no longer waits for the result
