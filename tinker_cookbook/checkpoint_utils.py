"""Checkpoints of a run: which there are (checkpoints.jsonl), how to save one, how to find the last.

A save has two halves, because a loop that keeps its engine busy submits work ahead of what it
awaits: `submit_checkpoint` puts the save into the client's queue *now*, right behind the optimizer
step whose result it must hold, and `PendingSave` is awaited and recorded later. The record appears
only when the checkpoint exists.
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
    """The keys of a run that its training client is made by."""

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

    batch: optimizer steps that the weights have seen, which is the step to go on with.
    state_path: weights and optimizer, to train on; sampler_path: weights to sample from.
    extra: whatever else the loop saved (its own cursor), and "rolling".
    """

    name: str
    batch: int | None = None
    epoch: int | None = None
    final: bool | None = None
    state_path: str | None = None
    sampler_path: str | None = None
    extra: dict[str, Plain] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Plain]:
        """The line as it is written: without fields that are None, extra keys beside the others."""
        known = {key: getattr(self, key) for key in _FIELDS}
        return {k: v for k, v in known.items() if v is not None} | self.extra

    def has(self, key: str) -> bool:
        """Whether there is a value for a field or an extra key."""
        return self.get(key) is not None

    def get(self, key: str, default: Plain = None) -> Plain:
        """The value of a field or an extra key; `default` where there is none."""
        return self.to_dict().get(key, default)

    @classmethod
    def from_dict(cls, line: LoopState) -> CheckpointRecord:
        name = _value(line, "name", str)
        if name is None:
            raise CheckpointError(f"a checkpoint record without a name: {dict(line)!r}")
        return cls(
            name,
            batch=_value(line, "batch", int),
            epoch=_value(line, "epoch", int),
            final=_value(line, "final", bool),
            state_path=_value(line, "state_path", str),
            sampler_path=_value(line, "sampler_path", str),
            extra={k: v for k, v in line.items() if k not in _FIELDS},
        )


_FIELDS = ("name", "batch", "epoch", "final", "state_path", "sampler_path")


def _value(line: LoopState, key: str, kind: type[T]) -> T | None:
    value = line.get(key)
    if value is None or isinstance(value, kind):
        return value
    raise CheckpointError(f"a checkpoint record with {key}={value!r}: {dict(line)!r}")


def load_checkpoints_file(log_dir: str | os.PathLike[str]) -> list[CheckpointRecord]:
    """All records of a run in the order they were saved; [] if there are none."""
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
    """The last record whose state the service still has, and a line for each newer one without.

    Without a rest_client: the last record with a state, unseen. CheckpointError if the run has
    records but none of their states is left: starting it over is for the user to decide. What says
    nothing about the checkpoint, such as a broken connection, is passed on.
    """
    lost: list[str] = []
    for record in reversed(load_checkpoints_file(log_dir)):
        if record.state_path is None:
            continue
        if rest_client is None:
            return record, []
        try:
            rest_client.get_weights_info_by_tinker_path(record.state_path).result()
        except Exception as e:
            if not _says_gone(e):
                raise
            lost.append(f"skipping checkpoint {record.name}: {e}")
        else:
            return record, lost
    if lost:
        raise CheckpointError(
            f"{Path(log_dir).expanduser()}: no checkpoint of this run can be resumed, the newest "
            f"not because: {lost[0].partition(': ')[2]}; bring the store back, or start over with "
            "behavior_if_log_dir_exists=delete"
        )
    return None, []


def _says_gone(error: Exception) -> bool:
    """True if the answer is that the checkpoint is not there, has expired or is damaged."""
    if isinstance(error, CheckpointError):  # the store of this process
        return True
    return getattr(error, "status_code", None) in (404, 410)  # tinker.APIStatusError


def append_record(log_dir: str | os.PathLike[str], record: CheckpointRecord) -> None:
    """Adds a line to checkpoints.jsonl; on disk when it returns."""
    jsonl.append_line(Path(log_dir).expanduser() / CHECKPOINTS_FILE, record.to_dict())


