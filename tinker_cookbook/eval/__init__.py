"""Evaluation with Inspect: our models as Inspect models, local tasks, and the program.

Importing the package imports neither Inspect nor anything else heavy; see `run_inspect_evals.py`
for the program and `inspect_evaluators.py` for evaluations during training.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_cookbook.utils.misc_utils import import_of

if TYPE_CHECKING:
    from tinker_cookbook.training.evaluators import (
        Evaluator,
        EvaluatorBuilder,
        SamplingClientEvaluator,
        SamplingClientEvaluatorBuilder,
        TrainingClientEvaluator,
    )

__all__ = [
    "Evaluator",
    "EvaluatorBuilder",
    "SamplingClientEvaluator",
    "SamplingClientEvaluatorBuilder",
    "TrainingClientEvaluator",
]
_MODULES = {
    "Evaluator": "training.evaluators",
    "EvaluatorBuilder": "training.evaluators",
    "SamplingClientEvaluator": "training.evaluators",
    "SamplingClientEvaluatorBuilder": "training.evaluators",
    "TrainingClientEvaluator": "training.evaluators",
}


def __getattr__(name: str) -> Any:
    """Import the names above on first use."""
    return import_of(name, __name__, _MODULES)
