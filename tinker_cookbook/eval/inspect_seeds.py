"""The seed of each request: the same in every repetition of an evaluation, different elsewhere.

Inspect passes one seed to all requests. With it alone, the replies to a sample in several epochs
would be equal, so it is combined with the sample, the epoch and the request's number within them.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from inspect_ai.log._samples import sample_active  # Inspect tells a model this way only

from tinker_cookbook.completers import derive_seed


class RequestSeeds:
    """Derives the seeds of one model's requests.

    The n-th request of a sample in an epoch always gets the same seed, whatever else is running; a
    sample that is tried again, or in a resumed evaluation, starts from its first request.
    """

    def __init__(self) -> None:
        self._calls: WeakKeyDictionary[Any, Iterator[int]] = WeakKeyDictionary()
        self._others: defaultdict[int, Iterator[int]] = defaultdict(itertools.count)

    def next(self, seed: int | None) -> int | None:
        """None, i.e. random, without a seed. Outside of a sample: by the number of the request."""
        if seed is None:
            return None
        sample = sample_active()
        if sample is None:
            return derive_seed(seed, next(self._others[seed]))
        call = next(self._calls.setdefault(sample, itertools.count()))
        return derive_seed(seed, _number(sample.sample.id), sample.epoch, call)


def _number(sample_id: int | str | None) -> int:
    """An integer for a sample id; 1 and "1" are different ids in Inspect."""
    digest = hashlib.blake2b(repr(sample_id).encode(), digest_size=8).digest()
    return int.from_bytes(digest)
