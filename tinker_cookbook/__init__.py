"""Post-training recipes with their own LoRA engine, over the Tinker API."""

from tinker_cookbook.exceptions import (
    AllTrajectoriesFailedError,
    CheckpointError,
    ConfigurationError,
    DataError,
    DataFormatError,
    DataValidationError,
    EvalError,
    OutOfMemoryError,
    RendererError,
    SandboxError,
    TinkerCookbookError,
    TrainingError,
    WeightsAdapterError,
    WeightsDownloadError,
    WeightsError,
    WeightsMergeError,
)
from tinker_cookbook.utils.cpu_memory import bound_kernel_cache
from tinker_cookbook.utils.cpu_threads import wait_asleep

# before anything imports torch
wait_asleep()
bound_kernel_cache()

__all__ = [
    "AllTrajectoriesFailedError",
    "CheckpointError",
    "ConfigurationError",
    "DataError",
    "DataFormatError",
    "DataValidationError",
    "EvalError",
    "OutOfMemoryError",
    "RendererError",
    "SandboxError",
    "TinkerCookbookError",
    "TrainingError",
    "WeightsAdapterError",
    "WeightsDownloadError",
    "WeightsError",
    "WeightsMergeError",
]
