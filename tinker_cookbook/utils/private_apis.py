"""The private parts of chz and asyncio that we depend on, each with the reason.

The versions are pinned, and a test compares each with what it stands in for; nothing else in the
package touches an underscore of these two libraries.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import chz
from chz.field import Field
from chz.util import MISSING_TYPE


def blueprint_parameters(blueprint: chz.Blueprint[Any]) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """All parameters of a blueprint by dotted path, and the classes chosen so far by theirs.

    chz publishes them only as the text of its own `--help`, which cannot be laid out anew.
    """
    lazy = blueprint._make_lazy()
    return lazy.all_params, dict(lazy.meta_factory_value)


def has_no_default(field: Field) -> bool:
    """Whether a config must give the field a value. chz has no public accessor."""
    return isinstance(field._default, MISSING_TYPE) and isinstance(
        field._default_factory, MISSING_TYPE
    )


def defaults_to_none(field: Field) -> bool:
    """Whether None is the default of the field. chz has no public accessor."""
    return field._default is None


def field_doc(field: Field) -> str:
    """The `doc=` of a field. chz publishes it only inside its own `--help`."""
    return field._doc or ""


def abandon_task(task: asyncio.Task[Any]) -> None:
    """Leave a task that ignores its cancellation behind, without a warning.

    `asyncio.run` cancels all registered tasks at its end and waits for them without a limit, so it
    would never return. asyncio has no public way to take a task out of that set.
    """
    asyncio.tasks._unregister_task(task)
    task._log_destroy_pending = False  # type: ignore[attr-defined]
