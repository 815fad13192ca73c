"""The keys of a run at its start: those left out are filled in, and those that cannot
work are refused before any data is read or any step is paid for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, get_args, runtime_checkable

import chz
from chz.tiepin import is_subtype_instance, type_repr

from tinker_cookbook import models
from tinker_cookbook.checkpoint_utils import resolve_renderer_name_from_checkpoint_or_default
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.hyperparam_utils import get_lr
from tinker_cookbook.model_info import warn_if_renderer_not_recommended
from tinker_cookbook.renderers.lengths import within_context
from tinker_cookbook.renderers.registry import renderer_factory
from tinker_cookbook.service import locate_checkpoint
from tinker_cookbook.training.defaults import Defaults, ModelDefaults
from tinker_cookbook.utils.json_types import Json
from tinker_cookbook.utils.plain_data import comparable

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Value = str | int | float
V = TypeVar("V", bound=Value)
H = TypeVar("H")
S = TypeVar("S", bound="DataclassInstance")
S_co = TypeVar("S_co", bound="DataclassInstance", covariant=True)
C = TypeVar("C", bound="RunKeys")
C_co = TypeVar("C_co", bound="RunKeys", covariant=True)


class RunKeys(Protocol):
    """The keys that are looked at in any run's config, a chz object."""

    @property
    def model_name(self) -> str: ...
    @property
    def renderer_name(self) -> str | None: ...
    @property
    def load_checkpoint_path(self) -> str | None: ...
    @property
    def learning_rate(self) -> float | None: ...
    @property
    def base_url(self) -> str | None: ...


class Rendering(Protocol):
    """What the `common_config` of data says of how it is rendered."""

    @property
    def renderer_name(self) -> str: ...
    @property
    def max_length(self) -> int | None: ...


@runtime_checkable
class _HasData(Protocol):
    @property
    def dataset_builder(self) -> object: ...


@runtime_checkable
class _HasRendering(Protocol):
    @property
    def common_config(self) -> Rendering | None: ...


@runtime_checkable
class _HasLength(Protocol):
    @property
    def max_length(self) -> int | None: ...


class Estimate(float):
    """A default that rests on a choice, neither fitted nor measured; `Resolved.line` says so."""


@dataclass(frozen=True)
class Resolved(Generic[C_co, S_co]):
    """A config in which nothing is left to be chosen.

    config: as it goes into config.json. sizes: the method's own keys (batch_size, ...), which data
    with settings of its own does not follow. filled: what was chosen, by key.
    """

    config: C_co
    model_name: str
    renderer_name: str
    learning_rate: float
    sizes: S_co
    filled: Mapping[str, Value]

    def line(self) -> str | None:
        """What was chosen, for the user: `nano: learning_rate=0.003 batch_size=32`."""
        if not self.filled:
            return None
        chosen = " ".join(f"{key}={_text(value)}" for key, value in self.filled.items())
        return f"{self.model_name}: {chosen}"


def _text(value: Value) -> str:
    mark = " (an estimate)" if isinstance(value, Estimate) else ""
    return (f"{value:.3g}" if isinstance(value, float) else f"{value}") + mark


def resolve_defaults(config: C, defaults: Defaults[S]) -> Resolved[C, S]:
    """A config whose keys that are None have what suits the data, the checkpoint it starts from
    and the model, in this order. Only what is missing is looked up, so an unknown model works when
    the user gives every key.

    model_name: in process, the published repository that it means (a server knows its own names).
    renderer_name: the one that the data's own common_config renders with; else the one that
    load_checkpoint_path was trained with; else the model's. One that does not fit the model is
    taken, with a warning. load_checkpoint_path: the directory of a run becomes the tinker:// path
    of its last checkpoint.

    ConfigurationError for a value of another type, for what cannot be told, and for lengths that
    the model cannot read. Ranges of single keys: `CheckedConfig`.
    """
    check_types(config)
    given = config
    if config.base_url is None:
        config = chz.replace(config, model_name=models.loaded_name(config.model_name))
    model, path = config.model_name, config.load_checkpoint_path
    if path is not None:
        path = locate_checkpoint(path, "weights", "load_checkpoint_path", config.base_url)
    name = _renderer_of_data_or_checkpoint(config, path)
    if name is not None:
        renderer_factory(name)  # refused before anything is said of it
    choice = _Choice()
    suits = defaults.nano if models.is_nano(model) else defaults.others
    rate = choice.of("learning_rate", config.learning_rate, lambda: _learning_rate(model, suits))
    renderer = choice.of(
        "renderer_name", name, lambda: suits.renderer_name or models.recommended_renderer(model)
    )
    sizes = _sizes(config, defaults, suits, choice)
    if path is not None and path != config.load_checkpoint_path:
        choice.filled["load_checkpoint_path"] = path
    if given.renderer_name is None:
        choice.filled.setdefault("renderer_name", renderer)
    warn_if_renderer_not_recommended(model, renderer)
    config = chz.replace(config, **{key: _plain(value) for key, value in choice.filled.items()})
    _check_lengths(config)
    return Resolved(config, model, renderer, float(rate), sizes, choice.filled)


