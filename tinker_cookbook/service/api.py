"""The part of the Tinker API that loops and recipes use, as protocols.

The in-process clients and the SDK's own have these methods with these meanings, so a loop never
asks which of them it has. Operations answer at once with an `APIFuture` and run in the order of the
calls; what makes a client answers with a future of it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Literal, Protocol, Self, TypeVar, runtime_checkable

from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture

from tinker_cookbook.tokenizer_utils import Tokenizer

if TYPE_CHECKING:
    from types import TracebackType

    import torch

C = TypeVar("C", covariant=True)
# data, logprobs of each datum shaped like its target_tokens -> loss (a scalar), metrics
CustomLoss = Callable[
    [list[types.Datum], "list[torch.Tensor]"], tuple["torch.Tensor", dict[str, float]]
]


class PendingResult(Protocol[C]):
    """A future of a client."""

    def result(self, timeout: float | None = None) -> C: ...

    def __await__(self) -> Generator[object, None, C]: ...


class SamplingClient(Protocol):
    """Sampling from one fixed set of weights."""

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: types.TensorData | None = None,
    ) -> APIFuture[types.SampleResponse]: ...

    def compute_logprobs(
        self, prompt: types.ModelInput, prompt_logprobs_last_n: int | None = None
    ) -> APIFuture[list[float | None]]:
        """At temperature 1; see `ScoresAtTemperature`."""
        ...

    def get_tokenizer(self) -> Tokenizer: ...

    def get_base_model(self) -> str: ...


@runtime_checkable
class ScoresAtTemperature(Protocol):
    """What the clients in process can do and the SDK's cannot."""

    def compute_logprobs(
        self,
        prompt: types.ModelInput,
        prompt_logprobs_last_n: int | None = None,
        *,
        temperature: float = 1.0,
    ) -> APIFuture[list[float | None]]: ...


class TrainingClient(Protocol):
    """One adapter in training."""

    def forward(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: dict[str, float] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]: ...

    def forward_backward(
        self,
        data: list[types.Datum],
        loss_fn: types.LossFnType,
        loss_fn_config: dict[str, float] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]: ...

    def forward_backward_custom(
        self,
        data: list[types.Datum],
        loss_fn: CustomLoss,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]: ...

    def optim_step(
        self, optim_params: types.AdamParams | None = None
    ) -> APIFuture[types.OptimStepResponse]: ...

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]: ...

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]: ...

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]: ...

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]: ...

    def save_weights_and_get_sampling_client(
        self, name: str | None = None
    ) -> PendingResult[SamplingClient]:
        """With the weights as they are after the calls so far."""
        ...

    def create_sampling_client(self, model_path: str) -> PendingResult[SamplingClient]: ...

    def get_info(self) -> types.GetInfoResponse: ...

    def get_tokenizer(self) -> Tokenizer: ...


@runtime_checkable
class InProcess(Protocol):
    """A training client whose engine is in this process."""

    def about_engine(self) -> list[str]:
        """Lines that whoever starts a run should see."""
        ...


class RestClient(Protocol):
    """Runs and checkpoints, by their paths."""

    def get_training_run_by_tinker_path(self, tinker_path: str) -> APIFuture[types.TrainingRun]: ...

    def get_weights_info_by_tinker_path(
        self, tinker_path: str
    ) -> APIFuture[types.WeightsInfoResponse]: ...

    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> APIFuture[None]: ...

    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> APIFuture[None]: ...


class ServiceClient(Protocol):
    """Makes training, sampling and rest clients."""

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
    ) -> PendingResult[TrainingClient]: ...

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> PendingResult[TrainingClient]: ...

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> PendingResult[TrainingClient]: ...

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> PendingResult[SamplingClient]: ...

    def create_rest_client(self) -> RestClient: ...

    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> None: ...
