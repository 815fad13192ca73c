"""Comparisons that are too long for the model that judges them."""

from __future__ import annotations

import logging

logger = logging.getLogger(__name__)


def fits_context(length: int, context_window: int | None) -> bool:
    """Whether a judge can read a comparison; if not, warn that it counts as a tie.

    A tie and not an error: in the middle of a run, one long reply is no reason to end it.

    length: tokens of the prompt and the label. context_window: of the judge; None: not checked
    here, so that the service raises an error.
    """
    if context_window is None or length <= context_window:
        return True
    logger.warning(
        "a comparison of %d tokens does not fit into the judge's context of %d tokens: counted as a"
        " tie",
        *(length, context_window),
    )
    return False
