"""Checkpoints of a run: list (checkpoints.jsonl), save, resume from and retire them.

Saving has two halves, because a loop that keeps its engine busy submits work ahead of what it
awaits. `submit_checkpoint` enqueues the save *now*, directly after the optimizer step whose result
it must hold; `PendingSave` is awaited and recorded later. The record is written only after the
checkpoint exists, so a crash in between leaves an unrecorded checkpoint, never a record without
one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar, get_args

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, DataFormatError
from tinker_cookbook.service import CHECKPOINTS_FILE, locate_checkpoint
from tinker_cookbook.utils import jsonl
from tinker_cookbook.utils.checkpoint_links import WEIGHTS, remove_links
from tinker_cookbook.utils.json_types import Plain

if TYPE_CHECKING:
    import os

    from tinker import types
    from tinker.lib.public_interfaces.api_future import APIFuture

    from tinker_cookbook.service.api import RestClient, ServiceClient, TrainingClient

    SavedWeights: TypeAlias = types.SaveWeightsResponse | types.SaveWeightsForSamplerResponse
    SaveFuture: TypeAlias = (
        APIFuture[types.SaveWeightsResponse] | APIFuture[types.SaveWeightsForSamplerResponse]
    )

logger = logging.getLogger(__name__)

FINAL_NAME = "final"
PERIODIC_TTL_SECONDS = 7 * 24 * 3600
RENDERER_NAME_KEY = "renderer_name"  # in the user_metadata of a training run
_PATH_KEY = "load_checkpoint_path"

CheckpointKind = Literal["state", "sampler", "both"]


LoopState = Mapping[str, Plain]
T = TypeVar("T", str, int, bool)


class AdapterKeys(Protocol):
    """The config keys that determine a run's training client."""

    @property
    def model_name(self) -> str: ...
    @property
    def renderer_name(self) -> str | None: ...
    @property
    def load_checkpoint_path(self) -> str | None: ...
    @property
    def lora_rank(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def train_mlp(self) -> bool: ...
    @property
    def train_attn(self) -> bool: ...
    @property
    def train_unembed(self) -> bool: ...


@dataclass(frozen=True)
class CheckpointRecord:
    """One line of checkpoints.jsonl.

    batch: number of steps in the weights, i.e. the index of the step to resume with.
    state_path: weights and optimizer state, for training; sampler_path: weights for sampling.
    extra: "rolling", and the loop's own values, e.g. its position in the data.
    """

    name: str
    batch: int | None = None
    epoch: int | None = None
    final: bool | None = None
    state_path: str | None = None
    sampler_path: str | None = None
    extra: dict[str, Plain] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Plain]:
        """The record as a JSON object: fields that are not None, and the extra keys."""
        fields = {key: getattr(self, key) for key in _FIELDS}
        return {k: v for k, v in fields.items() if v is not None} | self.extra

    def has(self, key: str) -> bool:
        """Whether a field or extra key has a value."""
        return self.get(key) is not None

    def get(self, key: str, default: Plain = None) -> Plain:
        """The value of a field or extra key, or `default` if it has none."""
        return self.to_dict().get(key, default)

    @classmethod
    def from_dict(cls, line: LoopState) -> CheckpointRecord:
        name = _typed_value(line, "name", str)
        if name is None:
            raise CheckpointError(f"checkpoint record without a name: {dict(line)!r}")
        return cls(
            name,
            batch=_typed_value(line, "batch", int),
            epoch=_typed_value(line, "epoch", int),
            final=_typed_value(line, "final", bool),
            state_path=_typed_value(line, "state_path", str),
            sampler_path=_typed_value(line, "sampler_path", str),
            extra={k: v for k, v in line.items() if k not in _FIELDS},
        )


_FIELDS = ("name", "batch", "epoch", "final", "state_path", "sampler_path")


def _typed_value(line: LoopState, key: str, kind: type[T]) -> T | None:
    value = line.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise CheckpointError(
        f"checkpoint record with {key}={value!r}, expected {kind.__name__}: {dict(line)!r}"
    )


