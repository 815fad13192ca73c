"""In-process implementation of the SDK's RestClient, backed by the local store.

It has the same methods, response types and futures (already completed). Methods that need a server,
e.g. for sessions or billing, raise an error that names the method.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar

from tinker import APIFuture, types
from tinker.lib.public_interfaces.api_future import AwaitableConcurrentFuture
from tinker.lib.public_interfaces.rest_client import RestClient

from tinker_cookbook.engine import peft_adapters
from tinker_cookbook.engine.peft_adapters import PeftAdapter
from tinker_cookbook.exceptions import TinkerCookbookError, TrainingError
from tinker_cookbook.service.loading import find_weights
from tinker_cookbook.service.store import CheckpointInfo, Kind, RunInfo, Store, paginate, parse_path

P = ParamSpec("P")
T = TypeVar("T")
AccessScope = Literal["owned", "accessible"]  # both mean the same here, as there is only one user

CHECKPOINT_TYPES: dict[Kind, Literal["training", "sampler", "external"]] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def _completed_future(method: Callable[P, T]) -> Callable[P, APIFuture[T]]:
    """Run the method at once and return a completed future.

    The project's own exceptions are raised by its result(), as with the SDK; others are bugs and
    propagate immediately.
    """

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> APIFuture[T]:
        future: Future[T] = Future()
        try:
            future.set_result(method(*args, **kwargs))
        except TinkerCookbookError as error:
            future.set_exception(error)
        return AwaitableConcurrentFuture(future)

    return call


def _async_alias(
    method: Callable[Concatenate[Any, P], APIFuture[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The deprecated `*_async` alias of a method, a coroutine that returns the result itself."""
    name = method.__name__

    @functools.wraps(method)
    async def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return await getattr(self, name)(*args, **kwargs)

    call.__name__ = f"{name}_async"
    return call


