"""The Tinker API in process: the SDK's interface straight over the engine, without a server.

Every operation is queued on the engine's thread in the order of the calls and answers at once with
the SDK's own `APIFuture`. Errors come out of the future, as with the SDK.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any, TypeVar

import tinker
from tinker import types
from tinker.lib.public_interfaces.api_future import APIFuture, AwaitableConcurrentFuture

from tinker_cookbook import families, models
from tinker_cookbook.engine import checkpoints
from tinker_cookbook.engine.lora import Adapter, LoraSpec
from tinker_cookbook.engine.passes import Work
from tinker_cookbook.engine.rows import SampleResult
from tinker_cookbook.engine.scheduler import Engine, Kind
from tinker_cookbook.engine.trainer import Trainer
from tinker_cookbook.exceptions import (
    ConfigurationError,
    DataValidationError,
    TrainingError,
)
from tinker_cookbook.service import convert, model_files
from tinker_cookbook.service.loading import Files, weights
from tinker_cookbook.service.rest import LocalRestClient
from tinker_cookbook.service.store import RunHandle, Store
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.misc_utils import is_whole

T = TypeVar("T")
LossConfig = Mapping[str, float | str] | None
# Of the model table, what the engine can load by its name.
FAMILIES = [name for name, family in families.FAMILIES.items() if not family.unreadable]
TIED = (
    "{model} has tied embeddings: load this adapter beside the model and do not merge it as it is,"
    " because what it adds to the unembedding would land in the input embeddings, too (untie them"
    " first, or train with train_unembed=False)"
)


class LocalSamplingClient:
    """Samples from one fixed set of weights; the counterpart of `tinker.SamplingClient`.

    `adapter` is the engine's future of the weights (None inside: the base model alone).
    """

    def __init__(
        self, engine: Engine, base_model: str, adapter: Future[Adapter | None], path: str | None
    ) -> None:
        self._engine = engine
        self._base_model = base_model
        self._adapter = adapter
        self.model_path = path

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
        """Samples with their logprobs; see `engine.sampler` for what a logprob means."""
        if prompt_alt_tokens_k:
            return _failed(TrainingError(f"sample: {prompt_alt_tokens_k=} is not supported"))
        if error := _refused_last_n(prompt_logprobs_last_n, include_prompt_logprobs):
            return _failed(error)
        targets = target_prompt_logprobs
        if isinstance(targets, types.TensorData):
            targets = targets.to_numpy()
        elif targets is not None:
            kind = type(targets).__name__
            return _failed(DataValidationError(f"target_prompt_logprobs is {kind}, not TensorData"))
        future = self._request(
            prompt,
            num_samples,
            sampling_params,
            prompt_logprobs=include_prompt_logprobs,
            prompt_top_k=topk_prompt_logprobs,
            sample_top_k=topk_sample_logprobs,
            prompt_targets=targets,
        )
        return _Converted(
            future, lambda result: convert.response_of(result, prompt_logprobs_last_n)
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
        params = types.SamplingParams(max_tokens=0)

        def answer(result: SampleResult) -> Any:
            return convert.response_of(result, prompt_logprobs_last_n).prompt_logprobs

        future = self._request(
            prompt, 1, params, prompt_logprobs=True, prompt_temperature=temperature
        )
        return _Converted(future, answer)

    def get_base_model(self) -> str:
        return self._base_model

    def get_tokenizer(self) -> Any:
        return get_tokenizer(self._base_model)

    async def sample_async(self, *args: Any, **kwargs: Any) -> types.SampleResponse:
        return await self.sample(*args, **kwargs)

    async def compute_logprobs_async(self, *args: Any, **kwargs: Any) -> list[float | None]:
        return await self.compute_logprobs(*args, **kwargs)

    async def get_base_model_async(self) -> str:
        return self._base_model

    def _request(
        self,
        prompt: types.ModelInput,
        num_samples: int,
        params: types.SamplingParams,
        **wanted: Any,
    ) -> Future[SampleResult]:
        engine, path = self._engine, models.load_path(self._base_model)

        def build() -> tuple[Adapter | None, Any]:
            base = engine.base_model(path)
            room = min(base.context_length, base.limits.kv_tokens)
            request = convert.request_of(
                prompt, num_samples, params, base.eos_tokens, room, **wanted
            )
            return self._adapter.result(0), request

        return engine.sample(path, build, self._adapter)


class _Ready:
    """A client that can be used at once and is also a future of itself, as the SDK's are."""

    _created: Future[Any]

    def future(self) -> Future[Any]:
        return _then(self._created, lambda _: self).future()

    def result(self, timeout: float | None = None) -> Any:
        """This client, once it exists; the error of its creation otherwise."""
        self._created.result(timeout)
        return self

    async def result_async(self, timeout: float | None = None) -> Any:
        await AwaitableConcurrentFuture(self._created).result_async(timeout)
        return self

    async def coroutine(self) -> Any:
        return await self.result_async()

    def __await__(self) -> Any:
        return self.result_async().__await__()


