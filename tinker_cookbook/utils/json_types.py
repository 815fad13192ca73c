"""Type aliases for JSON data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

# the result of json.loads
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
# the argument of json.dumps, and of other functions that only read
Plain: TypeAlias = "Mapping[str, Plain] | Sequence[Plain] | str | float | bool | None"
JsonObject: TypeAlias = dict[str, Plain]
