"""A user's session with an engine: training runs, checkpoints and sampling weights.

The in-process clients and the server are thin layers over it. It takes the SDK's types and returns
futures of the engine's results.

The engine orders requests by *lane*, a first-in-first-out queue for each run and for each set of
sampling weights. Requests in one lane are executed in the order of submission; different lanes do
not wait for each other. Reading and writing checkpoint files happens on other threads, so that a
slow disk does not block the engine's thread, which all users share. The operation still takes its
place in the run's lane at the time of the call. There is no order between lanes: before reading
another run's checkpoint, wait for the future of its save.
"""

from __future__ import annotations

import itertools
import re
import secrets
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from typing import Protocol, TypeVar

from tinker import types

from tinker_cookbook import models
from tinker_cookbook.engine.lora import LoraSpec
from tinker_cookbook.engine.requests import (
    BaseWeights,
    CreateRun,
    CustomLoss,
    DropRun,
    DropWeights,
    Forward,
    ForwardBackward,
    ForwardBackwardCustom,
    Load,
    LoadWeights,
    OnToken,
    OptimStep,
    Request,
    RunFacts,
    Sample,
    SampleRequest,
    SampleResult,
    Save,
    Snapshot,
    SnapshotWeights,
    TrainResult,
    WeightsRef,
    run_lane,
    weights_lane,
)
from tinker_cookbook.service import convert, model_files
from tinker_cookbook.service.futures import failed, then
from tinker_cookbook.service.loading import WeightsFiles, weights_files
from tinker_cookbook.service.store import Kind, RunHandle, Store

R = TypeVar("R")
T = TypeVar("T")
LossConfig = Mapping[str, float | str] | None
# submits a request to the engine and blocks until its result; see `Session._submit_with_files`
Execute = Callable[[Request[R]], R]


class EngineQueue(Protocol):
    """The engine's interface to a session; see `engine.scheduler.Engine`."""

    def submit(self, request: Request[R], on_token: OnToken | None = None) -> Future[R]: ...

    def submit_when(
        self, coming: Future[Request[R]], lane: str, on_token: OnToken | None = None
    ) -> Future[R]: ...

    def dispose(self, request: DropRun | DropWeights) -> None: ...

    @property
    def tokens_per_pass(self) -> int | None: ...


class _FileQueue:
    """File operations of one run, executed one at a time in the order of submission.

    Each runs on a daemon thread, so a download or a slow disk cannot keep the process from exiting.
    Atomic checkpoint writes make that safe.
    """

    def __init__(self) -> None:
        # held while an operation is added to this queue and to the engine's lane
        self.order = threading.Lock()
        self._last: Future[None] | None = None

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """Add an operation; the caller must hold `order`."""
        result: Future[T] = Future()
        # Separate from `result`, which is done early if the caller cancels it: the next operation
        # must wait until this one has really ended.
        ended: Future[None] = Future()
        previous = self._last

        def work() -> None:
            if previous is not None:
                wait([previous])
            try:
                if result.set_running_or_notify_cancel():
                    result.set_result(action())
            except BaseException as error:  # any kind: the caller waits for the result
                result.set_exception(error)
            finally:
                ended.set_result(None)

        threading.Thread(target=work, name="files", daemon=True).start()
        self._last = ended
        return result


class Run:
    """One adapter in training. The engine frees it once this object is garbage-collected."""

    def __init__(self, engine: EngineQueue, id: str, base_model: str) -> None:
        self.id = id
        self.base_model = base_model
        self.files = _FileQueue()
        self.created: Future[RunFacts] = Future()
        _dispose_when_collected(self, engine, DropRun(id))


class WeightsHandle:
    """Weights to sample from; `ready` is done once the engine has them.

    The engine frees them once this object is garbage-collected.
    """

    def __init__(self, engine: EngineQueue, id: str, base_model: str, path: str | None) -> None:
        self.id = id
        self.base_model = base_model
        self.path = path
        self.ready: Future[WeightsRef] = Future()
        _dispose_when_collected(self, engine, DropWeights(id))


