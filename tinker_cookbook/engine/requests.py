"""Everything that can be asked of the engine, and every answer: arrays and plain values.

A request knows its run or its weights by name alone, so it can be pickled: recorded and played
again, broadcast to other processes, sent to a sampler elsewhere. The one exception is the function
of `ForwardBackwardCustom`, which has to be in the engine's process.

N is the number of tokens of a row, P that of a prompt.
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
LOWEST_TEMPERATURE = 1e-4  # below, logits / temperature leave too few digits of fp32 for a softmax
# logprobs of each row, in the order of the request -> loss (a scalar), metrics
CustomLoss = Callable[[list["torch.Tensor"]], tuple["torch.Tensor", dict[str, float]]]


@dataclass(frozen=True)
class Request(Generic[R]):
    """What the engine is asked to do; its answer is an R.

    Requests of one `lane` are carried out in the order in which they were given.
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
    """A base model alone, by the name or path that it is loaded by."""

    model: str
    id: str


@dataclass(frozen=True)
class SnapshotWeights:
    """What a `Snapshot` of a run left in the engine's memory."""

    model: str
    id: str


@dataclass(frozen=True)
class CheckpointWeights:
    """The files of an adapter. foreign: PEFT wrote them, not this engine."""

    model: str
    id: str
    directory: str
    foreign: bool = False


# Weights to sample from, which each sampler turns into what it needs. Whoever asks for them gives
# them an `id` of their own: the same files, loaded twice, are two.
WeightsRef = BaseWeights | SnapshotWeights | CheckpointWeights


# -- runs


@dataclass(frozen=True)
class ModelFacts:
    """What config.json and generation_config.json say of a model."""

    model_type: str
    context_length: int  # tokens
    vocab_size: int
    num_layers: int
    eos_tokens: frozenset[int]  # end a text where the caller names no stop
    tied: bool  # the unembedding is the embedding


@dataclass(frozen=True)
class RunFacts:
    """A run as it begins. threads: how many CPU threads compute it, and why; None on a GPU."""

    model: ModelFacts
    spec: LoraSpec
    threads: str | None


@dataclass(frozen=True)
class OfRun(Request[R]):
    """A request about one run."""

    run: str

    @property
    def lane(self) -> str:
        return run_lane(self.run)


@dataclass(frozen=True)
class CreateRun(OfRun[RunFacts]):
    """A fresh adapter on a model; or the one of a checkpoint, with its spec.

    optimizer: also take over the optimizer's state, to go on exactly where it was saved.
    """

    model: str
    spec: LoraSpec | None = None
    weights: CheckpointWeights | None = None
    optimizer: bool = False


@dataclass(frozen=True)
class DropRun(OfRun[None]):
    """Nobody will ask for this run again."""


@dataclass(frozen=True)
class TrainSequence:
    """One sequence of a training batch, already shifted: position i predicts `targets[i]`."""

    tokens: np.ndarray  # int64 [N], what the model reads
    targets: np.ndarray  # int64 [N], or [N, K] where each position has K targets
    inputs: Mapping[str, np.ndarray] = field(default_factory=dict)  # float32, shaped like targets

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class TrainResult:
    """What forward and forward_backward return, in the order of the rows."""

    logprobs: list[np.ndarray]  # float32 per row, shaped like its targets, before any update
    metrics: dict[str, float]  # "name:reduction"; "loss:sum", or a custom loss's own


@dataclass(frozen=True)
class Train(OfRun[TrainResult]):
    """Rows through the model, and a loss on them by its name and its configuration."""

    rows: Sequence[TrainSequence]
    loss_fn: str
    loss_config: Mapping[str, float | str] | None = None


@dataclass(frozen=True)
class Forward(Train):
    """Logprobs of the targets and the loss, without any gradient."""


@dataclass(frozen=True)
class ForwardBackward(Train):
    """As `Forward`, and the gradient of the summed loss is added to the run's."""


@dataclass(frozen=True)
class ForwardBackwardCustom(OfRun[TrainResult]):
    """As `ForwardBackward`, with any differentiable function of the logprobs of all rows."""

    rows: Sequence[TrainSequence]
    function: CustomLoss