@dataclass(frozen=True)
class PendingSave:
    """A checkpoint that was submitted. `await` it, or call `result()`, for the complete record."""

    record: CheckpointRecord  # without paths
    futures: dict[str, SaveFuture]  # "state_path", "sampler_path"

    def result(self) -> CheckpointRecord:
        """Blocks until the service has written the checkpoint."""
        return self._complete({key: future.result() for key, future in self.futures.items()})

    def __await__(self) -> Generator[object, None, CheckpointRecord]:
        return self._wait().__await__()

    async def _wait(self) -> CheckpointRecord:
        return self._complete({key: await future for key, future in self.futures.items()})

    def _complete(self, responses: Mapping[str, SavedWeights]) -> CheckpointRecord:
        return replace(self.record, **{key: r.path for key, r in responses.items()})


def submit_checkpoint(
    training_client: TrainingClient,
    name: str,
    loop_state: LoopState,
    kind: CheckpointKind = "state",
    ttl_seconds: int | None = None,
) -> PendingSave:
    """Puts a save into the client's queue: it holds exactly the steps submitted so far.

    loop_state: "batch" (steps submitted so far), "epoch", "final" and keys of the loop's own.
    ttl_seconds: the service may delete the checkpoint after that time; None: never.
    """
    if kind not in get_args(CheckpointKind):
        raise ConfigurationError(f"kind={kind!r} is unknown; set one of state, sampler, both")
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
    """Saves, waits, records; returns {"state_path": ..., "sampler_path": ...} as far as saved."""
    record = submit_checkpoint(training_client, name, loop_state, kind, ttl_seconds).result()
    return _recorded(log_path, record)


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
    return _recorded(log_path, record)


def _recorded(log_path: str | os.PathLike[str], record: CheckpointRecord) -> dict[str, str]:
    append_record(log_path, record)
    paths = {"state_path": record.state_path, "sampler_path": record.sampler_path}
    return {key: path for key, path in paths.items() if path is not None}


class CheckpointManager:
    """Decides after which steps to save what, and records it.

    Periodic: every `save_every` steps, state and sampler weights. Rolling: every
    `rolling_save_every` steps in between, and where a run is stopped, state only. Final: state and
    sampler weights, kept for good, record with "final": true. 0 switches periodic or rolling off.

    Nothing is saved with an end: a run that was left alone can be resumed from its newest
    checkpoint at any time. When the next one is recorded, `rest_client` deletes a rolling one, and
    lets a periodic one expire after `ttl_seconds` (None: never). Without a rest_client all stay.
    Where the store is this process's own, `weights/<name>` in the run's directory is a link to what
    can be sampled from, as long as there is such a checkpoint.
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
                f"ttl_seconds={ttl_seconds} must be above 0, or None to keep checkpoints for good"
            )
        self._log_path = log_path
        self._save_every = save_every
        self._rolling_save_every = rolling_save_every
        self._ttl_seconds = ttl_seconds
        self._total_steps = total_steps
        self._rest_client = rest_client
        # two: a crash may have come between recording the last and retiring the one before
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
        """Submits what is due when `step` optimizer steps have been submitted; None: nothing is.

        Call it right after the optim_step of step index `step - 1` and before submitting anything
        of the next step. Nothing periodic is saved at the last step: the final one follows.
        last: the run stops here, so something is saved in any case, as a rolling checkpoint is.
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
        """Waits for the checkpoint, records it, then retires the one that it replaces."""
        record = await pending
        append_record(self._log_path, record)
        self._link(record)
        replaced, self._to_retire = self._to_retire, [record]
        for old in replaced:
            await self._retire(old)
        return record

    def _link(self, record: CheckpointRecord) -> None:
        link = getattr(self._rest_client, "_link_checkpoint", None)  # a server's store is elsewhere
        path = record.sampler_path or record.state_path
        if link is None or path is None:
            return
        try:
            link(path, Path(self._log_path) / WEIGHTS / record.name)
        except (OSError, CheckpointError) as e:
            logger.info("no link to checkpoint %s in %s: %s", record.name, self._log_path, e)

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
            except Exception as e:  # one checkpoint too many: training matters more
                if not _says_gone(e):
                    logger.warning("checkpoint %s stays where it is: %s", path, e)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


