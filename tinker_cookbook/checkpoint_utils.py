"""Checkpoints of a run: which there are (checkpoints.jsonl), how to save one, how to find the last.

A save has two halves, because a loop that keeps its engine busy submits work ahead of what it
awaits: `submit_checkpoint` puts the save into the client's queue *now*, right behind the optimizer
step whose result it must hold, and `PendingSave` is awaited and recorded later. The record appears
only when the checkpoint exists.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from tinker_cookbook.exceptions import CheckpointError, ConfigurationError, DataFormatError
from tinker_cookbook.utils import jsonl

if TYPE_CHECKING:
    import os

logger = logging.getLogger(__name__)

CHECKPOINTS_FILE = "checkpoints.jsonl"
FINAL_NAME = "final"
PERIODIC_TTL_SECONDS = 7 * 24 * 3600
ROLLING_TTL_SECONDS = 2 * 3600
RENDERER_NAME_KEY = "renderer_name"  # in the user_metadata of a training run

CheckpointKind = Literal["state", "sampler", "both"]


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
    extra: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The line as it is written: without fields that are None, extra keys beside the others."""
        known = {key: getattr(self, key) for key in _FIELDS}
        return {k: v for k, v in known.items() if v is not None} | self.extra

    @classmethod
    def from_dict(cls, line: Mapping[str, Any]) -> CheckpointRecord:
        if not isinstance(line.get("name"), str):
            raise CheckpointError(f"a checkpoint record without a name: {dict(line)!r}")
        known = {k: v for k, v in line.items() if k in _FIELDS}
        return cls(**known, extra={k: v for k, v in line.items() if k not in _FIELDS})


_FIELDS = ("name", "batch", "epoch", "final", "state_path", "sampler_path")


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


def append_record(log_dir: str | os.PathLike[str], record: CheckpointRecord) -> None:
    """Adds a line to checkpoints.jsonl; on disk when it returns."""
    jsonl.append_line(Path(log_dir).expanduser() / CHECKPOINTS_FILE, record.to_dict())


@dataclass(frozen=True)
class PendingSave:
    """A checkpoint that was submitted. `await` it, or call `result()`, for the complete record."""

    record: CheckpointRecord  # without paths
    futures: dict[str, Any]  # "state_path", "sampler_path" -> APIFuture of a response with .path

    def result(self) -> CheckpointRecord:
        """Blocks until the service has written the checkpoint."""
        return self._complete({key: future.result() for key, future in self.futures.items()})

    def __await__(self) -> Generator[Any, None, CheckpointRecord]:
        return self._wait().__await__()

    async def _wait(self) -> CheckpointRecord:
        return self._complete({key: await future for key, future in self.futures.items()})

    def _complete(self, responses: Mapping[str, Any]) -> CheckpointRecord:
        return replace(self.record, **{key: r.path for key, r in responses.items()})


def submit_checkpoint(
    training_client: Any,
    name: str,
    loop_state: Mapping[str, Any],
    kind: CheckpointKind = "state",
    ttl_seconds: int | None = None,
) -> PendingSave:
    """Puts a save into the client's queue: it holds exactly the steps submitted so far.

    loop_state: "batch" (steps submitted so far), "epoch", "final" and keys of the loop's own.
    ttl_seconds: the service may delete the checkpoint after that time; None: never.
    """
    if kind not in get_args(CheckpointKind):
        raise ConfigurationError(f"kind={kind!r} is unknown; set one of state, sampler, both")
    futures: dict[str, Any] = {}
    if kind in ("state", "both"):
        futures["state_path"] = training_client.save_state(name, ttl_seconds=ttl_seconds)
    if kind in ("sampler", "both"):
        futures["sampler_path"] = training_client.save_weights_for_sampler(
            name, ttl_seconds=ttl_seconds
        )
    return PendingSave(CheckpointRecord.from_dict({"name": name, **loop_state}), futures)


def save_checkpoint(
    training_client: Any,
    name: str,
    log_path: str | os.PathLike[str],
    loop_state: Mapping[str, Any],
    kind: CheckpointKind = "state",
    ttl_seconds: int | None = None,
) -> dict[str, str]:
    """Saves, waits, records; returns {"state_path": ..., "sampler_path": ...} as far as saved."""
    record = submit_checkpoint(training_client, name, loop_state, kind, ttl_seconds).result()
    return _recorded(log_path, record)


