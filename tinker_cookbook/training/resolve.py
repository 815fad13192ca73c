"""Resolve a run's config at start-up: defaults for keys left at None, and checks of all others.

Errors are raised here, before any data is read or any step is computed.
"""

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
from tinker_cookbook.utils.private_apis import defaults_to_none

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
    """The config keys that `resolve_defaults` reads; the config is a chz object."""

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
    """The rendering settings in the `common_config` of a dataset builder."""

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
    """A default that was neither fitted nor measured; `Resolved.line` marks it."""


@dataclass(frozen=True)
class Resolved(Generic[C_co, S_co]):
    """A config with all defaults resolved.

    config: as stored in config.json. sizes: the method's own keys (batch_size, ...); a dataset
    builder with its own settings ignores them. filled: the defaults chosen for keys that were None.
    """

    config: C_co
    model_name: str
    renderer_name: str
    learning_rate: float
    sizes: S_co
    filled: Mapping[str, Value]

    def line(self) -> str | None:
        """The chosen defaults, for the log: `nano: learning_rate=0.003 batch_size=32`."""
        if not self.filled:
            return None
        chosen = " ".join(f"{key}={_format_value(value)}" for key, value in self.filled.items())
        return f"{self.model_name}: {chosen}"


def _format_value(value: Value) -> str:
    mark = " (an estimate)" if isinstance(value, Estimate) else ""
    return (f"{value:.3g}" if isinstance(value, float) else f"{value}") + mark


def resolve_defaults(config: C, defaults: Defaults[S]) -> Resolved[C, S]:
    """Replace the Nones of a config by defaults from the data, the checkpoint or the model.

    The data takes precedence over the checkpoint, and the checkpoint over the model. Only missing
    values are looked up, so an unknown model works if the user sets every key.

    model_name: in process, replaced by the published repository that it stands for (a server knows
    its own names). renderer_name: that of the data's own common_config, else the one that
    load_checkpoint_path was trained with, else the model's. A renderer that does not fit the model
    is used, with a warning. load_checkpoint_path: a run directory is replaced by the tinker:// path
    of its last checkpoint.

    Raises ConfigurationError for a value of the wrong type, a default that cannot be determined,
    and a length above the model's context. `CheckedConfig` checks the ranges of single keys.
    """
    check_types(config)
    given = config
    if config.base_url is None:
        config = chz.replace(config, model_name=models.loaded_name(config.model_name))
    model, path = config.model_name, config.load_checkpoint_path
    if path is not None:
        path = locate_checkpoint(path, "weights", "load_checkpoint_path", config.base_url)
    name = _data_or_checkpoint_renderer(config, path)
    if name is not None:
        renderer_factory(name)  # an unknown renderer is an error before it can cause a warning
    chooser = _DefaultChooser()
    model_defaults = defaults.nano if models.is_nano(model) else defaults.others
    rate = chooser.choose(
        "learning_rate", config.learning_rate, lambda: _learning_rate(model, model_defaults)
    )
    renderer = chooser.choose(
        "renderer_name",
        name,
        lambda: model_defaults.renderer_name or models.recommended_renderer(model),
    )
    sizes = _choose_sizes(config, defaults, model_defaults, chooser)
    if path is not None and path != config.load_checkpoint_path:
        chooser.filled["load_checkpoint_path"] = path
    if given.renderer_name is None:
        chooser.filled.setdefault("renderer_name", renderer)
    warn_if_renderer_not_recommended(model, renderer)
    config = chz.replace(
        config, **{key: _without_mark(value) for key, value in chooser.filled.items()}
    )
    _check_lengths(config)
    return Resolved(config, model, renderer, float(rate), sizes, chooser.filled)


class _DefaultChooser:
    """Records the keys that got a default, in order, for `Resolved.line`."""

    def __init__(self) -> None:
        self.filled: dict[str, Value] = {}

    def choose(self, key: str, given: V | None, default: Callable[[], V]) -> V:
        """The given value, or the default if it is None; computed only then."""
        if given is not None:
            return given
        self.filled[key] = value = default()
        return value


def _without_mark(value: Value) -> Value:
    """An Estimate as a plain float, as it goes into config.json."""
    return float(value) if isinstance(value, Estimate) else value