async def start_training_client(
    service: ServiceClient,
    config: AdapterKeys,
    resume: CheckpointRecord | None,
    user_metadata: dict[str, str] | None = None,
    log_line: Callable[[str], None] | None = None,
) -> TrainingClient:
    """The training client of a run: where it was left, else from a checkpoint, else a new adapter.

    resume: go on exactly there, optimizer included. Otherwise `config.load_checkpoint_path` gives
    the weights, with a fresh optimizer; ConfigurationError if its adapter is not the one that
    lora_rank and the train_* keys describe. Otherwise a new adapter by model_name, lora_rank, seed
    and the train_* keys. The renderer's name is kept with the run for whoever loads it later.

    log_line: told what the engine in this process has to say at the start of a run.
    """
    from tinker_cookbook.service.api import InProcess  # brings the SDK along, which takes seconds

    client = await _training_client(service, config, resume, user_metadata)
    if log_line is not None and isinstance(client, InProcess):
        for line in client.about_engine():
            log_line(line)
    return client


async def _training_client(
    service: ServiceClient,
    config: AdapterKeys,
    resume: CheckpointRecord | None,
    user_metadata: dict[str, str] | None,
) -> TrainingClient:
    metadata = {RENDERER_NAME_KEY: config.renderer_name, **(user_metadata or {})}
    if resume is not None:
        if resume.state_path is None:
            raise CheckpointError(f"checkpoint {resume.name} has no state_path to go on from")
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
    """What a checkpoint holds decides which layers are trained; no key can change that."""
    found = await service.create_rest_client().get_weights_info_by_tinker_path(path)
    wrong = {
        key: (getattr(config, key), there)
        for key in ("lora_rank", "train_attn", "train_mlp", "train_unembed")
        if (there := getattr(found, key)) is not None and there != getattr(config, key)
    }
    if wrong:
        given = " ".join(f"{key}={here}" for key, (here, _) in wrong.items())
        needed = " ".join(f"{key}={there}" for key, (_, there) in wrong.items())
        raise ConfigurationError(
            f"{given} does not fit load_checkpoint_path={path}, which was trained with {needed}; "
            f"set {needed}"
        )


def resolve_renderer_name_from_checkpoint_or_default(
    *,
    model_name: str,
    explicit_renderer_name: str | None,
    load_checkpoint_path: str | None,
    base_url: str | None = None,
) -> str:
    """The renderer to train with.

    The explicit one if given; else the one that the checkpoint was trained with (user_metadata of
    its run); else the one recommended for the model. An explicit name that differs from the
    checkpoint's is used with a warning.
    """
    stored = None
    if load_checkpoint_path is not None:
        path = locate_checkpoint(load_checkpoint_path, "weights", _PATH_KEY, base_url)
        run = _rest_client(base_url).get_training_run_by_tinker_path(path).result()
        stored = _stored_renderer_name(run)
    return _choose_renderer(model_name, explicit_renderer_name, load_checkpoint_path, stored)


async def resolve_renderer_name_from_checkpoint_or_default_async(
    *,
    model_name: str,
    explicit_renderer_name: str | None,
    load_checkpoint_path: str | None,
    base_url: str | None = None,
) -> str:
    """`resolve_renderer_name_from_checkpoint_or_default` without blocking the event loop."""
    stored = None
    if load_checkpoint_path is not None:
        path = locate_checkpoint(load_checkpoint_path, "weights", _PATH_KEY, base_url)
        run = await _rest_client(base_url).get_training_run_by_tinker_path(path)
        stored = _stored_renderer_name(run)
    return _choose_renderer(model_name, explicit_renderer_name, load_checkpoint_path, stored)


def _rest_client(base_url: str | None) -> RestClient:
    from tinker_cookbook.service import connect

    return connect(base_url=base_url).create_rest_client()


def _stored_renderer_name(run: types.TrainingRun) -> str | None:
    return (run.user_metadata or {}).get(RENDERER_NAME_KEY)


def _choose_renderer(
    model_name: str, explicit: str | None, checkpoint: str | None, stored: str | None
) -> str:
    if explicit is not None:
        if stored is not None and stored != explicit:
            logger.warning(
                "renderer_name=%s, but %s was trained with %s", explicit, checkpoint, stored
            )
        return explicit
    if stored is not None:
        return stored
    from tinker_cookbook import models

    return models.recommended_renderer(model_name)
