"""Split a batch into calls that the engine computes in one pass each.

The engine needs a second forward for a custom loss over more than one pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import tinker

if TYPE_CHECKING:
    from tinker_cookbook.service.api import ServiceClient


def tokens_per_pass_of(service: ServiceClient) -> int | None:
    """The tokens that the engine of a service computes in one pass; None if it does not tell."""
    return getattr(service.get_server_capabilities(), "tokens_per_pass", None)


def split_into_passes(
    batch: list[tinker.Datum], tokens_per_pass: int | None, unit: int = 1
) -> Iterator[list[tinker.Datum]]:
    """Split a batch into parts of at most `tokens_per_pass` tokens (None: one part).

    unit: datums that stay together, e.g. 2 for pairs; a longer unit makes a part of its own.
    """
    part: list[tinker.Datum] = []
    tokens = 0
    for start in range(0, len(batch), unit):
        together = batch[start : start + unit]
        length = sum(datum.model_input.length for datum in together)
        if part and tokens_per_pass is not None and tokens + length > tokens_per_pass:
            yield part
            part, tokens = [], 0
        part += together
        tokens += length
    if part:
        yield part
