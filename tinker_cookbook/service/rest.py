"""The SDK's RestClient, answered from the store in this process.

Same methods, same answer types, same futures (already completed). What only a server can know,
such as sessions and bills, is refused by name.
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

from tinker_cookbook.engine.peft_adapters import PeftAdapter, load_adapter_info
from tinker_cookbook.exceptions import TinkerCookbookError, TrainingError
from tinker_cookbook.service.loading import find
from tinker_cookbook.service.store import CheckpointInfo, Kind, RunInfo, Store, page, parse_path

P = ParamSpec("P")
T = TypeVar("T")
AccessScope = Literal["owned", "accessible"]  # the same here: there is one owner

CHECKPOINT_TYPES: dict[Kind, Literal["training", "sampler", "external"]] = {
    "weights": "training",
    "sampler_weights": "sampler",
    "external_weights": "external",
}


def _answer(method: Callable[P, T]) -> Callable[P, APIFuture[T]]:
    """Call now, hand out a completed future; an error on purpose is raised by its result()."""

    @functools.wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> APIFuture[T]:
        future: Future[T] = Future()
        try:
            future.set_result(method(*args, **kwargs))
        except TinkerCookbookError as error:
            future.set_exception(error)
        return AwaitableConcurrentFuture(future)

    return call


def _twin(
    method: Callable[Concatenate[Any, P], APIFuture[T]],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The deprecated `*_async` spelling of a method: a coroutine that gives the answer itself."""
    name = method.__name__

    @functools.wraps(method)
    async def call(self: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        return await getattr(self, name)(*args, **kwargs)

    call.__name__ = f"{name}_async"
    return call


class LocalRestClient:
    """Runs and checkpoints of a store under the names of `tinker`'s RestClient.

    Errors are CheckpointError (store.py says which); TrainingError where a server is needed.
    """

    def __init__(self, store: Store):
        self._store = store

    # -- runs

    @_answer
    def get_training_run(
        self, training_run_id: str, access_scope: AccessScope = "owned"
    ) -> types.TrainingRun:
        return self._training_run(self._store.get_run(training_run_id))

    @_answer
    def get_training_run_by_tinker_path(
        self, tinker_path: str, access_scope: AccessScope = "owned"
    ) -> types.TrainingRun:
        """Of a PEFT adapter's directory: a run without metadata."""
        located = self._locate(tinker_path)
        if isinstance(located, PeftAdapter):
            info = RunInfo(tinker_path, datetime.now(UTC), located.base_model, located.spec.rank)
            return _training_run(info, {})
        return self._training_run(self._store.get_run(parse_path(located).run_id))

    @_answer
    def list_training_runs(
        self,
        limit: int = 20,
        offset: int = 0,
        access_scope: AccessScope = "owned",
        project_id: str | None = None,
    ) -> types.TrainingRunsResponse:
        """Newest activity first."""
        if project_id is not None:
            raise TrainingError(
                f"list_training_runs(project_id={project_id!r}): there are no projects in process; "
                "leave project_id out"
            )
        runs = [self._training_run(run) for run in self._store.list_runs(limit, offset)]
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(self._store.run_ids()))
        return types.TrainingRunsResponse(training_runs=runs, cursor=cursor)

    @_answer
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

    @_answer
    def list_checkpoints(self, training_run_id: str) -> types.CheckpointsListResponse:
        """Newest first."""
        infos = self._store.list_checkpoints(training_run_id)
        return types.CheckpointsListResponse(checkpoints=[_checkpoint(info) for info in infos])

    @_answer
    def list_user_checkpoints(
        self, limit: int = 100, offset: int = 0
    ) -> types.CheckpointsListResponse:
        """Of every run, newest first."""
        everything = self._store.list_all()
        found = page(everything, limit, offset)
        cursor = types.Cursor(offset=offset, limit=limit, total_count=len(everything))
        return types.CheckpointsListResponse(
            checkpoints=[_checkpoint(info) for info in found], cursor=cursor
        )

    @_answer
    def delete_checkpoint(self, training_run_id: str, checkpoint_id: str) -> None:
        """`checkpoint_id` is kind and name: "weights/000020"."""
        self._store.delete(f"tinker://{training_run_id}/{checkpoint_id}")

    @_answer
    def delete_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        self._store.delete(tinker_path)

    @_answer
    def set_checkpoint_ttl_from_tinker_path(
        self, tinker_path: str, ttl_seconds: int | None
    ) -> None:
        """Counts from now; None = never expires."""
        self._store.set_ttl(tinker_path, ttl_seconds)

    @_answer
    def publish_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        self._store.set_public(tinker_path, True)

    @_answer
    def unpublish_checkpoint_from_tinker_path(self, tinker_path: str) -> None:
        self._store.set_public(tinker_path, False)

    @_answer
    def get_external_weights_urls(self, tinker_path: str) -> types.ExternalWeightsUrlsResponse:
        """file:// URLs by relative name, for a checkpoint of any kind."""
        info = self._store.find(tinker_path)
        urls = {name: (info.directory / name).as_uri() for name in info.manifest["files"]}
        expires = info.expires_at or datetime.now(UTC) + timedelta(days=1)
        return types.ExternalWeightsUrlsResponse(urls=urls, expires=expires)

    def _link_checkpoint(self, tinker_path: str, at: Path) -> None:
        """`Store.link`, for CheckpointManager; the SDK's client has no such method."""
        self._store.link(tinker_path, at)

    def get_telemetry(self) -> None:
        """There is none in process."""
        return None

    get_training_run_async = _twin(get_training_run)
    get_training_run_by_tinker_path_async = _twin(get_training_run_by_tinker_path)
    list_training_runs_async = _twin(list_training_runs)
    list_checkpoints_async = _twin(list_checkpoints)
    list_user_checkpoints_async = _twin(list_user_checkpoints)
    delete_checkpoint_async = _twin(delete_checkpoint)
    delete_checkpoint_from_tinker_path_async = _twin(delete_checkpoint_from_tinker_path)
    set_checkpoint_ttl_from_tinker_path_async = _twin(set_checkpoint_ttl_from_tinker_path)
    publish_checkpoint_from_tinker_path_async = _twin(publish_checkpoint_from_tinker_path)
    unpublish_checkpoint_from_tinker_path_async = _twin(unpublish_checkpoint_from_tinker_path)
    get_external_weights_urls_async = _twin(get_external_weights_urls)

    def _locate(self, path: str) -> str | PeftAdapter:
        """A tinker:// path for whatever is in the store."""
        located = find(self._store, path, "weights")
        return located if isinstance(located, str) else load_adapter_info(located)

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
    def refuse(self: LocalRestClient, *args: Any, **kwargs: Any) -> Any:
        raise TrainingError(
            f"RestClient.{name}() needs a server: in process there are no sessions, projects, "
            "accounts or bills; connect(base_url=...) reaches one"
        )

    refuse.__name__ = name
    refuse.__dict__["__signature__"] = inspect.signature(getattr(RestClient, name))
    return refuse


# Whatever else the installed SDK offers answers with its name, not with an AttributeError.
for _name in dir(RestClient):
    if not _name.startswith("_") and not hasattr(LocalRestClient, _name):
        setattr(LocalRestClient, _name, _needs_server(_name))
