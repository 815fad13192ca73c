"""The Tinker cookbook's path of `tinker_cookbook.preference.envs`."""

from tinker_cookbook.preference.envs import (
    PairwisePreferenceGroupBuilder,
    PairwisePreferenceRLDatasetBuilder,
    TournamentPattern,
)

__all__ = [
    "PairwisePreferenceGroupBuilder",
    "PairwisePreferenceRLDatasetBuilder",
    "TournamentPattern",
]
