"""The part of the Tinker API that loops and recipes use, as protocols.

The in-process clients and the SDK's own have these methods with these meanings, so a loop never
asks which of them it has. Operations answer at once with an `APIFuture` and run in the order of the
calls.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture


class SamplingClient(Protocol):
    """Sampling from one fixed set of weights."""

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
    ) -> APIFuture[types.SampleResponse]: ...

    def compute_logprobs(self, prompt: types.ModelInput) -> APIFuture[list[float | None]]:
        """At temperature 1. The clients in process take another `temperature`, the SDK's do not."""
        ...

    def get_tokenizer(self) -> Any: ...

    def get_base_model(self) -> str: ...


class TrainingClient(Protocol):
    """One adapter in training."""

    def forward(
        self,
        data: list[types.Datum],
        loss_fn: Any,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]: ...

    def forward_backward(
        self,
        data: list[types.Datum],
        loss_fn: Any,
        loss_fn_config: Mapping[str, float | str] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]: ...

    def optim_step(
        self, optim_params: types.AdamParams | None = None
    ) -> APIFuture[types.OptimStepResponse]: ...

    def save_state(
        self, name: str, ttl_seconds: int | None = None, overwrite: bool = False
    ) -> APIFuture[types.SaveWeightsResponse]: ...

    def save_weights_for_sampler(
        self, name: str, ttl_seconds: int | None = None
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]: ...

    def save_weights_and_get_sampling_client(self) -> Any:
        """A future of a SamplingClient with the weights as they are after the calls so far."""
        ...

    def get_info(self) -> types.GetInfoResponse: ...

    def get_tokenizer(self) -> Any: ...


class ServiceClient(Protocol):
    """Makes training, sampling and rest clients; each `create_*` answers with a future of one."""

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
    ) -> Any: ...

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> Any: ...

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> Any: ...

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> Any: ...

    def create_rest_client(self) -> Any: ...

    def __enter__(self) -> Any: ...

    def __exit__(self, *_: object) -> None: ...

    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse: ...
