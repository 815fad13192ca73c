"""What JSON can say, as types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

# as json.loads gives it
Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | bool | None"
# as json.dumps takes it, and whatever else only reads
Plain: TypeAlias = "Mapping[str, Plain] | Sequence[Plain] | str | float | bool | None"
JsonObject: TypeAlias = dict[str, Plain]