async def save_checkpoint_async(
    training_client: Any,
    name: str,
    log_path: str | os.PathLike[str],
    loop_state: Mapping[str, Any],
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

    Periodic: every `save_every` steps, state and sampler weights, kept `ttl_seconds`.
    Rolling: every `rolling_save_every` steps in between, state only, the one before is deleted
    (through `rest_client` if given; in any case after `rolling_ttl_seconds`). Final: state and
    sampler weights, kept for good, record with "final": true. 0 switches periodic or rolling off.
    """

    def __init__(
        self,
        log_path: str | os.PathLike[str],
        *,
        save_every: int = 0,
        rolling_save_every: int = 0,
        ttl_seconds: int | None = PERIODIC_TTL_SECONDS,
        rolling_ttl_seconds: int | None = ROLLING_TTL_SECONDS,
        total_steps: int | None = None,
        rest_client: Any = None,
    ) -> None:
        for key, every in (("save_every", save_every), ("rolling_save_every", rolling_save_every)):
            if every < 0:
                raise ConfigurationError(f"{key}={every} must be 0 (never) or a number of steps")
        self._log_path = log_path
        self._save_every = save_every
        self._rolling_save_every = rolling_save_every
        self._ttl_seconds = ttl_seconds
        self._rolling_ttl_seconds = rolling_ttl_seconds
        self._total_steps = total_steps
        self._rest_client = rest_client
        last = get_last_checkpoint(log_path)
        self._rolling_path = last.state_path if last and last.extra.get("rolling") else None

    def submit(
        self, training_client: Any, step: int, *, final: bool = False, **loop_state: Any
    ) -> PendingSave | None:
        """Submits what is due when `step` optimizer steps have been submitted; None: nothing is.

        Call it right after the optim_step of step index `step - 1` and before submitting anything
        of the next step. Nothing periodic is saved at the last step: the final one follows.
        """
        state = {"batch": step, **loop_state}
        if final:
            return submit_checkpoint(
                training_client, FINAL_NAME, {**state, "final": True}, kind="both"
            )
        if step == self._total_steps:
            return None
        name = f"{step:06d}"
        if self._save_every and step % self._save_every == 0:
            return submit_checkpoint(training_client, name, state, "both", self._ttl_seconds)
        if self._rolling_save_every and step % self._rolling_save_every == 0:
            state["rolling"] = True
            return submit_checkpoint(
                training_client, name, state, "state", self._rolling_ttl_seconds
            )
        return None

    async def finish(self, pending: PendingSave) -> CheckpointRecord:
        """Waits for the checkpoint, records it, then deletes the rolling one it replaces."""
        record = await pending
        append_record(self._log_path, record)
        replaced, self._rolling_path = self._rolling_path, None
        if record.extra.get("rolling"):
            self._rolling_path = record.state_path
        if replaced is not None and self._rest_client is not None:
            try:
                await self._rest_client.delete_checkpoint_from_tinker_path(replaced)
            except Exception as e:  # it expires by itself; training matters more
                logger.warning("rolling checkpoint %s could not be deleted: %s", replaced, e)
        return record


async def start_training_client(
    service: Any,
    config: Any,
    resume: CheckpointRecord | None,
    user_metadata: dict[str, str] | None = None,
) -> Any:
    """The training client of a run: where it was left, else from a checkpoint, else a new adapter.

    resume: go on exactly there, optimizer included. Otherwise `config.load_checkpoint_path` gives
    the weights, with a fresh optimizer. Otherwise a new adapter by model_name, lora_rank, seed and
    the train_* keys. The renderer's name is kept with the run for whoever loads it later.
    """
    metadata = {RENDERER_NAME_KEY: config.renderer_name, **(user_metadata or {})}
    if resume is not None:
        return await service.create_training_client_from_state_with_optimizer(
            resume.state_path, base_model=config.model_name, user_metadata=metadata
        )
    if config.load_checkpoint_path is not None:
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
        run = _rest_client(base_url).get_training_run_by_tinker_path(load_checkpoint_path).result()
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
        run = await _rest_client(base_url).get_training_run_by_tinker_path(load_checkpoint_path)
        stored = _stored_renderer_name(run)
    return _choose_renderer(model_name, explicit_renderer_name, load_checkpoint_path, stored)


def _rest_client(base_url: str | None) -> Any:
    from tinker_cookbook.service import connect

    return connect(base_url=base_url).create_rest_client()


def _stored_renderer_name(run: Any) -> str | None:
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

    return models.resolve(model_name).renderers[0]