class LocalRestClient:
    """Runs and checkpoints of a store, with the interface of `tinker`'s RestClient.

    Raises the store's CheckpointError, and TrainingError for what needs a server.
    """

    def __init__(self, store: Store):
        self._store = store

    # -- runs

    @_completed_future
    def get_training_run(
        self, training_run_id: str, access_scope: AccessScope = "owned"
    ) -> types.TrainingRun:
        return self._training_run(self._store.get_run(training_run_id))

    @_completed_future
    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: AccessScope = "owned"
    ) -> types.TrainingRun:
        """The run of a checkpoint; for a PEFT adapter directory, a placeholder run."""
        located = self._locate(tinker_path)
        if isinstance(located, PeftAdapter):
            info = RunInfo(tinker_path, datetime.now(UTC), located.base_model, located.spec.rank)
            return _training_run(info, {})
        return self._training_run(self._store.get_run(parse_path(located).run_id))

    @_completed_future
    def list_training_runs(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: AccessScope = "owned",
        project_id: str | None = None,
    ) -> types.TrainingRunsResponse:
        """Runs, the most recently active first."""
        if project_id is not None:
            raise TrainingError(
                f"list_training_runs(project_id={project_id!r}): the local store has no projects; "
                "omit project_id"
            )
        runs = [self._training_run(run) for run in self._store.list_runs(limit, offset)]
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(self._store.run_ids()))
        return types.TrainingRunsResponse(training_runs=runs, cursor=cursor)

    @_completed_future
    def get_weights_info_by_tinker_path(self, tinker_path: str) -> types.WeightsInfoResponse:
        located = self._locate(tinker_path)
        if isinstance(located, PeftAdapter):
            spec = located.spec
            return types.WeightsInfoResponse(
                base_model=located.base_model,
                is_lora=True,
                lora_rank=spec.rank,
                train_unembed=spec.train_unembed,
                train_mlp=spec.train_mlp,
                train_attn=spec.train_attn,
            )
        manifest = self._store.find(located).manifest
        return types.WeightsInfoResponse(
            base_model=manifest["base_model"],
            is_lora=True,
            lora_rank=manifest["rank"],
            train_unembed=manifest["train_unembed"],
            train_mlp=manifest["train_mlp"],
            train_attn=manifest["train_attn"],
        )

    # -- checkpoints

    @_completed_future
    def list_checkpoints(self, training_run_id: str) -> types.CheckpointsListResponse:
        """One run's checkpoints, newest first."""
        infos = self._store.list_checkpoints(training_run_id)
        return types.CheckpointsListResponse(checkpoints=[_checkpoint(info) for info in infos])

    @_completed_future
    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> types.CheckpointsListResponse:
        """The checkpoints of all runs, newest first."""
        infos = self._store.list_all()
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(infos))
        return types.CheckpointsListResponse(
            checkpoints=[_checkpoint(info) for info in paginate(infos, limit, offset)],
            cursor=cursor,
        )

    @_completed_future
    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> None:
        """checkpoint_id: kind and name, e.g. "weights/000020"."""
        self._store.delete(f"tinker://{training_run_id}/{checkpoint_id}")

    @_completed_future
    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        self._store.delete(tinker_path)

    @_completed_future
    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> None:
        """The TTL counts from now. None: the checkpoint never expires."""
        self._store.set_ttl(tinker_path, ttl_seconds)

    @_completed_future
    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        self._store.set_public(tinker_path, True)

    @_completed_future
    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        self._store.set_public(tinker_path, False)

    @_completed_future
    def get_external_weights_urls(self, tinker_path: str) -> types.ExternalWeightsUrlsResponse:
        """file:// URLs by relative file name, for a checkpoint of any kind."""
        info = self._store.find(tinker_path)
        urls = {name: (info.directory / name).as_uri() for name in info.manifest["files"]}
        expires = info.expires_at or datetime.now(UTC) + timedelta(days=1)
        return types.ExternalWeightsUrlsResponse(urls=urls, expires=expires)

    def _link_checkpoint(self, tinker_path: str, link_path: Path) -> None:
        """`Store.link`, for CheckpointManager; not a method of the SDK's client."""
        self._store.link(tinker_path, link_path)

    def get_telemetry(self) -> None:
        """None: there is no telemetry in process."""
        return None

    get_training_run_async = _async_alias(get_training_run)
    get_training_run_by_tinker_path_async = _async_alias(get_training_run_by_tinker_path)
    list_training_runs_async = _async_alias(list_training_runs)
    list_checkpoints_async = _async_alias(list_checkpoints)
    list_user_checkpoints_async = _async_alias(list_user_checkpoints)
    delete_checkpoint_async = _async_alias(delete_checkpoint)
    delete_checkpoint_from_tinker_path_async = _async_alias(delete_checkpoint_from_tinker_path)
    set_checkpoint_ttl_from_tinker_path_async = _async_alias(set_checkpoint_ttl_from_tinker_path)
    publish_checkpoint_from_tinker_path_async = _async_alias(publish_checkpoint_from_tinker_path)
    unpublish_checkpoint_from_tinker_path_async = _async_alias(
        unpublish_checkpoint_from_tinker_path
    )
    get_external_weights_urls_async = _async_alias(get_external_weights_urls)

    def _locate(self, path: str) -> str | PeftAdapter:
        """Resolve a path to a tinker:// path of the store, or to a PEFT adapter outside it."""
        located = find_weights(self._store, path, "weights")
        return located if isinstance(located, str) else peft_adapters.load_adapter_info(located)

    def _training_run(self, run: RunInfo) -> types.TrainingRun:
        newest: dict[Kind, types.Checkpoint] = {}
        for info in self._store.list_checkpoints(run.run_id):
            newest.setdefault(info.path.kind, _checkpoint(info))
        return _training_run(run, newest)


def _training_run(run: RunInfo, newest: dict[Kind, types.Checkpoint]) -> types.TrainingRun:
    return types.TrainingRun(
        training_run_id=run.run_id,
        base_model=run.base_model,
        model_owner="local",
        is_lora=True,
        corrupted=run.corrupted,
        lora_rank=run.rank,
        last_request_time=run.last_request_time,
        last_checkpoint=newest.get("weights"),
        last_sampler_checkpoint=newest.get("sampler_weights"),
        user_metadata=run.user_metadata,
    )


def _checkpoint(info: CheckpointInfo) -> types.Checkpoint:
    return types.Checkpoint(
        checkpoint_id=f"{info.path.kind}/{info.path.name}",
        checkpoint_type=CHECKPOINT_TYPES[info.path.kind],
        time=info.time,
        tinker_path=str(info.path),
        size_bytes=info.manifest["size_bytes"],
        public=info.manifest["public"],
        user_metadata=info.manifest["user_metadata"],
        expires_at=info.expires_at,
    )


def _needs_server(name: str) -> Callable[..., Any]:
    def raise_error(self: LocalRestClient, *args: Any, **kwargs: Any) -> Any:
        raise TrainingError(
            f"RestClient.{name}() needs a server: the in-process service has no sessions, "
            "projects, accounts or billing; use connect(base_url=...)"
        )

    raise_error.__name__ = name
    raise_error.__dict__["__signature__"] = inspect.signature(getattr(RestClient, name))
    return raise_error


# The other methods of the installed SDK's RestClient raise this error, not an AttributeError.
for _name in dir(RestClient):
    if not _name.startswith("_") and not hasattr(LocalRestClient, _name):
        setattr(LocalRestClient, _name, _needs_server(_name))
