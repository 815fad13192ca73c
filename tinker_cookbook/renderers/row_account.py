"""The account of rows: what was converted, and the keys that are not read, each named once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from tinker_cookbook.utils.misc_utils import counted

Notes = Mapping[tuple[str, str], int]
"""Of a row: ("row" | "message" | "part", key that is not read), ("form", how it is read),
("role", "human read as user"), ("replies", "prompt"), ("null", "tools" | "arguments") -> how
often."""

MAX_KEYS = 50  # that a line names


@dataclass
class RowAccount:
    """Adds up the notes of rows. forms: those that are known before a row is counted."""

    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    forms: list[str] = field(default_factory=list)

    def add(self, notes: Notes) -> None:
        self.counts.update(notes)

    def lines(self) -> list[str]:
        """One line for each form that was converted, for roles, and for keys that are not read."""
        forms = dict(self._of("form"))
        lines = [f"rows of {form}" for form in self.forms if form not in forms]
        lines += [f"{counted(n, 'row')} of {form}" for form, n in forms.items()]
        if roles := [f"{role} ({counted(n, 'message')})" for role, n in self._of("role")]:
            lines.append(f"roles: {', '.join(roles)}")
        for key, number in self._of("replies"):
            lines.append(
                f"{counted(number, 'row')} with replies in '{key}', which are trained like the "
                "completion but under train_on_what=last_assistant_message"
            )
        if nulls := [f"{what} ({counted(n, 'row')})" for what, n in self._of("null")]:
            lines.append(f"nulls left out of {', '.join(nulls)}")
        keys = [
            f"{key} ({counted(number, level)})"
            for level in ("row", "message", "part")
            for key, number in self._of(level)
        ]
        if len(keys) > MAX_KEYS:
            keys[MAX_KEYS:] = [f"{len(keys) - MAX_KEYS:,} more"]
        return lines + ([f"keys that are not read: {', '.join(keys)}"] if keys else [])

    def _of(self, kind: str) -> list[tuple[str, int]]:
        return [(what, n) for (each, what), n in self.counts.items() if each == kind]