def load_checkpoints_file(log_dir: str | os.PathLike[str]) -> list[CheckpointRecord]:
    """All records of a run in the order in which they were saved; [] if there are none."""
    file = Path(log_dir).expanduser() / CHECKPOINTS_FILE
    try:
        return [CheckpointRecord.from_dict(line.value) for line in jsonl.read_lines(file)]
    except (CheckpointError, DataFormatError) as e:
        raise CheckpointError(f"{file} is damaged: {e}") from None


def get_last_checkpoint(
    log_dir: str | os.PathLike[str], required_key: str = "state_path"
) -> CheckpointRecord | None:
    """The last record that has `required_key`; None if there is none."""
    for record in reversed(load_checkpoints_file(log_dir)):
        if record.to_dict().get(required_key) is not None:
            return record
    return None


def get_last_resumable_checkpoint(
    log_dir: str | os.PathLike[str], rest_client: RestClient | None = None
) -> tuple[CheckpointRecord | None, list[str]]:
    """The last record whose state the service still has, and a notice for each newer one it lost.

    Without a rest_client: the last record with a state, unchecked. Raises CheckpointError if the
    run has records but the service has none of their states: starting over would discard a run, so
    the user has to ask for it. Errors that say nothing about the checkpoint, such as a lost
    connection, are passed on, or a network failure would count as a lost checkpoint.
    """
    skipped: list[str] = []
    for record in reversed(load_checkpoints_file(log_dir)):
        if record.state_path is None:
            continue
        if rest_client is None:
            return record, []
        try:
            rest_client.get_weights_info_by_tinker_path(record.state_path).result()
        except Exception as e:
            if not means_checkpoint_is_lost(e):
                raise
            skipped.append(f"skipping checkpoint {record.name}: {e}")
        else:
            return record, skipped
    if skipped:
        raise CheckpointError(
            f"{Path(log_dir).expanduser()}: no checkpoint of this run can be resumed; the newest: "
            f"{skipped[0].partition(': ')[2]}; restore the store, or start over with "
            "behavior_if_log_dir_exists=delete"
        )
    return None, []


def means_checkpoint_is_lost(error: Exception) -> bool:
    """Whether the checkpoint does not exist, has expired or is damaged."""
    if isinstance(error, CheckpointError):  # from the store of this process
        return True
    return getattr(error, "status_code", None) in (404, 410)  # tinker.APIStatusError


def append_record(log_dir: str | os.PathLike[str], record: CheckpointRecord) -> None:
    """Append a line to checkpoints.jsonl; it is on disk when this returns."""
    jsonl.append_line(Path(log_dir).expanduser() / CHECKPOINTS_FILE, record.to_dict())


@dataclass(frozen=True)
class PendingSave:
    """A submitted checkpoint. `await` it, or call `result()`, for its record with paths."""

    record: CheckpointRecord  # without paths
    futures: dict[str, SaveFuture]  # by "state_path" and "sampler_path"

    def result(self) -> CheckpointRecord:
        """Block until the service has written the checkpoint."""
        return self._with_paths({key: future.result() for key, future in self.futures.items()})

    def __await__(self) -> Generator[object, None, CheckpointRecord]:
        return self._result_async().__await__()

    async def _result_async(self) -> CheckpointRecord:
        return self._with_paths({key: await future for key, future in self.futures.items()})

    def _with_paths(self, responses: Mapping[str, SavedWeights]) -> CheckpointRecord:
        return replace(self.record, **{key: r.path for key, r in responses.items()})


def submit_checkpoint(
    training_client: TrainingClient,
    name: str,
    loop_state: LoopState,
    kind: CheckpointKind = "state",
    ttl_seconds: int | None = None,
) -> PendingSave:
    """Enqueue a save: the checkpoint holds exactly the steps submitted so far.

    loop_state: "batch" (steps submitted so far), "epoch", "final" and the loop's own keys.
    ttl_seconds: the service may delete the checkpoint after this time; None: never.
    """
    if kind not in get_args(CheckpointKind):
        raise ConfigurationError(f"kind={kind!r} is unknown; set state, sampler or both")
    futures: dict[str, SaveFuture] = {}
    if kind in ("state", "both"):
        futures["state_path"] = training_client.save_state(name, ttl_seconds=ttl_seconds)
    if kind in ("sampler", "both"):
        futures["sampler_path"] = training_client.save_weights_for_sampler(
            name, ttl_seconds=ttl_seconds
        )
    return PendingSave(CheckpointRecord.from_dict({"name": name, **loop_state}), futures)


