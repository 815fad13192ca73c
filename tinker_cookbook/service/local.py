"""In-process Tinker API: the SDK's clients over a session, without a server.

Every operation is queued for the engine's thread in the order of the calls and immediately returns
the SDK's own `APIFuture`. As with the SDK, the future raises the errors.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from functools import partial, wraps
from typing import TYPE_CHECKING, Concatenate, Literal, ParamSpec, TypeVar

import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from tinker_cookbook import families, models
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import RunFacts, SampleResult, WeightsRef
from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataValidationError,
    TinkerCookbookError,
    TrainingError,
)
from tinker_cookbook.service import convert
from tinker_cookbook.service.api import CustomLoss
from tinker_cookbook.service.futures import Converted, Ready, failed
from tinker_cookbook.service.rest import LocalRestClient
from tinker_cookbook.service.session import (
    EngineQueue,
    LossConfig,
    Run,
    Session,
    WeightsHandle,
    new_seed,
)
from tinker_cookbook.service.store import Store
from tinker_cookbook.tokenizer_utils import Tokenizer, get_tokenizer
from tinker_cookbook.utils.misc_utils import is_whole

if TYPE_CHECKING:
    from typing import Self

    from tinker.lib.retry_handler import RetryConfig

P = ParamSpec("P")
C = TypeVar("C")
T = TypeVar("T")
# the families in the model table that the engine can run
FAMILIES = [name for name, family in families.FAMILIES.items() if not family.unreadable]
TIED = (
    "{model} has tied embeddings: do not merge this adapter into the model, because its update of"
    " the unembedding would also change the input embeddings; load it as an adapter, or let"
    " tinker_cookbook.weights.export format=merged do it, which unties them"
)


def _deprecated_alias(
    method: Callable[Concatenate[C, P], T],
) -> Callable[Concatenate[C, P], Coroutine[None, None, T]]:
    """`x_async` that returns the future of x, like the SDK's deprecated names."""

    @wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self, *args, **kwargs)

    call.__name__ = f"{method.__name__}_async"
    return call


def _awaiting_alias(
    method: Callable[Concatenate[C, P], Awaitable[T]],
) -> Callable[Concatenate[C, P], Coroutine[None, None, T]]:
    """`x_async` that awaits the future of x and returns its result."""

    @wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await method(self, *args, **kwargs)

    call.__name__ = f"{method.__name__}_async"
    return call


class LocalSamplingClient:
    """Samples from one fixed set of weights; the counterpart of `tinker.SamplingClient`."""

    def __init__(self, session: Session, weights: WeightsHandle) -> None:
        self._session = session
        self._weights = weights
        self.model_path = weights.path

    def sample(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        sampling_params: types.SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        target_prompt_logprobs: types.TensorData | None = None,
        prompt_alt_tokens_k: int = 0,
        prompt_logprobs_last_n: int | None = None,
    ) -> APIFuture[types.SampleResponse]:
        """Samples with logprobs, which `engine.torch_sampler` defines."""
        if prompt_alt_tokens_k:
            return _failed(TrainingError(f"sample: {prompt_alt_tokens_k=} is not supported"))
        if error := _check_last_n(prompt_logprobs_last_n, include_prompt_logprobs):
            return _failed(error)
        request = partial(
            convert.to_sample_request,
            prompt,
            num_samples,
            sampling_params,
            prompt_logprobs=include_prompt_logprobs,
            prompt_top_k=topk_prompt_logprobs,
            sample_top_k=topk_sample_logprobs,
            prompt_targets=target_prompt_logprobs,
        )
        return Converted(
            self._session.sample(self._weights, request),
            lambda result: convert.to_sample_response(result, prompt_logprobs_last_n),
        )

    def compute_logprobs(
        self,
        prompt: types.ModelInput,
        prompt_logprobs_last_n: int | None = None,
        *,
        temperature: float = 1.0,
    ) -> APIFuture[list[float | None]]:
        """The logprob of every prompt token; None for the first.

        temperature: set it to the sampling temperature to compare these with sampling logprobs. The
        SDK's client has no such parameter and uses temperature 1.
        """
        if error := _check_last_n(prompt_logprobs_last_n, True):
            return _failed(error)
        request = partial(
            convert.to_sample_request,
            prompt,
            1,
            types.SamplingParams(max_tokens=0),
            prompt_logprobs=True,
            prompt_temperature=temperature,
        )

        def to_list(result: SampleResult) -> list[float | None]:
            return convert.to_sample_response(result, prompt_logprobs_last_n).prompt_logprobs or []

        return Converted(self._session.sample(self._weights, request), to_list)

    def get_base_model(self) -> str:
        return self._weights.base_model

    def get_tokenizer(self) -> Tokenizer:
        return get_tokenizer(self._weights.base_model)

    sample_async = _awaiting_alias(sample)
    compute_logprobs_async = _awaiting_alias(compute_logprobs)
    get_base_model_async = _deprecated_alias(get_base_model)


