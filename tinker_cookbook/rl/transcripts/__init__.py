"""Every rollout of a step, to be read afterwards: records.py writes them, page.py shows them."""

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