def _dispose_when_collected(
    holder: object, engine: EngineQueue, drop: DropRun | DropWeights
) -> None:
    # not at exit, when the process frees everything anyway
    weakref.finalize(holder, engine.dispose, drop).atexit = False


class Session:
    """One user's runs and sampling weights, over an engine and a store."""

    def __init__(
        self, engine: EngineQueue, store: Store, user_metadata: dict[str, str] | None = None
    ) -> None:
        self.engine = engine
        self.store = store
        self._user_metadata = user_metadata or {}
        self._name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._run_numbers = itertools.count(1)
        self._weights_numbers = itertools.count(1)
        self._handles: list[RunHandle] = []

    # -- runs

    def create_run(
        self,
        base_model: str,
        spec: Callable[[], LoraSpec],
        user_metadata: dict[str, str] | None = None,
    ) -> Run:
        """Start a run with a new adapter."""
        base_model = published(base_model)
        run = self._new_run(base_model, user_metadata)
        run_id = run.id  # `create` keeps no reference to `run`, which may be dropped meanwhile

        def create(execute: Execute[RunFacts]) -> RunFacts:
            model_files.fetch(base_model).result()
            facts = execute(CreateRun(run_id, models.load_path(base_model), spec()))
            return self._register_run(run_id, base_model, facts, user_metadata)

        run.created = self._submit_with_files(run.files, run_lane(run.id), create)
        return run

    def create_run_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        *,
        optimizer: bool,
    ) -> Run:
        """Start a run with the weights of a checkpoint.

        optimizer: whether to restore the optimizer state, too, and resume exactly; else it is new.
        """
        source = weights_files(self.store, path, "weights", base_model)
        run = self._new_run(source.base_model, user_metadata)
        run_id = run.id

        def create(execute: Execute[RunFacts]) -> RunFacts:
            model_files.fetch(source.base_model).result()
            with source.open(self._new_weights_id()) as weights:
                facts = execute(CreateRun(run_id, weights.model, None, weights, optimizer))
            return self._register_run(run_id, source.base_model, facts, user_metadata)

        run.created = self._submit_with_files(run.files, run_lane(run.id), create)
        return run

    def forward(
        self, run: Run, data: Sequence[types.Datum], loss_fn: str, config: LossConfig
    ) -> Future[TrainResult]:
        return self._train(Forward, run, data, loss_fn, config)

    def forward_backward(
        self, run: Run, data: Sequence[types.Datum], loss_fn: str, config: LossConfig
    ) -> Future[TrainResult]:
        return self._train(ForwardBackward, run, data, loss_fn, config)

    def forward_backward_custom(
        self, run: Run, data: Sequence[types.Datum], function: CustomLoss
    ) -> Future[TrainResult]:
        return self._submit(
            run,
            lambda: ForwardBackwardCustom(run.id, convert.custom_loss_sequences(data), function),
        )

    def optim_step(self, run: Run, params: types.AdamParams) -> Future[dict[str, float]]:
        return self._submit(run, lambda: OptimStep(run.id, convert.to_adam_config(params)))

    def save(
        self,
        run: Run,
        kind: Kind,
        name: str,
        *,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: dict[str, str] | None = None,
    ) -> Future[str]:
        """Save a checkpoint of the run after the requests submitted so far; returns its path.

        kind: "weights" with the optimizer state, or "sampler_weights" without.
        """

        def write(execute: Execute[None]) -> str:
            run.created.result()
            return self.store.write_checkpoint(
                run.id,
                kind,
                name,
                lambda directory: execute(
                    Save(run.id, str(directory), run.base_model, optimizer=kind == "weights")
                ),
                overwrite=overwrite,
                ttl_seconds=ttl_seconds,
                user_metadata=user_metadata,
            )

        return self._submit_with_files(run.files, run_lane(run.id), write)

    def load(self, run: Run, path: str, *, optimizer: bool) -> Future[None]:
        """Load a checkpoint's weights into the run, with its optimizer state or a new one."""

        def read(execute: Execute[None]) -> None:
            run.created.result()
            source = weights_files(self.store, path, "weights", run.base_model)
            with source.open(self._new_weights_id()) as weights:
                execute(Load(run.id, weights, optimizer))

        return self._submit_with_files(run.files, run_lane(run.id), read)

    # -- sampling

    def snapshot(self, run: Run, name: str | None = None) -> WeightsHandle:
        """A snapshot of the run's weights after the requests submitted so far.

        With a name, they are also saved as a checkpoint.
        """
        saved = None if name is None else self.save(run, "sampler_weights", name)
        weights = WeightsHandle(self.engine, self._new_weights_id(), run.base_model, None)
        ref = SnapshotWeights(models.load_path(run.base_model), weights.id)
        taken = self._submit(run, lambda: Snapshot(run.id, ref))
        # Keep the handle alive until the engine has the snapshot. DropWeights is not in the run's
        # lane: it could overtake the Snapshot and free nothing, and the snapshot would never go.
        keep_alive = [weights]
        taken.add_done_callback(lambda _: keep_alive.clear())
        weights.ready = _when_taken_and_saved(ref, taken, saved)
        return weights

    def base_weights(self, base_model: str) -> WeightsHandle:
        """The weights of a base model, without an adapter."""
        name = published(base_model)
        weights = WeightsHandle(self.engine, self._new_weights_id(), name, None)
        id = weights.id

        def make_ref() -> WeightsRef:
            return BaseWeights(models.load_path(name), id)

        def make_request(_: None) -> Request[None]:
            return LoadWeights(make_ref())

        pending_request = then(model_files.fetch(name), make_request)
        loaded = self.engine.submit_when(pending_request, weights_lane(id))
        weights.ready = then(loaded, lambda _: make_ref())
        return weights

    def saved_weights(self, path: str, base_model: str | None = None) -> WeightsHandle:
        """The weights of a checkpoint (a tinker:// path, or a directory: see `checkpoint_dirs`)."""
        source: WeightsFiles = weights_files(self.store, path, "sampler_weights", base_model)
        weights = WeightsHandle(self.engine, self._new_weights_id(), source.base_model, path)
        id = weights.id

        def read(execute: Execute[None]) -> WeightsRef:
            model_files.fetch(source.base_model).result()
            with source.open(id) as ref:
                execute(LoadWeights(ref))
                return ref

        weights.ready = self._submit_with_files(_FileQueue(), weights_lane(id), read)
        return weights

    def sample(
        self,
        weights: WeightsHandle,
        make_request: Callable[[], SampleRequest],
        on_token: OnToken | None = None,
    ) -> Future[SampleResult]:
        """Sample with `weights`. An exception of `make_request` becomes the future's."""
        try:
            sample_request = make_request()
        except Exception as error:
            return failed(error)
        ready = weights.ready
        if not ready.done() or ready.cancelled():

            def make_sample(ref: WeightsRef) -> Request[SampleResult]:
                return Sample(ref, sample_request)

            pending_request = then(ready, make_sample)
            return self.engine.submit_when(pending_request, weights_lane(weights.id), on_token)
        if (error := ready.exception()) is not None:
            return failed(error)
        return self.engine.submit(Sample(ready.result(), sample_request), on_token)

    def close(self) -> None:
        """End the session: its runs accept no more checkpoints, and others may write them."""
        for handle in self._handles:
            handle.close()

    # -- internals

    def _train(
        self,
        kind: type[Forward] | type[ForwardBackward],
        run: Run,
        data: Sequence[types.Datum],
        loss_fn: str,
        config: LossConfig,
    ) -> Future[TrainResult]:
        return self._submit(
            run, lambda: kind(run.id, convert.train_sequences(data), loss_fn, config)
        )

    def _submit(self, run: Run, make_request: Callable[[], Request[R]]) -> Future[R]:
        """Submit a request of a run. If the run could not be created, it fails with that error."""
        try:
            request = make_request()
        except Exception as error:  # invalid values of the caller
            return failed(error)
        if not run.created.done() or run.created.cancelled():
            return self.engine.submit_when(then(run.created, lambda _: request), request.lane)
        if (error := run.created.exception()) is not None:
            return failed(error)
        return self.engine.submit(request)

    def _submit_with_files(
        self, files: _FileQueue, lane: str, action: Callable[[Execute[R]], T]
    ) -> Future[T]:
        """Run a file operation that calls `execute(request)` once, on the thread of `files`.

        The request's place in the engine's lane is reserved now, so later requests of the lane
        are executed after it, although it is only known once `action` gets to it.
        """
        pending_request: Future[Request[R]] = Future()

        def execute(request: Request[R]) -> R:
            pending_request.set_result(request)
            return engine_result.result()

        def work() -> T:
            try:
                return action(execute)
            except BaseException as error:
                if not pending_request.done():
                    pending_request.set_exception(error)  # or the lane would wait forever
                raise

        # Both queues must have the same order. Otherwise operation A could be first in the lane and
        # B first in the file queue, and each would wait for the other.
        with files.order:
            engine_result = self.engine.submit_when(pending_request, lane)
            try:
                result = files.submit(work)
            except BaseException as error:  # e.g. no thread can be started
                pending_request.set_exception(error)
                raise
        result.add_done_callback(lambda done: done.cancelled() and pending_request.cancel())
        return result

    def _new_run(self, base_model: str, user_metadata: dict[str, str] | None) -> Run:
        """A Run with a new id, also its directory's name: recipe, model, date and a few digits."""
        number = next(self._run_numbers)
        recipe = {**self._user_metadata, **(user_metadata or {})}.get("recipe", "")
        model = str(base_model).rstrip("/").rpartition("/")[2]
        suffix = f"-{number}" if number > 1 else ""
        parts = [re.sub(r"[^\w.+-]+", "_", part)[:60].lstrip(".") for part in (recipe, model)]
        run_id = "-".join([*filter(None, parts), f"{self._name}{suffix}"])
        return Run(self.engine, run_id, base_model)

    def _new_weights_id(self) -> str:
        return f"{self._name}-{next(self._weights_numbers)}"

    def _register_run(
        self,
        run_id: str,
        base_model: str,
        facts: RunFacts,
        user_metadata: dict[str, str] | None,
    ) -> RunFacts:
        """Add a run that the engine has created to the store."""
        spec = facts.spec
        handle = self.store.create_run(
            run_id,
            base_model,
            spec.rank,
            spec.train_mlp,
            spec.train_attn,
            spec.train_unembed,
            {**self._user_metadata, **(user_metadata or {})},
        )
        self._handles.append(handle)
        return facts


def _when_taken_and_saved(
    ref: WeightsRef, taken: Future[None], saved: Future[str] | None
) -> Future[WeightsRef]:
    """A snapshot's reference, once the snapshot was taken and, if `saved` is given, saved."""
    taken_ref = then(taken, lambda _: ref)
    if saved is None:
        return taken_ref
    ready: Future[WeightsRef] = Future()

    def finish(last: Future[WeightsRef] | Future[str]) -> None:
        with suppress(InvalidStateError):  # `ready` was cancelled
            if (error := last.exception()) is not None:
                ready.set_exception(error)
            else:
                ready.set_result(ref)

    def await_snapshot(first: Future[str]) -> None:
        if first.exception() is not None:
            finish(first)
        else:
            taken_ref.add_done_callback(finish)

    saved.add_done_callback(await_snapshot)
    return ready


def published(base_model: str) -> str:
    """The model name that runs, checkpoints and clients report. Values that are not strings pass,
    and `model_files.fetch` rejects them."""
    if not isinstance(base_model, str):
        return base_model
    return models.absolute_name(models.loaded_name(base_model))


def new_seed() -> int:
    """A random seed for an adapter without one."""
    return secrets.randbits(31)
