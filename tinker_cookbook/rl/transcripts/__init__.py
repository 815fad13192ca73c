"""Transcripts of every rollout: records.py writes them as JSONL, page.py as an HTML page,
samples.py makes table rows of a few."""

from tinker_cookbook.rl.transcripts.records import (
    append_group,
    observations,
    read_rollouts,
    rollouts_file,
    write_page,
    write_step,
)
from tinker_cookbook.rl.transcripts.samples import sample_rows

__all__ = [
    "append_group",
    "observations",
    "read_rollouts",
    "rollouts_file",
    "sample_rows",
    "write_page",
    "write_step",
]