def _data_or_checkpoint_renderer(config: RunKeys, path: str | None) -> str | None:
    name, rendering = config.renderer_name, _rendering(config)
    if rendering is not None:
        if name not in (None, rendering.renderer_name):
            raise ConfigurationError(
                f"renderer_name={name}, but the data's common_config sets renderer_name="
                f"{rendering.renderer_name}; drop renderer_name"
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


def _learning_rate(model_name: str, model_defaults: ModelDefaults[DataclassInstance]) -> float:
    if model_defaults.learning_rate is not None:
        return model_defaults.learning_rate
    rate = get_lr(model_name)
    family = models.lookup(model_name).family
    return rate if models.exponent_is_fitted(family) else Estimate(rate)


def _choose_sizes(
    config: RunKeys,
    defaults: Defaults[S],
    model_defaults: ModelDefaults[S],
    chooser: _DefaultChooser,
) -> S:
    """The config's sizes; those without a config key have their defaults."""
    sizes = {
        field.name: chooser.choose(
            field.name,
            getattr(config, field.name),
            partial(_default_size, config, defaults, model_defaults, field),
        )
        for field in dataclasses.fields(model_defaults.sizes)
        if field.name in chz.chz_fields(config)
    }
    return dataclasses.replace(model_defaults.sizes, **sizes)


def _default_size(
    config: RunKeys,
    defaults: Defaults[S],
    model_defaults: ModelDefaults[S],
    field: dataclasses.Field[int],
) -> int:
    size: int = getattr(model_defaults.sizes, field.name)
    is_capped = field.name in defaults.within_context
    return within_context(size, config.model_name) if is_capped else size


def _check_lengths(config: RunKeys) -> None:
    """Reject a max_length above the model's context.

    Without this check, the run would fail when the first such example comes, perhaps hours later.
    """
    rendering = _rendering(config)
    own_length = config.max_length if isinstance(config, _HasLength) else None
    context = models.context_length(config.model_name)
    for length in (own_length, rendering.max_length if rendering else None):
        if length is not None and context is not None and length > context:
            raise ConfigurationError(
                f"max_length={length}: {config.model_name} has a context of {context} tokens; "
                f"set max_length={context} or less"
            )


def check_types(config: object, prefix: str = "") -> None:
    """Raise ConfigurationError for the first field whose value is not of the annotated type.

    Nested chz configs are checked, too. Needed because chz checks command-line arguments, but not
    values that Python code passes. Integers of any library, e.g. NumPy, pass as int, and real
    numbers as float.
    """
    for key, field in chz.chz_fields(config).items():
        value = getattr(config, key)
        if not _is_of_type(value, field.x_type):
            expected = type_repr(field.x_type).replace(" | ", " or ")
            raise ConfigurationError(f"{prefix}{key}={value!r}: expected {expected}")
        if chz.is_chz(value) and not isinstance(value, type):
            check_types(value, f"{prefix}{key}.")


def _is_of_type(value: object, annotation: Any) -> bool:  # Any: chz accepts any annotation
    if isinstance(value, bool) and annotation not in (Any, object):
        return bool in (annotation, *get_args(annotation))  # to isinstance, True is an int, too
    if isinstance(value, Integral):
        return is_subtype_instance(int(value), annotation)
    if isinstance(value, Real):
        return is_subtype_instance(float(value), annotation)
    try:
        return is_subtype_instance(value, annotation)
    except NameError:
        # chz evaluates the annotations of a callable without the names of its module, which fails
        # for an evaluator builder in a module with `from __future__ import annotations`
        return all(map(callable, value if isinstance(value, list) else [value]))


def unset_fields(data: object) -> set[str]:
    """The fields of a dataset builder that are None: they take the recipe's keys."""
    return {key for key in chz.chz_fields(data) if getattr(data, key) is None}


def set_unset_fields(data: H, values: Mapping[str, object]) -> H:
    """A copy of a dataset builder with its unset fields set to the values of the same names."""
    names = unset_fields(data)
    return chz.replace(data, **{key: value for key, value in values.items() if key in names})


def restore_unset_fields(
    stored: Mapping[str, Json], data_class: type, values: Mapping[str, Json]
) -> dict[str, Json]:
    """Undo `set_unset_fields` on a builder's plain data: drop the fields that it may have set.

    A stored config then follows the recipe's keys again if these are changed.
    """
    fields = chz.chz_fields(data_class)
    derived = {
        key
        for key, value in values.items()
        if key in fields
        and defaults_to_none(fields[key])
        and comparable(stored.get(key)) == comparable(value)
    }
    return {key: value for key, value in stored.items() if key not in derived}


def check_key_has_effect(key: str, value: Value | None, data: object) -> None:
    """Raise ConfigurationError for a recipe's key that the dataset builder would ignore."""
    if value is not None:
        raise ConfigurationError(
            f"{key}={value} has no effect on {type(data).__name__}, which has its own batch "
            f"settings: drop {key}, or set it on the data"
        )
