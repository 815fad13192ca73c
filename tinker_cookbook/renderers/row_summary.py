"""Summary of a data set's rows: what was converted, and which keys were dropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinker_cookbook.utils.misc_utils import counted

RowNotes = Mapping[tuple[str, str], int]
"""Counts for one row, by kind and item: ("row" | "message" | "part", dropped key), ("form", source
format), ("role", "human read as user"), ("replies", "prompt"), ("null", "tools" | "arguments"),
("excluded", "tie" | "row" | "truncated sample" ...) for a row that is not trained on."""

MAX_KEYS = 50  # dropped keys that the summary names at most


@dataclass
class RowSummary:
    """Adds up the notes of rows.

    source_formats: the formats known before any row is counted, for data sets that render rows
    only when they are drawn.
    """

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    source_formats: list[str] = field(default_factory=list)

    def add(self, notes: RowNotes) -> None:
        self.counts.update(notes)

    def lines(self) -> list[str]:
        """One line per converted format, then one each for roles, nulls and dropped keys."""
        formats = dict(self._counts_of("form"))
        lines = [f"rows of {name}" for name in self.source_formats if name not in formats]
        lines += [f"{counted(n, 'row')} of {name}" for name, n in formats.items()]
        if roles := [f"{role} ({counted(n, 'message')})" for role, n in self._counts_of("role")]:
            lines.append(f"roles: {', '.join(roles)}")
        for key, number in self._counts_of("replies"):
            lines.append(
                f"{counted(number, 'row')} with replies in '{key}', which are trained like the "
                "completion unless train_on_what=last_assistant_message"
            )
        lines += self.exclusions()
        if nulls := [f"{name} ({counted(n, 'row')})" for name, n in self._counts_of("null")]:
            lines.append(f"nulls dropped from {', '.join(nulls)}")
        keys = [
            f"{key} ({counted(number, level)})"
            for level in ("row", "message", "part")
            for key, number in self._counts_of(level)
        ]
        if len(keys) > MAX_KEYS:
            keys[MAX_KEYS:] = [f"{len(keys) - MAX_KEYS:,} more"]
        return lines + ([f"dropped keys: {', '.join(keys)}"] if keys else [])

    def exclusions(self) -> list[str]:
        """One line per kind of row that is left out on purpose: "12 ties dropped"."""
        return [f"{counted(n, kind)} dropped" for kind, n in self._counts_of("excluded")]

    def _counts_of(self, kind: str) -> list[tuple[str, int]]:
        return [(item, n) for (item_kind, item), n in self.counts.items() if item_kind == kind]