def save_checkpoint(
    training_client: TrainingClient,
    name: str,
    log_path: str | os.PathLike[str],
    loop_state: LoopState,
    kind: CheckpointKind = "state",
    ttl_seconds: int | None = None,
) -> dict[str, str]:
    """Save a checkpoint, wait for it and record it.

    Returns {"state_path": ..., "sampler_path": ...}, with the keys that `kind` saves.
    """
    record = submit_checkpoint(training_client, name, loop_state, kind, ttl_seconds).result()
    return _append_and_get_paths(log_path, record)


async def save_checkpoint_async(
    training_client: TrainingClient,
    name: str,
    log_path: str | os.PathLike[str],
    loop_state: LoopState,
    kind: CheckpointKind = "state",
    ttl_seconds: int | None = None,
) -> dict[str, str]:
    """`save_checkpoint` without blocking the event loop."""
    record = await submit_checkpoint(training_client, name, loop_state, kind, ttl_seconds)
    return _append_and_get_paths(log_path, record)


def _append_and_get_paths(
    log_path: str | os.PathLike[str], record: CheckpointRecord
) -> dict[str, str]:
    append_record(log_path, record)
    paths = {"state_path": record.state_path, "sampler_path": record.sampler_path}
    return {key: path for key, path in paths.items() if path is not None}


class CheckpointManager:
    """Checkpoint schedule of a run: what to save after which step, and when to retire it.

    Periodic: state and sampler weights, every `save_every` steps. Rolling: state only, every
    `rolling_save_every` steps in between, and when a run is stopped. Final: state and sampler
    weights, kept forever, with "final": true in the record. 0 turns periodic or rolling ones off.

    The newest checkpoint never expires, so an abandoned run can be resumed at any time. Only when
    the next one is recorded, `rest_client` deletes a rolling one, and lets a periodic one expire
    after `ttl_seconds` (None: never). Without a rest_client all checkpoints are kept. If the store
    is in this process, `weights/<name>` in the run directory links to the checkpoint's sampler
    weights, or its state if it has none, until the checkpoint is deleted.
    """

    def __init__(
        self,
        log_path: str | os.PathLike[str],
        *,
        save_every: int = 0,
        rolling_save_every: int = 0,
        ttl_seconds: int | None = PERIODIC_TTL_SECONDS,
        total_steps: int | None = None,
        rest_client: RestClient | None = None,
    ) -> None:
        for key, every in (("save_every", save_every), ("rolling_save_every", rolling_save_every)):
            if every < 0:
                raise ConfigurationError(f"{key}={every} must be 0 (never) or a number of steps")
        if ttl_seconds is not None and ttl_seconds <= 0:
            raise ConfigurationError(
                f"ttl_seconds={ttl_seconds} must be above 0, or None to keep checkpoints forever"
            )
        self._log_path = log_path
        self._save_every = save_every
        self._rolling_save_every = rolling_save_every
        self._ttl_seconds = ttl_seconds
        self._total_steps = total_steps
        self._rest_client = rest_client
        # The last two: a crash between recording one checkpoint and retiring the one before leaves
        # that one without an end, so it is retired with the next.
        self._to_retire = load_checkpoints_file(log_path)[-2:]
        remove_links(Path(log_path), only_dead=True)

    def submit(
        self,
        training_client: TrainingClient,
        step: int,
        *,
        final: bool = False,
        last: bool = False,
        **loop_state: Plain,
    ) -> PendingSave | None:
        """Submit the checkpoint that is due after `step` optimizer steps; None if none is due.

        Call it right after the optim_step of step index `step - 1` and before submitting anything
        of the next step. After the last step no periodic checkpoint is due, as the final one
        follows. last: the run stops here, so save a rolling checkpoint if no other one is due.
        """
        state = {"batch": step, **loop_state}
        if final:
            return submit_checkpoint(
                training_client, FINAL_NAME, {**state, "final": True}, kind="both"
            )
        at_the_end = step == self._total_steps
        name = f"{step:06d}"
        if not at_the_end and _is_due(step, self._save_every):
            return submit_checkpoint(training_client, name, state, "both")
        if last or (not at_the_end and _is_due(step, self._rolling_save_every)):
            state["rolling"] = True
            return submit_checkpoint(training_client, name, state, "state")
        return None

    async def finish(self, pending: PendingSave) -> CheckpointRecord:
        """Wait for the checkpoint and record it, then retire the one that it replaces."""
        # The order matters: after a crash between any two of these lines, checkpoints.jsonl still
        # ends with a checkpoint that exists and does not expire.
        record = await pending
        append_record(self._log_path, record)
        self._link_weights(record)
        superseded, self._to_retire = self._to_retire, [record]
        for old in superseded:
            await self._retire(old)
        return record

    def _link_weights(self, record: CheckpointRecord) -> None:
        # only the in-process client has it: a server's store may be on another machine
        link = getattr(self._rest_client, "_link_checkpoint", None)
        path = record.sampler_path or record.state_path
        if link is None or path is None:
            return
        try:
            link(path, Path(self._log_path) / WEIGHTS / record.name)
        except (OSError, CheckpointError) as e:
            logger.info("could not link checkpoint %s in %s: %s", record.name, self._log_path, e)

    async def _retire(self, old: CheckpointRecord) -> None:
        rest, ttl = self._rest_client, self._ttl_seconds
        rolling = old.extra.get("rolling")
        if rest is None or old.final or (ttl is None and not rolling):
            return
        for path in (old.state_path, old.sampler_path):
            if path is None:
                continue
            try:
                if rolling:
                    await rest.delete_checkpoint_from_tinker_path(path)
                else:
                    await rest.set_checkpoint_ttl_from_tinker_path(path, ttl)
            except Exception as e:  # an extra checkpoint only costs disk: not worth ending the run
                if not means_checkpoint_is_lost(e):
                    logger.warning("could not retire checkpoint %s: %s", path, e)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