class ReadySamplingClient(Ready[WeightsRef], LocalSamplingClient):
    """A sampling client that is also a future of itself, as `create_sampling_client` returns it."""

    def __init__(self, session: Session, weights: WeightsHandle) -> None:
        Ready.__init__(self, weights.ready)
        LocalSamplingClient.__init__(self, session, weights)


class LocalTrainingClient(Ready[RunFacts]):
    """One adapter in training; the counterpart of `tinker.TrainingClient`.

    Operations called before the adapter exists are queued after its creation, and fail with the
    same error if the creation fails.
    """

    def __init__(self, session: Session, run: Run) -> None:
        super().__init__(run.created)
        self._session = session
        self._run = run
        self.model_id = run.id

    # -- training

    def forward(
        self, data: list[types.Datum], loss_fn: types.LossFnType, loss_fn_config: LossConfig = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Logprobs and loss, without gradients."""
        result = self._session.forward(self._run, data, loss_fn, loss_fn_config)
        return Converted(result, convert.to_forward_backward_output)

    def forward_backward(
        self, data: list[types.Datum], loss_fn: types.LossFnType, loss_fn_config: LossConfig = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Logprobs and loss; adds the gradient of the summed loss to the accumulated gradients."""
        result = self._session.forward_backward(self._run, data, loss_fn, loss_fn_config)
        return Converted(result, convert.to_forward_backward_output)

    def forward_backward_custom(
        self,
        data: list[types.Datum],
        loss_fn: CustomLoss,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """`forward_backward` with a custom loss.

        `loss_fn(data, logprobs)` receives each datum's logprobs as a tensor shaped like its
        target_tokens, and returns (scalar tensor, metrics). It runs on the engine's thread, so
        waiting for the engine in it would deadlock.
        """
        if loss_type_input not in (None, "logprobs"):
            error = ConfigurationError(f"loss_type_input={loss_type_input!r}: expected 'logprobs'")
            return _failed(error)
        if not callable(loss_fn):
            error = ConfigurationError(f"loss_fn={loss_fn!r} is not a function of (data, logprobs)")
            return _failed(error)
        bound = partial(loss_fn, data)
        result = self._session.forward_backward_custom(self._run, data, bound)
        return Converted(result, convert.to_forward_backward_output)

    def optim_step(
        self,
        optim_params: types.AdamParams | None = None,
        *,
        adam_params: types.AdamParams | None = None,
    ) -> APIFuture[types.OptimStepResponse]:
        """One AdamW step; metrics: grad_norm, before clipping."""
        params = optim_params or adam_params or types.AdamParams()
        if not isinstance(params, types.AdamParams):
            kind = type(params).__name__
            return _failed(TrainingError(f"optim_params is of type {kind}; expected AdamParams"))
        return Converted(
            self._session.optim_step(self._run, params),
            lambda metrics: types.OptimStepResponse(metrics=metrics),
        )

    # -- checkpoints

    def save_state(
        self,
        name: str,
        ttl_seconds: int | None = None,
        overwrite: bool = False,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsResponse]:
        """Save weights and optimizer state, to resume from; accumulated gradients are not saved."""
        path = self._session.save(
            self._run,
            "weights",
            name,
            overwrite=overwrite,
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
        )
        return Converted(path, lambda path: types.SaveWeightsResponse(path=path))

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """Save the weights alone, to sample from."""
        path = self._session.save(
            self._run,
            "sampler_weights",
            name,
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
        )
        return Converted(path, lambda path: types.SaveWeightsForSamplerResponse(path=path))

    def save_weights_and_get_sampling_client(
        self,
        name: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
        kind: types.SamplingClientKind = "snapshot",
    ) -> ReadySamplingClient:
        """A sampling client with a snapshot of the weights after the calls so far.

        The snapshot is saved to disk only if it has a name. retry_config has no effect in process;
        other SDK parameters raise ConfigurationError unless they have their defaults.
        """
        _check_default("record_stability_info", record_stability_info, False)
        _check_default("kind", kind, "snapshot")
        return ReadySamplingClient(self._session, self._session.snapshot(self._run, name))

    def create_sampling_client(
        self,
        model_path: str,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> ReadySamplingClient:
        """A sampling client with the weights of a saved checkpoint."""
        _check_default("record_stability_info", record_stability_info, False)
        return ReadySamplingClient(self._session, self._session.saved_weights(model_path))

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        """Load the weights of a checkpoint and reset the optimizer."""
        return self._load(path, optimizer=False)

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        """Load weights and optimizer state of a checkpoint."""
        return self._load(path, optimizer=True)

    # -- information

    def get_info(self) -> types.GetInfoResponse:
        facts = self._run.created.result()
        return types.GetInfoResponse(
            model_data=types.ModelData(
                arch=facts.model.model_type,
                model_name=self._run.base_model,
                tokenizer_id=models.load_path(self._run.base_model),
            ),
            model_id=self.model_id,
            is_lora=True,
            lora_rank=facts.spec.rank,
            model_name=self._run.base_model,
        )

    async def get_info_async(self) -> types.GetInfoResponse:
        await self
        return self.get_info()

    def get_tokenizer(self) -> Tokenizer:
        return get_tokenizer(self._run.base_model)

    def about_engine(self) -> list[str]:
        """Lines for the log of a starting run: CPU threads, precision, tied embeddings."""
        facts, model = self._run.created.result(), self._run.base_model
        lines = list(facts.computation)
        if facts.model.tied and facts.spec.train_unembed and model != "nano":
            lines.append(TIED.format(model=model))
        return lines

    forward_async = _deprecated_alias(forward)
    forward_backward_async = _deprecated_alias(forward_backward)
    forward_backward_custom_async = _deprecated_alias(forward_backward_custom)
    optim_step_async = _deprecated_alias(optim_step)
    save_state_async = _deprecated_alias(save_state)
    save_weights_for_sampler_async = _deprecated_alias(save_weights_for_sampler)
    load_state_async = _deprecated_alias(load_state)
    load_state_with_optimizer_async = _deprecated_alias(load_state_with_optimizer)
    save_weights_and_get_sampling_client_async = _awaiting_alias(
        save_weights_and_get_sampling_client
    )
    create_sampling_client_async = _awaiting_alias(create_sampling_client)

    def _load(self, path: str, optimizer: bool) -> APIFuture[types.LoadWeightsResponse]:
        return Converted(
            self._session.load(self._run, path, optimizer=optimizer),
            lambda _: types.LoadWeightsResponse(path=path, model_id=self.model_id),
        )


class Capabilities(types.GetServerCapabilitiesResponse):
    """The SDK's response with tokens_per_pass: the maximum tokens in one pass through the model.

    The minimum over the loaded models; None before one is loaded.
    """

    tokens_per_pass: int | None = None


class LocalServiceClient:
    """Creates the clients of one session; the counterpart of `tinker.ServiceClient`."""

    def __init__(
        self, engine: EngineQueue, store: Store, user_metadata: dict[str, str] | None = None
    ) -> None:
        self.engine = engine
        self.store = store
        self._session = Session(engine, store, user_metadata)

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> LocalTrainingClient:
        """A new adapter, with a random initialization if seed is None."""
        _check_optimizer(optimizer)
        spec = partial(
            LoraSpec,
            rank=rank,
            seed=new_seed() if seed is None else seed,
            train_attn=train_attn,
            train_mlp=train_mlp,
            train_unembed=train_unembed,
        )
        run = self._session.create_run(base_model, spec, user_metadata)
        return LocalTrainingClient(self._session, run)

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: types.OptimizerConfig | None = None,
    ) -> LocalTrainingClient:
        """A new run with the weights of a checkpoint and a new optimizer."""
        _check_optimizer(optimizer)
        return self._from_state(path, base_model, user_metadata, optimizer=False)

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> LocalTrainingClient:
        """A new run with weights and optimizer state of a checkpoint: an exact resume."""
        return self._from_state(path, base_model, user_metadata, optimizer=True)

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> ReadySamplingClient:
        """A sampling client with a checkpoint (a tinker:// path, or a directory: see
        `checkpoint_dirs`), or with a base model alone."""
        _check_default("record_stability_info", record_stability_info, False)
        if model_path is not None:
            weights = self._session.saved_weights(model_path, base_model)
        elif base_model is not None:
            weights = self._session.base_weights(base_model)
        else:
            raise ConfigurationError("create_sampling_client: set model_path or base_model")
        return ReadySamplingClient(self._session, weights)

    def create_rest_client(self) -> LocalRestClient:
        return LocalRestClient(self.store)

    def get_server_capabilities(self) -> Capabilities:
        """The models in the table that the engine supports; others of these families work, too."""
        supported = [
            types.SupportedModel(
                model_name=name,
                max_context_length=info.context_length,
                trainable=True,
                sampleable=True,
            )
            for name, info in models.TABLE.items()
            if info.family in FAMILIES
        ]
        return Capabilities(supported_models=supported, tokens_per_pass=self.engine.tokens_per_pass)

    def close(self, status: str = "success", detail: str | None = None) -> APIFuture[None]:
        """End the session: its runs accept no more checkpoints, and others may write them."""
        self._session.close()
        done: Future[None] = Future()
        done.set_result(None)
        return AwaitableConcurrentFuture(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    create_lora_training_client_async = _awaiting_alias(create_lora_training_client)
    create_training_client_from_state_async = _awaiting_alias(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = _awaiting_alias(
        create_training_client_from_state_with_optimizer
    )
    create_sampling_client_async = _awaiting_alias(create_sampling_client)
    get_server_capabilities_async = _deprecated_alias(get_server_capabilities)

    def _from_state(
        self,
        path: str,
        base_model: str | None,
        user_metadata: dict[str, str] | None,
        optimizer: bool,
    ) -> LocalTrainingClient:
        run = self._session.create_run_from_state(
            path, base_model, user_metadata, optimizer=optimizer
        )
        return LocalTrainingClient(self._session, run)


def _check_optimizer(optimizer: types.OptimizerConfig | None) -> None:
    if optimizer is not None and not isinstance(optimizer, tinker.AdamOptimizerConfig):
        raise ConfigurationError(f"optimizer={optimizer!r} is not supported; use AdamW")


def _check_last_n(last_n: int | None, prompt_logprobs: bool) -> DataValidationError | None:
    if last_n is None:
        return None
    if not is_whole(last_n) or last_n < 1:
        return DataValidationError(
            f"prompt_logprobs_last_n={last_n!r}: expected an integer of 1 or more"
        )
    if not prompt_logprobs:
        return DataValidationError(
            f"prompt_logprobs_last_n={last_n} has no effect without include_prompt_logprobs=True"
        )
    return None


def _check_default(key: str, value: T, default: T) -> None:
    """An SDK parameter that is not implemented and would change results must have its default."""
    if value != default:
        raise ConfigurationError(f"{key}={value!r} is not supported; use {default!r}")


def _failed(error: TinkerCookbookError) -> APIFuture[T]:
    return AwaitableConcurrentFuture(failed(error))
