import math

import pytest

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils.lr_scheduling import compute_schedule_lr_multiplier


@pytest.mark.parametrize(("step", "total"), [(0, 1), (0, 60), (7, 60), (30, 60), (59, 60), (1, 3)])
def test_every_schedule_follows_its_formula(step: int, total: int) -> None:
    assert compute_schedule_lr_multiplier("linear", step, total) == pytest.approx(1 - step / total)
    cosine = 0.5 * (1 + math.cos(math.pi * step / total))
    assert compute_schedule_lr_multiplier("cosine", step, total) == pytest.approx(cosine)
    assert compute_schedule_lr_multiplier("constant", step, total) == 1.0


def test_a_step_past_the_end_never_gives_a_negative_rate() -> None:
    assert compute_schedule_lr_multiplier("linear", 12, 10) == 0.0
    assert compute_schedule_lr_multiplier("cosine", 12, 10) == pytest.approx(0.0)


def test_an_unknown_schedule_names_the_choices() -> None:
    with pytest.raises(ConfigurationError, match=r"'step'.*linear, cosine, constant"):
        compute_schedule_lr_multiplier("step", 0, 10)


def test_a_schedule_over_no_steps_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="0 steps"):
        compute_schedule_lr_multiplier("linear", 0, 0)
