"""Runs and weights of one user of the engine, by name: the Tinker API without its clients.

The clients in this process and a server are two skins over it. It takes the SDK's types and answers
with futures of the engine's results. What an operation needs of files, to read a checkpoint or to
write one, is done on a thread beside the engine's; the operation's place among those of its run is
the one of the call. What is to be read of another run has to be saved by then: wait for its answer.
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
Ask = Callable[[Request[R]], R]  # have the engine carry out a request, and wait for its answer


class EngineQueue(Protocol):
    """What a session needs of an engine; see `engine.scheduler.Engine`."""

    def submit(self, request: Request[R], on_token: OnToken | None = None) -> Future[R]: ...

    def submit_when(
        self, coming: Future[Request[R]], lane: str, on_token: OnToken | None = None
    ) -> Future[R]: ...

    def dispose(self, request: DropRun | DropWeights) -> None: ...

    @property
    def tokens_per_pass(self) -> int | None: ...


class _FileLane:
    """Work with files, one thing after the other, each on a thread that nobody waits for when the
    process ends."""

    def __init__(self) -> None:
        self.order = threading.Lock()
        self._last: Future[None] | None = None

    def submit(self, action: Callable[[], T]) -> Future[T]:
        """Only with `order` held."""
        answer: Future[T] = Future()
        over: Future[None] = Future()
        before = self._last

        def work() -> None:
            if before is not None:
                wait([before])
            try:
                if answer.set_running_or_notify_cancel():
                    answer.set_result(action())
            except BaseException as error:  # whatever it is, somebody waits for it
                answer.set_exception(error)
            finally:
                over.set_result(None)

        threading.Thread(target=work, name="files", daemon=True).start()
        self._last = over
        return answer


class Run:
    """One adapter in training. The engine forgets it when nobody holds it any more."""

    def __init__(self, engine: EngineQueue, id: str, base_model: str) -> None:
        self.id = id
        self.base_model = base_model
        self.files = _FileLane()
        self.created: Future[RunFacts] = Future()
        _when_forgotten(self, engine, DropRun(id))


class WeightsHandle:
    """Weights to sample from, and their reference once they are there. The engine forgets them
    when nobody holds them any more."""

    def __init__(self, engine: EngineQueue, id: str, base_model: str, path: str | None) -> None:
        self.id = id
        self.base_model = base_model
        self.path = path
        self.ready: Future[WeightsRef] = Future()
        _when_forgotten(self, engine, DropWeights(id))


def _when_forgotten(holder: object, engine: EngineQueue, drop: DropRun | DropWeights) -> None:
    weakref.finalize(holder, engine.dispose, drop).atexit = False


class Session:
    """What one user does with an engine and a store."""

    def __init__(
        self, engine: EngineQueue, store: Store, user_metadata: dict[str, str] | None = None
    ) -> None:
        self.engine = engine
        self.store = store
        self._user_metadata = user_metadata or {}
        self._name = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
        self._numbers = itertools.count(1)
        self._weights = itertools.count(1)
        self._handles: list[RunHandle] = []

    # -- runs

    def create_run(
        self,
        base_model: str,
        spec: Callable[[], LoraSpec],
        user_metadata: dict[str, str] | None = None,
    ) -> Run:
        """A run with a fresh adapter."""
        base_model = published(base_model)
        run = self._new_run(base_model, user_metadata)

        def create(ask: Ask[RunFacts]) -> RunFacts:
            model_files.fetch(base_model).result()
            facts = ask(CreateRun(run_id, models.load_path(base_model), spec()))
            return self._enter(run_id, base_model, facts, user_metadata)

        run_id = run.id
        run.created = self._with_files(run.files, run_lane(run.id), create)
        return run

    def create_run_from_state(
        self,
        path: str,
        base_model: str | None = None,
        user_metadata: dict[str, str] | None = None,
        *,
        optimizer: bool,
    ) -> Run:
        """A run that starts with the weights of a checkpoint.

        optimizer: it goes on exactly where the checkpoint was saved; else its optimizer is fresh.
        """
        found = weights_files(self.store, path, "weights", base_model)
        run = self._new_run(found.base_model, user_metadata)

        def create(ask: Ask[RunFacts]) -> RunFacts:
            model_files.fetch(found.base_model).result()
            with found.open(self._weights_id()) as weights:
                facts = ask(CreateRun(run_id, weights.model, None, weights, optimizer))
            return self._enter(run_id, found.base_model, facts, user_metadata)

        run_id = run.id
        run.created = self._with_files(run.files, run_lane(run.id), create)
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
        return self._ask(
            run,
            lambda: ForwardBackwardCustom(run.id, convert.custom_loss_sequences(data), function),
        )

    def optim_step(self, run: Run, params: types.AdamParams) -> Future[dict[str, float]]:
        return self._ask(run, lambda: OptimStep(run.id, convert.adam_of(params)))

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
        """Write a checkpoint of the run as it is now: "weights" with the optimizer's state, or
        "sampler_weights" without. Answers with its tinker:// path."""

        def write(ask: Ask[None]) -> str:
            run.created.result()
            return self.store.write_checkpoint(
                run.id,
                kind,
                name,
                lambda directory: ask(
                    Save(run.id, str(directory), run.base_model, optimizer=kind == "weights")
                ),
                overwrite=overwrite,
                ttl_seconds=ttl_seconds,
                user_metadata=user_metadata,
            )

        return self._with_files(run.files, run_lane(run.id), write)

    def load(self, run: Run, path: str, *, optimizer: bool) -> Future[None]:
        """Take over the weights of a checkpoint; the optimizer's state too, or it starts anew."""

        def read(ask: Ask[None]) -> None:
            run.created.result()
            found = weights_files(self.store, path, "weights", run.base_model)
            with found.open(self._weights_id()) as weights:
                ask(Load(run.id, weights, optimizer))

        return self._with_files(run.files, run_lane(run.id), read)

    # -- sampling

    def snapshot(self, run: Run, name: str | None = None) -> WeightsHandle:
        """The weights as they are now; a checkpoint of them too, if they get a name."""
        saved = None if name is None else self.save(run, "sampler_weights", name)
        weights = WeightsHandle(self.engine, self._weights_id(), run.base_model, None)
        ref = SnapshotWeights(models.load_path(run.base_model), weights.id)
        kept = self._ask(run, lambda: Snapshot(run.id, ref))
        held = [weights]  # until then: what is dropped before it is there would stay for ever
        kept.add_done_callback(lambda _: held.clear())
        weights.ready = _once_there(ref, kept, saved)
        return weights

    def base_weights(self, base_model: str) -> WeightsHandle:
        """A base model alone."""
        name = published(base_model)
        weights = WeightsHandle(self.engine, self._weights_id(), name, None)

        id = weights.id

        def ref() -> WeightsRef:
            return BaseWeights(models.load_path(name), id)

        def request(_: None) -> Request[None]:
            return LoadWeights(ref())

        coming = then(model_files.fetch(name), request)
        loaded = self.engine.submit_when(coming, weights_lane(id))
        weights.ready = then(loaded, lambda _: ref())
        return weights

    def saved_weights(self, path: str, base_model: str | None = None) -> WeightsHandle:
        """Of a checkpoint (tinker://..., or a directory, see `checkpoint_dirs`)."""
        found: WeightsFiles = weights_files(self.store, path, "sampler_weights", base_model)
        weights = WeightsHandle(self.engine, self._weights_id(), found.base_model, path)
        id = weights.id

        def read(ask: Ask[None]) -> WeightsRef:
            model_files.fetch(found.base_model).result()
            with found.open(id) as ref:
                ask(LoadWeights(ref))
                return ref

        weights.ready = self._with_files(_FileLane(), weights_lane(id), read)
        return weights

    def sample(
        self,
        weights: WeightsHandle,
        request: Callable[[], SampleRequest],
        on_token: OnToken | None = None,
    ) -> Future[SampleResult]:
        """request: makes it; what is wrong with the caller's values is the answer's error."""
        try:
            asked = request()
        except Exception as error:
            return failed(error)
        ready = weights.ready
        if not ready.done() or ready.cancelled():

            def follow(ref: WeightsRef) -> Request[SampleResult]:
                return Sample(ref, asked)

            coming = then(ready, follow)
            return self.engine.submit_when(coming, weights_lane(weights.id), on_token)
        if (error := ready.exception()) is not None:
            return failed(error)
        return self.engine.submit(Sample(ready.result(), asked), on_token)

    def close(self) -> None:
        """Its runs take no more checkpoints and may be written by others."""
        for handle in self._handles:
            handle.close()

    # -- inside

    def _train(
        self,
        kind: type[Forward] | type[ForwardBackward],
        run: Run,
        data: Sequence[types.Datum],
        loss_fn: str,
        config: LossConfig,
    ) -> Future[TrainResult]:
        return self._ask(run, lambda: kind(run.id, convert.train_sequences(data), loss_fn, config))

    def _ask(self, run: Run, make: Callable[[], Request[R]]) -> Future[R]:
        """Send a request of a run; the error of the run's creation is the answer of all."""
        try:
            request = make()
        except Exception as error:  # whatever is wrong with the caller's values
            return failed(error)
        if not run.created.done() or run.created.cancelled():
            return self.engine.submit_when(then(run.created, lambda _: request), request.lane)
        if (error := run.created.exception()) is not None:
            return failed(error)
        return self.engine.submit(request)

    def _with_files(self, files: _FileLane, lane: str, action: Callable[[Ask[R]], T]) -> Future[T]:
        """Do something with files that at one point asks the engine; the request has its place in
        the engine's lane from now on, and the lane waits until it is asked."""
        coming: Future[Request[R]] = Future()

        def ask(request: Request[R]) -> R:
            coming.set_result(request)
            return asked.result()

        def work() -> T:
            try:
                return action(ask)
            except BaseException as error:
                if not coming.done():
                    coming.set_exception(error)
                raise

        with files.order:  # the same in both: else each of two could wait for the other
            asked = self.engine.submit_when(coming, lane)
            try:
                answer = files.submit(work)
            except BaseException as error:  # no thread can be started, say: the lane goes on
                coming.set_exception(error)
                raise
        answer.add_done_callback(lambda each: each.cancelled() and coming.cancel())
        return answer

    def _new_run(self, base_model: str, user_metadata: dict[str, str] | None) -> Run:
        """Its id, which the store's directory has, too: recipe, model, date and a few digits."""
        number = next(self._numbers)
        recipe = {**self._user_metadata, **(user_metadata or {})}.get("recipe", "")
        model = str(base_model).rstrip("/").rpartition("/")[2]
        suffix = f"-{number}" if number > 1 else ""
        parts = [re.sub(r"[^\w.+-]+", "_", part)[:60].lstrip(".") for part in (recipe, model)]
        run_id = "-".join([*filter(None, parts), f"{self._name}{suffix}"])
        return Run(self.engine, run_id, base_model)

    def _weights_id(self) -> str:
        return f"{self._name}-{next(self._weights)}"

    def _enter(
        self,
        run_id: str,
        base_model: str,
        facts: RunFacts,
        user_metadata: dict[str, str] | None,
    ) -> RunFacts:
        """Enter a run that the engine has made into the store."""
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


def _once_there(
    ref: WeightsRef, kept: Future[None], saved: Future[str] | None
) -> Future[WeightsRef]:
    """The reference of a snapshot, once it was taken, and saved, too, if it is to be."""
    taken = then(kept, lambda _: ref)
    if saved is None:
        return taken
    ready: Future[WeightsRef] = Future()

    def finish(last: Future[WeightsRef] | Future[str]) -> None:
        with suppress(InvalidStateError):  # nobody waits for it any more
            if (error := last.exception()) is not None:
                ready.set_exception(error)
            else:
                ready.set_result(ref)

    def go_on(first: Future[str]) -> None:
        if first.exception() is not None:
            finish(first)
        else:
            taken.add_done_callback(finish)

    saved.add_done_callback(go_on)
    return ready


def published(base_model: str) -> str:
    """The name that run, checkpoints and clients tell; what is no name is refused later on."""
    return models.loaded_name(base_model) if isinstance(base_model, str) else base_model


def new_seed() -> int:
    """For an adapter whose start nobody has chosen."""
    return secrets.randbits(31)
