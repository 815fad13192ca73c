"""Supervised fine-tuning: data sets of conversations, evaluators and the loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tinker_cookbook.utils.misc_utils import import_of

if TYPE_CHECKING:
    from tinker_cookbook.supervised.common import compute_mean_nll, datum_from_model_input_weights
    from tinker_cookbook.supervised.data import (
        FromConversationFileBuilder,
        StreamingSupervisedDatasetFromHFDataset,
        SupervisedDatasetFromHFDataset,
        conversation_to_datum,
    )
    from tinker_cookbook.supervised.types import (
        ChatDatasetBuilder,
        ChatDatasetBuilderCommonConfig,
        SupervisedDataset,
        SupervisedDatasetBuilder,
    )

__all__ = [
    "ChatDatasetBuilder",
    "ChatDatasetBuilderCommonConfig",
    "FromConversationFileBuilder",
    "StreamingSupervisedDatasetFromHFDataset",
    "SupervisedDataset",
    "SupervisedDatasetBuilder",
    "SupervisedDatasetFromHFDataset",
    "compute_mean_nll",
    "conversation_to_datum",
    "datum_from_model_input_weights",
]
_MODULES = {
    "compute_mean_nll": "supervised.common",
    "datum_from_model_input_weights": "supervised.common",
    "FromConversationFileBuilder": "supervised.data",
    "StreamingSupervisedDatasetFromHFDataset": "supervised.data",
    "SupervisedDatasetFromHFDataset": "supervised.data",
    "conversation_to_datum": "supervised.data",
    "ChatDatasetBuilder": "supervised.types",
    "ChatDatasetBuilderCommonConfig": "supervised.types",
    "SupervisedDataset": "supervised.types",
    "SupervisedDatasetBuilder": "supervised.types",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first access: some of its modules take seconds to import."""
    return import_of(name, __name__, _MODULES)