class ReadySamplingClient(_Ready, LocalSamplingClient):
    """What `create_sampling_client` gives: a sampling client and a future of it."""

    def __init__(
        self, engine: Engine, base_model: str, adapter: Future[Adapter | None], path: str | None
    ) -> None:
        super().__init__(engine, base_model, adapter, path)
        self._created = adapter


class LocalTrainingClient(_Ready):
    """One adapter in training; the counterpart of `tinker.TrainingClient`.

    `start` runs on the engine thread and makes the trainer; operations called before that are
    queued behind it, and fail with its error if it fails.
    """

    def __init__(
        self,
        service: LocalServiceClient,
        model_id: str,
        base_model: str,
        start: Callable[[], Trainer],
    ) -> None:
        self._service = service
        self._engine = service.engine
        self._store = service.store
        self.model_id = model_id
        self._base_model = base_model
        self._created: Future[Trainer] = self._engine.submit(
            start, model_id, model_files.fetch(base_model)
        )

    # -- training

    def forward(
        self, data: list[types.Datum], loss_fn: Any, loss_fn_config: LossConfig = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """Logprobs and loss of the data, no gradient."""
        return self._train("forward", data, loss_fn, loss_fn_config)

    def forward_backward(
        self, data: list[types.Datum], loss_fn: Any, loss_fn_config: LossConfig = None
    ) -> APIFuture[types.ForwardBackwardOutput]:
        """As forward, and adds the gradient of the summed loss to what is accumulated."""
        return self._train("forward_backward", data, loss_fn, loss_fn_config)

    def forward_backward_custom(
        self, data: list[types.Datum], loss_fn: Any, *, loss_type_input: str | None = None
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

        def bound(logprobs: Any) -> Any:
            return loss_fn(data, logprobs)

        return self._queue(
            lambda trainer: convert.output_of(
                trainer.forward_backward_custom(convert.custom_rows_of(data), bound)
            )
        )

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
        return self._queue(
            lambda trainer: types.OptimStepResponse(
                metrics=trainer.optim_step(convert.adam_of(params))
            )
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

        def save(trainer: Trainer) -> types.SaveWeightsResponse:
            path = self._store.write_checkpoint(
                self.model_id,
                "weights",
                name,
                lambda directory: checkpoints.write_state(trainer, self._base_model, directory),
                overwrite=overwrite,
                ttl_seconds=ttl_seconds,
                user_metadata=user_metadata,
            )
            return types.SaveWeightsResponse(path=path)

        return self._queue(save)

    def save_weights_for_sampler(
        self,
        name: str,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> APIFuture[types.SaveWeightsForSamplerResponse]:
        """Weights alone, to sample from."""

        def save(trainer: Trainer) -> types.SaveWeightsForSamplerResponse:
            path = self._write_sampler_weights(trainer, name, ttl_seconds, user_metadata)
            return types.SaveWeightsForSamplerResponse(path=path)

        return self._queue(save)

    def save_weights_and_get_sampling_client(
        self, name: str | None = None, retry_config: Any = None, **kwargs: Any
    ) -> ReadySamplingClient:
        """A sampling client of the weights as they are now; kept on disk only under a name.

        The SDK's retry_config has nothing to do in process; other keys are refused.
        """
        _refuse(kwargs, {"record_stability_info": False, "kind": "snapshot"})

        def snapshot(trainer: Trainer) -> Adapter | None:
            if name is not None:
                self._write_sampler_weights(trainer, name, None, None)
            return trainer.base.residency.admit(trainer.adapter.snapshot())

        future = self._queue(snapshot).future()
        return ReadySamplingClient(self._engine, self._base_model, future, None)

    def create_sampling_client(
        self, model_path: str, retry_config: Any = None, **kwargs: Any
    ) -> ReadySamplingClient:
        """A sampling client of a saved checkpoint."""
        return self._service.create_sampling_client(model_path=model_path, **kwargs)

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
        trainer: Trainer = self._created.result()
        return types.GetInfoResponse(
            model_data=types.ModelData(
                arch=trainer.base.config.model_type,
                model_name=self._base_model,
                tokenizer_id=models.load_path(self._base_model),
            ),
            model_id=self.model_id,
            is_lora=True,
            lora_rank=trainer.spec.rank,
            model_name=self._base_model,
        )

    def get_tokenizer(self) -> Any:
        return get_tokenizer(self._base_model)

    def about_engine(self) -> list[str]:
        """Lines that whoever starts a run should see: threads, and what its model is apt to."""
        trainer: Trainer = self._created.result()
        threads = self._engine.thread_count.threads
        lines = [threads.line()] if threads is not None else []
        if trainer.base.tied and trainer.spec.train_unembed and self._base_model != "nano":
            lines.append(TIED.format(model=self._base_model))
        return lines

    # -- inside

    def _queue(self, operation: Callable[[Trainer], T]) -> APIFuture[T]:
        return AwaitableConcurrentFuture(
            self._engine.submit(lambda: operation(self._created.result(0)), self.model_id)
        )

    def _train(
        self, kind: Kind, data: list[types.Datum], loss_fn: Any, config: LossConfig
    ) -> APIFuture[types.ForwardBackwardOutput]:
        def build() -> Work:
            return self._created.result(0).work(convert.rows_of(data), loss_fn, config)

        return _Converted(self._engine.train(self.model_id, kind, build), convert.output_of)

    def _write_sampler_weights(
        self,
        trainer: Trainer,
        name: str,
        ttl_seconds: int | None,
        user_metadata: dict[str, str] | None,
    ) -> str:
        return self._store.write_checkpoint(
            self.model_id,
            "sampler_weights",
            name,
            lambda directory: checkpoints.write_adapter(
                trainer.adapter, self._base_model, directory
            ),
            ttl_seconds=ttl_seconds,
            user_metadata=user_metadata,
        )

    def _load(self, path: str, optimizer: bool) -> APIFuture[types.LoadWeightsResponse]:
        def load(trainer: Trainer) -> types.LoadWeightsResponse:
            with weights(self._store, path, "weights", self._base_model).open() as files:
                _fill(self._engine, trainer, files, optimizer)
            return types.LoadWeightsResponse(path=path, model_id=self.model_id)

        return self._queue(load)


class LocalServiceClient:
    """Makes the clients of one session; the counterpart of `tinker.ServiceClient`."""

    def __init__(
        self, engine: Engine, store: Store, user_metadata: dict[str, str] | None = None
    ) -> None:
        self.engine = engine
        self.store = store
        self._user_metadata = user_metadata or {}
        self._session = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._models = 0
        self._runs: list[RunHandle] = []

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        user_metadata: dict[str, str] | None = None,
        optimizer: Any = None,
    ) -> LocalTrainingClient:
        """A fresh adapter. Without a seed its start is random."""
        _check_optimizer(optimizer)
        base_model = _published(base_model)
        model_id = self._next_model_id(base_model, user_metadata)

        def start() -> Trainer:
            spec = LoraSpec(
                rank=rank,
                seed=secrets.randbits(31) if seed is None else seed,
                train_attn=train_attn,
                train_mlp=train_mlp,
                train_unembed=train_unembed,
            )
            return self._start(model_id, base_model, spec, user_metadata)

        return LocalTrainingClient(self, model_id, base_model, start)

    def create_training_client_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        weights_access_token: str | None = None,
        optimizer: Any = None,
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
        retry_config: Any = None,
        **kwargs: Any,
    ) -> ReadySamplingClient:
        """A sampling client of a checkpoint (tinker://..., or a directory, see `checkpoint_dirs`),
        or of a base model alone."""
        _refuse(kwargs, {"record_stability_info": False})
        if model_path is None:
            if base_model is None:
                raise ConfigurationError("create_sampling_client needs model_path or base_model")
            name = _published(base_model)

            def load() -> Adapter | None:
                self.engine.base_model(models.load_path(name))
                return None

            future = self.engine.submit(load, after=model_files.fetch(name))
            return ReadySamplingClient(self.engine, name, future, None)
        found = weights(self.store, model_path, "sampler_weights", base_model)

        def read() -> Adapter | None:
            with found.open() as files:
                base = self.engine.base_model(models.load_path(found.base_model))
                adapter = base.new_adapter(files.spec)
                files.read(adapter, base)
                return base.residency.admit(adapter.snapshot())

        future = self.engine.submit(read, after=model_files.fetch(found.base_model))
        return ReadySamplingClient(self.engine, found.base_model, future, model_path)

    def create_rest_client(self) -> LocalRestClient:
        return LocalRestClient(self.store)

    def get_server_capabilities(self) -> types.GetServerCapabilitiesResponse:
        """The models of the table that the engine runs; others of their families work too."""
        return types.GetServerCapabilitiesResponse(
            supported_models=[
                types.SupportedModel(
                    model_name=name,
                    max_context_length=info.context_length,
                    trainable=True,
                    sampleable=True,
                )
                for name, info in models.TABLE.items()
                if info.family in FAMILIES
            ]
        )

    async def get_server_capabilities_async(self) -> types.GetServerCapabilitiesResponse:
        return self.get_server_capabilities()

    def close(self, status: str = "success", detail: str | None = None) -> APIFuture[None]:
        """Ends the session: its runs take no more checkpoints and may be written by others."""
        for handle in self._runs:
            handle.close()
        done: Future[None] = Future()
        done.set_result(None)
        return AwaitableConcurrentFuture(done)

    def __enter__(self) -> LocalServiceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- inside

    def _next_model_id(self, base_model: str, user_metadata: dict[str, str] | None) -> str:
        """What the run's directory in the store is called: recipe, model, date and a few digits."""
        self._models += 1
        recipe = {**self._user_metadata, **(user_metadata or {})}.get("recipe", "")
        model = str(base_model).rstrip("/").rpartition("/")[2]
        number = f"-{self._models}" if self._models > 1 else ""
        parts = [re.sub(r"[^\w.+-]+", "_", part)[:60].lstrip(".") for part in (recipe, model)]
        return "-".join([*filter(None, parts), f"{self._session}{number}"])

    def _start(
        self,
        model_id: str,
        base_model: str,
        spec: LoraSpec,
        user_metadata: dict[str, str] | None,
    ) -> Trainer:
        base = self.engine.base_model(models.load_path(base_model))
        run = self.store.create_run(
            model_id,
            base_model,
            spec.rank,
            spec.train_mlp,
            spec.train_attn,
            spec.train_unembed,
            {**self._user_metadata, **(user_metadata or {})},
        )
        self._runs.append(run)
        return Trainer(base, spec)

    def _from_state(
        self,
        path: str,
        base_model: str | None,
        user_metadata: dict[str, str] | None,
        optimizer: bool,
    ) -> LocalTrainingClient:
        found = weights(self.store, path, "weights", base_model)
        model_id = self._next_model_id(found.base_model, user_metadata)

        def start() -> Trainer:
            with found.open() as files:
                trainer = self._start(model_id, found.base_model, files.spec, user_metadata)
                _fill(self.engine, trainer, files, optimizer)
                return trainer

        return LocalTrainingClient(self, model_id, found.base_model, start)


def _fill(engine: Engine, trainer: Trainer, files: Files, optimizer: bool) -> None:
    """optimizer: everything is as when it was saved, the last bits of what follows included."""
    files.read(trainer.adapter, trainer.base)
    if optimizer:
        files.read_optimizer(trainer)
        if files.num_threads is not None and trainer.base.device.type == "cpu":
            engine.thread_count.keep(files.num_threads)
    else:
        trainer.reset()


def _published(base_model: Any) -> Any:
    """The name that run, checkpoints and clients tell; what is no name is refused later on."""
    return models.loaded_name(base_model) if isinstance(base_model, str) else base_model


def _check_optimizer(optimizer: Any) -> None:
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


def _refuse(given: Mapping[str, Any], allowed: Mapping[str, Any]) -> None:
    """Keys of the SDK that change results and are not implemented: only their defaults pass."""
    for key, value in given.items():
        if key not in allowed:
            raise TypeError(f"unexpected keyword argument {key!r}")
        if value != allowed[key]:
            raise ConfigurationError(f"{key}={value!r} is not supported; use {allowed[key]!r}")


class _Converted(APIFuture[T]):
    """The engine's answer in the SDK's types, which are made by whoever asks for the result: the
    engine's thread has better things to do, and a call costs one future less.
    """

    def __init__(self, future: Future[Any], convert: Callable[[Any], T]) -> None:
        self._future = future
        self._convert = convert
        self._values: list[T] = []  # the result, once it was asked for

    def result(self, timeout: float | None = None) -> T:
        return self._value(self._future.result(timeout))

    async def result_async(self, timeout: float | None = None) -> T:
        if timeout is None:
            return self._value(await asyncio.wrap_future(self._future))
        async with asyncio.timeout(timeout):
            return await self.result_async()

    def future(self) -> Future[T]:
        return _then(self._future, self._value).future()

    def _value(self, answer: Any) -> T:
        if not self._values:
            self._values.append(self._convert(answer))
        return self._values[0]


def _then(future: Future[Any], convert: Callable[[Any], T]) -> AwaitableConcurrentFuture[T]:
    """A future of the converted result."""
    out: Future[T] = Future()

    def finish(done: Future[Any]) -> None:
        if not out.set_running_or_notify_cancel():
            return
        try:
            out.set_result(convert(done.result()))
        except BaseException as error:
            out.set_exception(error)

    future.add_done_callback(finish)
    out.add_done_callback(lambda done: done.cancelled() and future.cancel())
    return AwaitableConcurrentFuture(out)


def _failed(error: Exception) -> AwaitableConcurrentFuture[Any]:
    out: Future[Any] = Future()
    out.set_exception(error)
    return AwaitableConcurrentFuture(out)


def _submitting_twin(name: str) -> Callable[..., Any]:
    """`x_async(...)`: calls x and gives its future back, as the SDK's deprecated names do."""

    async def twin(self: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, name)(*args, **kwargs)

    twin.__name__ = f"{name}_async"
    return twin


def _awaiting_twin(name: str) -> Callable[..., Any]:
    """`create_x_async(...)`: the client itself, once it exists."""

    async def twin(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await getattr(self, name)(*args, **kwargs)

    twin.__name__ = f"{name}_async"
    return twin


async def _get_info_async(self: LocalTrainingClient) -> types.GetInfoResponse:
    await self
    return self.get_info()


for _name in (
    "forward",
    "forward_backward",
    "forward_backward_custom",
    "optim_step",
    "save_state",
    "save_weights_for_sampler",
    "load_state",
    "load_state_with_optimizer",
):
    setattr(LocalTrainingClient, f"{_name}_async", _submitting_twin(_name))
for _name in ("save_weights_and_get_sampling_client", "create_sampling_client"):
    setattr(LocalTrainingClient, f"{_name}_async", _awaiting_twin(_name))
LocalTrainingClient.get_info_async = _get_info_async  # type: ignore[attr-defined]
for _name in (
    "create_lora_training_client",
    "create_training_client_from_state",
    "create_training_client_from_state_with_optimizer",
    "create_sampling_client",
):
    setattr(LocalServiceClient, f"{_name}_async", _awaiting_twin(_name))