async def start_training_client(
    service: ServiceClient,
    config: AdapterKeys,
    resume: CheckpointRecord | None,
    user_metadata: dict[str, str] | None = None,
    log_line: Callable[[str], None] | None = None,
) -> TrainingClient:
    """The training client of a run, from the first of these that is set:

    - resume: weights and optimizer state of this checkpoint;
    - config.load_checkpoint_path: its weights, with a fresh optimizer. ConfigurationError if its
      adapter does not match lora_rank and the train_* keys;
    - a new adapter from model_name, lora_rank, seed and the train_* keys.

    The renderer's name is stored in the run's user metadata, for programs that load its checkpoints
    later. log_line: receives the start-up lines of an in-process engine.
    """
    from tinker_cookbook.service.api import InProcess  # late: imports the SDK, which takes seconds

    client = await _create_training_client(service, config, resume, user_metadata)
    if log_line is not None and isinstance(client, InProcess):
        for line in client.about_engine():
            log_line(line)
    return client


async def _create_training_client(
    service: ServiceClient,
    config: AdapterKeys,
    resume: CheckpointRecord | None,
    user_metadata: dict[str, str] | None,
) -> TrainingClient:
    metadata = {RENDERER_NAME_KEY: config.renderer_name, **(user_metadata or {})}
    if resume is not None:
        if resume.state_path is None:
            raise CheckpointError(f"checkpoint {resume.name} has no state_path to resume from")
        return await service.create_training_client_from_state_with_optimizer(
            resume.state_path, base_model=config.model_name, user_metadata=metadata
        )
    if config.load_checkpoint_path is not None:
        await _check_same_adapter(service, config, config.load_checkpoint_path)
        return await service.create_training_client_from_state(
            config.load_checkpoint_path, base_model=config.model_name, user_metadata=metadata
        )
    return await service.create_lora_training_client(
        base_model=config.model_name,
        rank=config.lora_rank,
        seed=config.seed,
        train_mlp=config.train_mlp,
        train_attn=config.train_attn,
        train_unembed=config.train_unembed,
        user_metadata=metadata,
    )


