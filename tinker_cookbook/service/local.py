"""The Tinker API in process: the SDK's interface over a session, without a server.

Every operation takes its place on the engine's thread in the order of the calls and answers at once
with the SDK's own `APIFuture`. Errors come out of the future, as with the SDK.
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
# Of the model table, what the engine can load by its name.
FAMILIES = [name for name, family in families.FAMILIES.items() if not family.unreadable]
TIED = (
    "{model} has tied embeddings: load this adapter beside the model and do not merge it as it is,"
    " because what it adds to the unembedding would land in the input embeddings, too (untie them"
    " first, or train with train_unembed=False)"
)


def _submitting(
    method: Callable[Concatenate[C, P], T],
) -> Callable[Concatenate[C, P], Coroutine[None, None, T]]:
    """`x_async`: calls x and gives its future back, as the SDK's deprecated names do."""

    @wraps(method)
    async def call(self: C, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return method(self, *args, **kwargs)

    call.__name__ = f"{method.__name__}_async"
    return call


def _awaiting(
    method: Callable[Concatenate[C, P], Awaitable[T]],
) -> Callable[Concatenate[C, P], Coroutine[None, None, T]]:
    """`x_async`: what the future of x holds, a client that exists or an answer."""

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
        """Samples with their logprobs; see `engine.torch_sampler` for what a logprob means."""
        if prompt_alt_tokens_k:
            return _failed(TrainingError(f"sample: {prompt_alt_tokens_k=} is not supported"))
        if error := _refused_last_n(prompt_logprobs_last_n, include_prompt_logprobs):
            return _failed(error)
        request = partial(
            convert.request_of,
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
            lambda result: convert.response_of(result, prompt_logprobs_last_n),
        )

    def compute_logprobs(
        self,
        prompt: types.ModelInput,
        prompt_logprobs_last_n: int | None = None,
        *,
        temperature: float = 1.0,
    ) -> APIFuture[list[float | None]]:
        """Logprob of every prompt token; None for the first.

        temperature: what samples are drawn at, to compare these with their logprobs. The SDK's
        client scores at temperature 1 and has no such parameter.
        """
        if error := _refused_last_n(prompt_logprobs_last_n, True):
            return _failed(error)
        request = partial(
            convert.request_of,
            prompt,
            1,
            types.SamplingParams(max_tokens=0),
            prompt_logprobs=True,
            prompt_temperature=temperature,
        )

        def answer(result: SampleResult) -> list[float | None]:
            return convert.response_of(result, prompt_logprobs_last_n).prompt_logprobs or []

        return Converted(self._session.sample(self._weights, request), answer)

    def get_base_model(self) -> str:
        return self._weights.base_model

    def get_tokenizer(self) -> Tokenizer:
        return get_tokenizer(self._weights.base_model)

    sample_async = _awaiting(sample)
    compute_logprobs_async = _awaiting(compute_logprobs)
    get_base_model_async = _submitting(get_base_model)


class ReadySamplingClient(Ready[WeightsRef], LocalSamplingClient):
    """What `create_sampling_client` gives: a sampling client and a future of it."""

    def __init__(self, session: Session, weights: WeightsHandle) -> None:
        Ready.__init__(self, weights.ready)
        LocalSamplingClient.__init__(self, session, weights)


class LocalTrainingClient(Ready[RunFacts]):
    """One adapter in training; the counterpart of `tinker.TrainingClient`.

    Operations called before it exists are queued behind its creation, and fail with its error if
    that fails.
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
        """Logprobs and loss of the data, no gradient."""
        result = self._session.forward(self._run, data, loss_fn, loss_fn_config)
        return Converted(result, convert.output_of)

    def forward_backward(
        self, data: list[types.Datum], loss_fn: types.LossFnType, loss_fn_config: LossConfig = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """As forward, and adds the gradient of the summed loss to what is accumulated."""
        result = self._session.forward_backward(self._run, data, loss_fn, loss_fn_config)
        return Converted(result, convert.output_of)

    def forward_backward_custom(
        self,
        data: list[types.Datum],
        loss_fn: CustomLoss,
        *,
        loss_type_input: Literal["logprobs"] | None = None,
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """A loss of your own: `loss_fn(data, logprobs)` gets the logprobs of every datum as tensors
        shaped like its target_tokens and returns (scalar tensor, metrics). It runs on the engine's
        thread, so it must not wait for the engine.
        """
        if loss_type_input not in (None, "logprobs"):
            error = ConfigurationError(f"loss_type_input={loss_type_input!r}: only 'logprobs'")
            return _failed(error)
        if not callable(loss_fn):
            error = ConfigurationError(f"loss_fn={loss_fn!r} is not a function of (data, logprobs)")
            return _failed(error)
        bound = partial(loss_fn, data)
        result = self._session.forward_backward_custom(self._run, data, bound)
        return Converted(result, convert.output_of)

    def optim_step(
        self,
        optim_params: types.AdamParams | None = None,
        *,
        adam_params: types.AdamParams | None = None,
    ) -> APIFuture[types.OptimStepResponse]:
        """One AdamW step; metrics: grad_norm (before clipping)."""
        params = optim_params or adam_params or types.AdamParams()
        if not isinstance(params, types.AdamParams):
            return _failed(TrainingError(f"optimizer {type(params).__name__}: only AdamParams"))
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
        """Weights and optimizer, to go on from. Accumulated gradients are not part of it."""
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
        """Weights alone, to sample from."""
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
        """A sampling client of the weights as they are now; kept on disk only under a name.

        The SDK's retry_config has nothing to do in process; other keys are refused.
        """
        _refuse("record_stability_info", record_stability_info, False)
        _refuse("kind", kind, "snapshot")
        return ReadySamplingClient(self._session, self._session.snapshot(self._run, name))

    def create_sampling_client(
        self,
        model_path: str,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> ReadySamplingClient:
        """A sampling client of a saved checkpoint."""
        _refuse("record_stability_info", record_stability_info, False)
        return ReadySamplingClient(self._session, self._session.saved_weights(model_path))

    def load_state(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        """Take over the weights of a checkpoint; the optimizer starts anew."""
        return self._load(path, optimizer=False)

    def load_state_with_optimizer(
        self, path: str, weights_access_token: str | None = None
    ) -> APIFuture[types.LoadWeightsResponse]:
        """Take over weights and optimizer of a checkpoint."""
        return self._load(path, optimizer=True)

    # -- about

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
        """Lines that whoever starts a run should see: threads, and what its model is apt to."""
        facts, model = self._run.created.result(), self._run.base_model
        lines = [] if facts.threads is None else [facts.threads]
        if facts.model.tied and facts.spec.train_unembed and model != "nano":
            lines.append(TIED.format(model=model))
        return lines

    forward_async = _submitting(forward)
    forward_backward_async = _submitting(forward_backward)
    forward_backward_custom_async = _submitting(forward_backward_custom)
    optim_step_async = _submitting(optim_step)
    save_state_async = _submitting(save_state)
    save_weights_for_sampler_async = _submitting(save_weights_for_sampler)
    load_state_async = _submitting(load_state)
    load_state_with_optimizer_async = _submitting(load_state_with_optimizer)
    save_weights_and_get_sampling_client_async = _awaiting(save_weights_and_get_sampling_client)
    create_sampling_client_async = _awaiting(create_sampling_client)

    def _load(self, path: str, optimizer: bool) -> APIFuture[types.LoadWeightsResponse]:
        return Converted(
            self._session.load(self._run, path, optimizer=optimizer),
            lambda _: types.LoadWeightsResponse(path=path, model_id=self.model_id),
        )


class Capabilities(types.GetServerCapabilitiesResponse):
    """tokens_per_pass: tokens that go through a model at once (of those loaded, the least); None:
    not known before a model is loaded."""

    tokens_per_pass: int | None = None


class LocalServiceClient:
    """Makes the clients of one session; the counterpart of `tinker.ServiceClient`."""

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
        """A fresh adapter. Without a seed its start is random."""
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
        """A new run that starts with the weights of a checkpoint and a fresh optimizer."""
        _check_optimizer(optimizer)
        return self._from_state(path, base_model, user_metadata, optimizer=False)

    def create_training_client_from_state_with_optimizer(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
    ) -> LocalTrainingClient:
        """A new run that goes on exactly where a checkpoint was saved."""
        return self._from_state(path, base_model, user_metadata, optimizer=True)

    def create_sampling_client(
        self,
        model_path: str | None = None,
        base_model: str | None = None,
        retry_config: RetryConfig | None = None,
        record_stability_info: bool = False,
    ) -> ReadySamplingClient:
        """A sampling client of a checkpoint (tinker://..., or a directory, see `checkpoint_dirs`),
        or of a base model alone."""
        _refuse("record_stability_info", record_stability_info, False)
        if model_path is not None:
            weights = self._session.saved_weights(model_path, base_model)
        elif base_model is not None:
            weights = self._session.base_weights(base_model)
        else:
            raise ConfigurationError("create_sampling_client needs model_path or base_model")
        return ReadySamplingClient(self._session, weights)

    def create_rest_client(self) -> LocalRestClient:
        return LocalRestClient(self.store)

    def get_server_capabilities(self) -> Capabilities:
        """The models of the table that the engine runs; others of their families work too."""
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
        """Ends the session: its runs take no more checkpoints and may be written by others."""
        self._session.close()
        done: Future[None] = Future()
        done.set_result(None)
        return AwaitableConcurrentFuture(done)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    create_lora_training_client_async = _awaiting(create_lora_training_client)
    create_training_client_from_state_async = _awaiting(create_training_client_from_state)
    create_training_client_from_state_with_optimizer_async = _awaiting(
        create_training_client_from_state_with_optimizer
    )
    create_sampling_client_async = _awaiting(create_sampling_client)
    get_server_capabilities_async = _submitting(get_server_capabilities)

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
        raise ConfigurationError(f"optimizer {optimizer!r} is not supported; only AdamW is")


def _refused_last_n(last_n: int | None, prompt_logprobs: bool) -> DataValidationError | None:
    if last_n is None:
        return None
    if not is_whole(last_n) or last_n < 1:
        return DataValidationError(
            f"prompt_logprobs_last_n={last_n!r}: expected a whole number of at least 1"
        )
    if not prompt_logprobs:
        return DataValidationError(
            f"prompt_logprobs_last_n={last_n} has no effect without include_prompt_logprobs=True"
        )
    return None


def _refuse(key: str, value: T, allowed: T) -> None:
    """A key of the SDK that changes results and is not implemented: only its default passes."""
    if value != allowed:
        raise ConfigurationError(f"{key}={value!r} is not supported; use {allowed!r}")


def _failed(error: TinkerCookbookError) -> APIFuture[T]:
    return AwaitableConcurrentFuture(failed(error))