@dataclass(frozen=True)
class AdamConfig:
    """AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101): decay is decoupled.

    `grad_clip_norm` bounds the global L2 norm of the gradient; 0 does not clip. The defaults are
    those of the SDK's AdamParams; loops have theirs in `training.config`.
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
                raise DataValidationError(f"adam {key}={value} must be finite and not negative")
        for key in ("beta1", "beta2"):
            if not 0 <= getattr(self, key) < 1:
                raise DataValidationError(f"adam {key}={getattr(self, key)} must be in [0, 1)")


@dataclass(frozen=True)
class OptimStep(OfRun[dict[str, float]]):
    """One optimizer step with the accumulated gradient; the answer holds its `grad_norm`."""

    adam: AdamConfig


@dataclass(frozen=True)
class Save(OfRun[None]):
    """Write the adapter into a directory that is there, in PEFT's layout.

    base_model: what the files call it. optimizer: with all that the next optimizer step depends on.
    """

    directory: str
    base_model: str
    optimizer: bool


@dataclass(frozen=True)
class Load(OfRun[None]):
    """Take over the weights of a checkpoint; the optimizer's state too, or it starts anew."""

    weights: CheckpointWeights
    optimizer: bool


@dataclass(frozen=True)
class Snapshot(OfRun[None]):
    """Keep the weights as they are now, to sample from."""

    weights: SnapshotWeights


# -- sampling


@dataclass(frozen=True)
class OfWeights(Request[R]):
    """A request about weights to sample from."""

    weights: WeightsRef

    @property
    def lane(self) -> str:
        return weights_lane(self.weights.id)


@dataclass(frozen=True)
class LoadWeights(OfWeights[None]):
    """Have the weights of a checkpoint or of a base model ready to sample from."""


@dataclass(frozen=True)
class DropWeights(Request[None]):
    """Nobody will sample from these weights again."""

    id: str

    @property
    def lane(self) -> str:
        return weights_lane(self.id)


@dataclass(frozen=True)
class SampleRequest:
    """`num_samples` continuations of one prompt.

    temperature 0 is greedy. `stop_tokens` and `stop_strings` end a sequence and stay in it.
    `max_tokens=0` only scores the prompt: every sample is empty and ends by its length. A seed
    fixes the random numbers of every sample. What is asked of the prompt is scored at
    `prompt_temperature`, whatever the samples are drawn at.
    """

    prompt: np.ndarray  # int64 [P]
    max_tokens: int | None  # None: as far as the context and the memory for keys and values go
    num_samples: int = 1
    temperature: float = 1.0
    top_k: int = -1  # -1: all
    top_p: float = 1.0
    seed: int | None = None
    stop_tokens: frozenset[int] | None = frozenset()  # None: those that the model's files name
    stop_strings: tuple[str, ...] = ()
    prompt_temperature: float = 1.0
    prompt_logprobs: bool = False
    prompt_top_k: int = 0  # most likely tokens to report at each prompt position
    sample_top_k: int = 0  # ... and at each sampled position
    prompt_targets: np.ndarray | None = None  # int64 [P-1, K]: tokens to score at positions
    # 1..P-1; -1 asks for nothing and is answered with 0


@dataclass(frozen=True)
class TopK:
    """The most likely tokens of several positions, the likeliest first."""

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
    """Everything about the prompt is at the request's `prompt_temperature`."""

    sequences: list[SampledTokens]
    prompt_logprobs: np.ndarray | None = None  # float32 [P], NaN at position 0
    prompt_top_k: TopK | None = None  # of positions 1..P-1
    prompt_target_logprobs: np.ndarray | None = None  # float32 [P-1, K]


@dataclass(frozen=True)
class Sample(OfWeights[SampleResult]):
    """Samples of one prompt, or the scores of its tokens (`max_tokens=0`)."""

    request: SampleRequest


OnDone = Callable[[SampleResult | Exception], None]
OnToken = Callable[[int, int, float], None]  # index of the sample, its next token, its logprob
Cancelled = Callable[[], bool]  # whether nobody waits for the answer any more
