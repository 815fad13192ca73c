"""Transcripts of every rollout: records.py writes them as JSONL, page.py as an HTML page."""

from tinker_cookbook.rl.transcripts.records import (
    append_group,
    observations,
    read_rollouts,
    rollouts_file,
    write_page,
    write_step,
)

__all__ = [
    "append_group",
    "observations",
    "read_rollouts",
    "rollouts_file",
    "write_page",
    "write_step",
]
