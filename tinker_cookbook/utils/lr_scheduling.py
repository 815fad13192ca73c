"""Learning-rate schedules: pure functions of (step, total_steps)."""

import math
from typing import Literal, get_args

from tinker_cookbook.exceptions import ConfigurationError

LRSchedule = Literal["linear", "cosine", "constant"]


def compute_schedule_lr_multiplier(lr_schedule: str, step: int, total_steps: int) -> float:
    """The factor on the learning rate at `step` (0-based) of `total_steps` optimizer steps.

    linear 1 - s/S; cosine (1 + cos(pi s/S)) / 2; constant 1. No warm-up. Steps past the end get
    the value at the end. Raises ConfigurationError for another name.
    """
    if lr_schedule not in get_args(LRSchedule):
        raise ConfigurationError(
            f"lr_schedule={lr_schedule!r} is unknown; set one of {', '.join(get_args(LRSchedule))}"
        )
    if total_steps <= 0:
        raise ConfigurationError(f"a schedule over {total_steps} steps; it needs at least one step")
    done = min(step / total_steps, 1.0)
    if lr_schedule == "linear":
        return 1.0 - done
    if lr_schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    return 1.0