async def _check_same_adapter(service: ServiceClient, config: AdapterKeys, path: str) -> None:
    """A loaded adapter keeps its rank and layers, so keys that say otherwise are an error."""
    info = await service.create_rest_client().get_weights_info_by_tinker_path(path)
    mismatched = {
        key: (getattr(config, key), saved)
        for key in ("lora_rank", "train_attn", "train_mlp", "train_unembed")
        if (saved := getattr(info, key)) is not None and saved != getattr(config, key)
    }
    if mismatched:
        given = " ".join(f"{key}={current}" for key, (current, _) in mismatched.items())
        needed = " ".join(f"{key}={saved}" for key, (_, saved) in mismatched.items())
        raise ConfigurationError(
            f"{given} does not match load_checkpoint_path={path}, which was trained with {needed}; "
            f"set {needed}"
        )


def resolve_renderer_name_from_checkpoint_or_default(
    *,
    model_name: str,
    explicit_renderer_name: str | None,
    load_checkpoint_path: str | None,
    base_url: str | None = None,
) -> str:
    """The renderer to train with: the explicit one, else the checkpoint's, else the model's.

    The checkpoint's is in the user_metadata of its run; the model's is the recommended one. An
    explicit name that differs from the checkpoint's is used, with a warning.
    """
    checkpoint_renderer = None
    if load_checkpoint_path is not None:
        checkpoint_renderer = renderer_name_of_checkpoint(load_checkpoint_path, base_url)
    return _choose_renderer(
        model_name, explicit_renderer_name, load_checkpoint_path, checkpoint_renderer
    )


def renderer_name_of_checkpoint(path: str, base_url: str | None = None) -> str | None:
    """The renderer that a checkpoint was trained with; None if its run does not tell."""
    return _renderer_name_in_metadata(_run_of_checkpoint(path, base_url))


def base_model_of_checkpoint(path: str, base_url: str | None = None) -> str:
    """The base model that a checkpoint was trained on."""
    return _run_of_checkpoint(path, base_url).base_model


def _run_of_checkpoint(path: str, base_url: str | None) -> types.TrainingRun:
    path = locate_checkpoint(path, "weights", _PATH_KEY, base_url)
    return _rest_client(base_url).get_training_run_by_tinker_path(path).result()


async def resolve_renderer_name_from_checkpoint_or_default_async(
    *,
    model_name: str,
    explicit_renderer_name: str | None,
    load_checkpoint_path: str | None,
    base_url: str | None = None,
) -> str:
    """`resolve_renderer_name_from_checkpoint_or_default` without blocking the event loop."""
    checkpoint_renderer = None
    if load_checkpoint_path is not None:
        path = locate_checkpoint(load_checkpoint_path, "weights", _PATH_KEY, base_url)
        run = await _rest_client(base_url).get_training_run_by_tinker_path(path)
        checkpoint_renderer = _renderer_name_in_metadata(run)
    return _choose_renderer(
        model_name, explicit_renderer_name, load_checkpoint_path, checkpoint_renderer
    )


def _rest_client(base_url: str | None) -> RestClient:
    from tinker_cookbook.service import connect

    return connect(base_url=base_url).create_rest_client()


def _renderer_name_in_metadata(run: types.TrainingRun) -> str | None:
    return (run.user_metadata or {}).get(RENDERER_NAME_KEY)


def _choose_renderer(
    model_name: str,
    explicit: str | None,
    checkpoint: str | None,
    checkpoint_renderer: str | None,
) -> str:
    if explicit is not None:
        if checkpoint_renderer is not None and checkpoint_renderer != explicit:
            logger.warning(
                "renderer_name=%s, but %s was trained with %s",
                *(explicit, checkpoint, checkpoint_renderer),
            )
        return explicit
    if checkpoint_renderer is not None:
        return checkpoint_renderer
    from tinker_cookbook import models

    return models.recommended_renderer(model_name)
