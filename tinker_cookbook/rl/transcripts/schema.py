"""Types of the records in the JSONL files of rollouts; records.py documents their fields."""

from __future__ import annotations

from typing import TypedDict

from tinker_cookbook.rl.types import Logs, Metrics


class ErrorRecord(TypedDict):
    """A `types.RolloutError`."""

    kind: str
    message: str
    member: int | None
    traceback: str


class RolloutStep(TypedDict):
    """One turn of an episode."""

    step_idx: int
    ob_len: int
    ob_start: int
    ob_tokens: list[int]
    ob_text: str
    ac_len: int
    ac_tokens: list[int]
    ac_text: str
    stop_reason: str
    logprobs: list[float] | None
    advantages: list[float] | None
    trained_logprobs: list[float] | None
    reward: float
    episode_done: bool
    trainable: bool
    metrics: Metrics
    logs: Logs


class RecordHeader(TypedDict):
    """Identifies a group: step, index, tags, version of the sampling weights."""

    schema_version: int
    split: str
    iteration: int
    group_idx: int
    tags: list[str]
    sampling_client_step: int | None


class RecordBody(TypedDict):
    """One episode of a group."""

    traj_idx: int | None
    total_reward: float | None
    final_reward: float | None
    trajectory_metrics: Metrics
    steps: list[RolloutStep]
    final_ob_len: int
    final_ob_start: int
    final_ob_tokens: list[int]
    final_ob_text: str
    stop_reason: str | None
    errors: list[ErrorRecord]


class Record(RecordHeader, RecordBody):
    """One line of the JSONL file."""
