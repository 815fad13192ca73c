"""What JSON can say, as a type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = "str | float | bool | None | Sequence[Json] | Mapping[str, Json]"
JsonObject: TypeAlias = dict[str, Json]
