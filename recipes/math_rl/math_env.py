"""Environment, grader and data sets under the names of the Tinker cookbook."""

from __future__ import annotations

from recipes.math_rl.boxed_env import MathEnv
from recipes.math_rl.train import ENVS
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.math_problems.math_grading import grade_answer
from tinker_cookbook.rl.types import RLDatasetBuilder

__all__ = ["Gsm8kDatasetBuilder", "MathEnv", "get_math_dataset_builder", "safe_grade"]


def get_math_dataset_builder(
    dataset_name: str,
    batch_size: int,
    model_name_for_tokenizer: str,
    renderer_name: str,
    group_size: int,
    seed: int = 0,
) -> RLDatasetBuilder:
    """Return the builder of a data set in `train.ENVS`. batch_size: groups per batch."""
    if dataset_name not in ENVS:
        raise ConfigurationError(f"dataset_name={dataset_name!r}: set one of {', '.join(ENVS)}")
    return ENVS[dataset_name](
        model_name_for_tokenizer=model_name_for_tokenizer,
        renderer_name=renderer_name,
        group_size=group_size,
        groups_per_batch=batch_size,
        seed=seed,
    )


def Gsm8kDatasetBuilder(
    batch_size: int,
    model_name_for_tokenizer: str,
    renderer_name: str,
    group_size: int,
    seed: int = 0,
) -> RLDatasetBuilder:
    return get_math_dataset_builder(
        "gsm8k", batch_size, model_name_for_tokenizer, renderer_name, group_size, seed
    )


def safe_grade(
    given_answer: str, ground_truth: str, grader: str = "sympy", timeout: float = 1.0
) -> bool:
    """`grade_answer` with a limit of CPU seconds for one answer."""
    if grader != "sympy":
        raise ConfigurationError(f"grader={grader!r}: the only grader is 'sympy'")
    return grade_answer(given_answer, ground_truth, timeout)
