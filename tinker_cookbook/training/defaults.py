"""The default hyperparameters of a training method; each loop declares its `Defaults` beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

S_co = TypeVar("S_co", bound="DataclassInstance", covariant=True)


@dataclass(frozen=True)
class ModelDefaults(Generic[S_co]):
    """Defaults for one group of models.

    sizes: a dataclass of the method's own keys, such as batch_size. learning_rate: None for the
    formula of `get_lr`. renderer_name: None for the first of the model's renderers.
    """

    sizes: S_co
    learning_rate: float | None = None
    renderer_name: str | None = None


@dataclass(frozen=True)
class Defaults(Generic[S_co]):
    """Defaults for nano and for all other models.

    nano: measured, because no formula extrapolates to 2 M parameters. within_context: names of
    sizes that are capped at the model's context length.
    """

    nano: ModelDefaults[S_co]
    others: ModelDefaults[S_co]
    within_context: tuple[str, ...] = ()
