"""Preference learning: comparisons of completions, their data sets, and models of preference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_cookbook.utils.misc_utils import import_of

if TYPE_CHECKING:
    from tinker_cookbook.preference.comparison_datasets import ComparisonDatasetBuilder
    from tinker_cookbook.preference.types import Comparison, LabeledComparison

__all__ = ["Comparison", "ComparisonDatasetBuilder", "LabeledComparison"]
_MODULES = {
    "Comparison": "preference.types",
    "ComparisonDatasetBuilder": "preference.comparison_datasets",
    "LabeledComparison": "preference.types",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access: some of its modules take seconds to import."""
    return import_of(name, __name__, _MODULES)
