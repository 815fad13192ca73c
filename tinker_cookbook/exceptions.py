"""The one exception tree. Every message names the key or file, the value found, and the fix."""


class TinkerCookbookError(Exception):
    """Root of every error this package raises on purpose."""


class ConfigurationError(TinkerCookbookError, ValueError):
    """A key or a combination of keys that cannot work; the command line prints one line."""


class DataError(TinkerCookbookError):
    """Something is wrong with the user's data."""


class DataFormatError(DataError, ValueError):
    """Data that cannot be read: not JSON, a missing field, a wrong type. Names file and line."""


class DataValidationError(DataError, ValueError):
    """Data that was read but cannot be used: nothing to train on, lengths that do not match."""


class RendererError(TinkerCookbookError, ValueError):
    """A conversation that a renderer cannot put into tokens. Names the message index."""


class TrainingError(TinkerCookbookError, RuntimeError):
    """A training or sampling request that failed; the engine goes on."""


class OutOfMemoryError(TrainingError):
    """The device or the host ran out of memory; the message names the key to lower."""


class CheckpointError(TinkerCookbookError, RuntimeError):
    """A checkpoint that is missing, damaged, in use, or belongs to another model."""


class StorageError(TinkerCookbookError, OSError):
    """A file of a run that the disk refuses to take: it is full, or must not be written to."""


class AllTrajectoriesFailedError(TrainingError):
    """No rollout of a group survived."""


class SandboxError(TinkerCookbookError, RuntimeError):
    """Code could not be run in the sandbox (not: the code itself failed)."""


class WeightsError(TinkerCookbookError, RuntimeError):
    """Weights could not be fetched, converted or merged."""


class WeightsDownloadError(WeightsError):
    """Weights could not be fetched."""


class WeightsMergeError(WeightsError):
    """An adapter could not be merged into its base model."""


class WeightsAdapterError(WeightsError):
    """An adapter could not be converted to another layout."""


class EvalError(TinkerCookbookError, RuntimeError):
    """An evaluation could not be run."""
