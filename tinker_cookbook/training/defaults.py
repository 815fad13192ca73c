"""What suits a training method where the user says nothing; each has its `Defaults` beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S_co = TypeVar("S_co", bound="DataclassInstance", covariant=True)


@dataclass(frozen=True)
class ModelDefaults(Generic[S_co]):
    """sizes: a dataclass of the method's own keys, such as batch_size. learning_rate: None is the
    formula of `get_lr`. renderer_name: None is the first of the model's renderers."""

    sizes: S_co
    learning_rate: float | None = None
    renderer_name: str | None = None


@dataclass(frozen=True)
class Defaults(Generic[S_co]):
    """nano: measured on it, for what suits 2 M parameters follows from no formula. within_context:
    names of sizes that are cut to the model's context."""

    nano: ModelDefaults[S_co]
    others: ModelDefaults[S_co]
    within_context: tuple[str, ...] = ()
