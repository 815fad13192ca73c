"""All exceptions of the package. Messages name the key or file, the value found, and the fix."""

from pathlib import Path


class TinkerCookbookError(Exception):
    """Base class of all errors that this package raises deliberately."""


class ConfigurationError(TinkerCookbookError, ValueError):
    """An invalid key or combination of keys; the command line prints it as one line."""


class DataError(TinkerCookbookError):
    """Base class of errors in the user's data."""


class DataFormatError(DataError, ValueError):
    """Data that cannot be parsed: not JSON, a missing field, a wrong type. Names file and line."""


class DataValidationError(DataError, ValueError):
    """Data that was parsed but cannot be used: no trained tokens, mismatched lengths."""


class RendererError(TinkerCookbookError, ValueError):
    """A conversation that a renderer cannot render. Names the message index."""


class TrainingError(TinkerCookbookError, RuntimeError):
    """A training or sampling request failed; the engine keeps running."""


class OutOfMemoryError(TrainingError):
    """The device or the host ran out of memory; the message names the key to lower."""


class RunFinished(TinkerCookbookError):
    """The run in the directory is finished, and behavior_if_log_dir_exists=skip; not a failure."""

    def __init__(self, message: str, directory: Path) -> None:
        super().__init__(message)
        self.directory = directory


class CheckpointError(TinkerCookbookError, RuntimeError):
    """A checkpoint is missing, damaged, in use, or belongs to another model."""


class StorageError(TinkerCookbookError, OSError):
    """A file of a run could not be written: the disk is full or read-only."""


class AllTrajectoriesFailedError(TrainingError):
    """Every rollout of a group failed."""


class SandboxError(TinkerCookbookError, RuntimeError):
    """The sandbox could not run the code (as opposed to code that ran and failed)."""


class WeightsError(TinkerCookbookError, RuntimeError):
    """Weights could not be downloaded, converted or merged."""


class WeightsDownloadError(WeightsError):
    """Weights could not be downloaded."""


class WeightsMergeError(WeightsError):
    """An adapter could not be merged into its base model."""


class WeightsAdapterError(WeightsError):
    """An adapter could not be converted to another layout."""


class EvalError(TinkerCookbookError, RuntimeError):
    """An evaluation could not be run."""