class _Choice:
    """Remembers, in order, which keys were chosen."""

    def __init__(self) -> None:
        self.filled: dict[str, Value] = {}

    def of(self, key: str, given: V | None, rule: Callable[[], V]) -> V:
        if given is not None:
            return given
        self.filled[key] = value = rule()
        return value


def _plain(value: Value) -> Value:
    return float(value) if isinstance(value, Estimate) else value


def _renderer_of_data_or_checkpoint(config: RunKeys, path: str | None) -> str | None:
    name, rendering = config.renderer_name, _rendering(config)
    if rendering is not None:
        if name not in (None, rendering.renderer_name):
            raise ConfigurationError(
                f"renderer_name={name}, but the data's common_config renders with "
                f"{rendering.renderer_name}: drop renderer_name"
            )
        name = rendering.renderer_name
    if path is None:
        return name
    return resolve_renderer_name_from_checkpoint_or_default(
        model_name=config.model_name,
        explicit_renderer_name=name,
        load_checkpoint_path=path,
        base_url=config.base_url,
    )


def _rendering(config: object) -> Rendering | None:
    data = config.dataset_builder if isinstance(config, _HasData) else None
    return data.common_config if isinstance(data, _HasRendering) else None


def _learning_rate(model_name: str, suits: ModelDefaults[DataclassInstance]) -> float:
    if suits.learning_rate is not None:
        return suits.learning_rate
    rate = get_lr(model_name)
    family = models.lookup(model_name).family
    return rate if models.exponent_is_fitted(family) else Estimate(rate)


def _sizes(config: RunKeys, defaults: Defaults[S], suits: ModelDefaults[S], choice: _Choice) -> S:
    """As the config has them; where it has no such key, as the defaults have them."""
    sizes = {
        field.name: choice.of(
            field.name, getattr(config, field.name), partial(_size, config, defaults, suits, field)
        )
        for field in dataclasses.fields(suits.sizes)
        if field.name in chz.chz_fields(config)
    }
    return dataclasses.replace(suits.sizes, **sizes)


def _size(
    config: RunKeys, defaults: Defaults[S], suits: ModelDefaults[S], field: dataclasses.Field[int]
) -> int:
    usual: int = getattr(suits.sizes, field.name)
    cut = field.name in defaults.within_context
    return within_context(usual, config.model_name) if cut else usual


def _check_lengths(config: RunKeys) -> None:
    """A row above the model's context would fail only when its step comes, perhaps hours later."""
    rendering = _rendering(config)
    own = config.max_length if isinstance(config, _HasLength) else None
    context = models.context_length(config.model_name)
    for length in (own, rendering.max_length if rendering else None):
        if length is not None and context is not None and length > context:
            raise ConfigurationError(
                f"max_length={length}: {config.model_name} has a context of {context} tokens; "
                f"set max_length={context} or less"
            )


def check_types(config: object, prefix: str = "") -> None:
    """Raises ConfigurationError for the first field of a chz config, or of one in it, whose value
    is not of the annotated type. chz checks words of the command line, but nothing that Python
    code passes. Whole numbers of any library will do for an int, and real ones for a float."""
    for key, field in chz.chz_fields(config).items():
        value = getattr(config, key)
        if not _is_of_type(value, field.x_type):
            expected = type_repr(field.x_type).replace(" | ", " or ")
            raise ConfigurationError(f"{prefix}{key}={value!r}: expected {expected}")
        if chz.is_chz(value) and not isinstance(value, type):
            check_types(value, f"{prefix}{key}.")


def _is_of_type(value: object, annotation: Any) -> bool:  # what chz takes for a type
    if isinstance(value, bool) and annotation not in (Any, object):
        return bool in (annotation, *get_args(annotation))  # True is an int to Python
    if isinstance(value, Integral):
        return is_subtype_instance(int(value), annotation)
    if isinstance(value, Real):
        return is_subtype_instance(float(value), annotation)
    return is_subtype_instance(value, annotation)


def unset_fields(data: object) -> set[str]:
    """The fields of a data set's builder that it leaves to the recipe's keys: those that are
    None."""
    return {key for key in chz.chz_fields(data) if getattr(data, key) is None}


def set_unset_fields(data: H, values: Mapping[str, object]) -> H:
    """A copy of a builder in which each field that it leaves open has the value of its name."""
    names = unset_fields(data)
    return chz.replace(data, **{key: value for key, value in values.items() if key in names})


def restore_unset_fields(
    stored: Mapping[str, Json], data_class: type, values: Mapping[str, Json]
) -> dict[str, Json]:
    """`set_unset_fields` undone on a builder's plain data."""
    fields = chz.chz_fields(data_class)
    filled = {
        key
        for key, value in values.items()
        if key in fields
        and fields[key]._default is None
        and comparable(stored.get(key)) == comparable(value)
    }
    return {key: value for key, value in stored.items() if key not in filled}


def check_no_unused_keys(key: str, value: Value | None, data: object) -> None:
    """Raises ConfigurationError for a recipe's key that the data would not follow."""
    if value is not None:
        raise ConfigurationError(
            f"{key}={value} has no effect on {type(data).__name__}, which makes its batches "
            f"by settings of its own: drop {key}, or set it there"
        )
