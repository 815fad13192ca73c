"""Judges for tests."""

from __future__ import annotations

from tinker_cookbook.preference.types import Comparison, PreferenceModel
from tinker_cookbook.renderers import get_text_content


class Longer(PreferenceModel):
    """Prefers the longer completion; a tie otherwise."""

    async def __call__(self, comparison: Comparison) -> float:
        first, second = (
            len(get_text_content(messages[0]))
            for messages in (comparison.completion_A, comparison.completion_B)
        )
        return float((second > first) - (second < first))
