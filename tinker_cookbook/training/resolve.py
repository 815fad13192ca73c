"""The keys of a run at its start: those left out are filled in, and those that cannot
work are refused before any data is read or any step is paid for."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, get_args

import chz
from chz.tiepin import is_subtype_instance, type_repr

from tinker_cookbook import models
from tinker_cookbook.checkpoint_utils import resolve_renderer_name_from_checkpoint_or_default
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.model_info import warn_if_renderer_not_recommended
from tinker_cookbook.models import FilledConfig
from tinker_cookbook.renderers.registry import renderer_factory
from tinker_cookbook.service import locate_checkpoint


def fill(config: Any, method: str) -> FilledConfig:
    """A copy of a chz config in which keys that are None have what suits the data, the checkpoint
    it starts from and the model, in this order; and what was filled.

    model_name: in process, the published repository that it means (a server knows its own names).
    renderer_name: the one that the data's own common_config renders with; else the one that
    load_checkpoint_path was trained with; else the model's. One that does not fit the model is
    taken, with a warning. load_checkpoint_path: the directory of a run becomes the tinker:// path
    of its last checkpoint.
    """
    check_types(config)
    common = getattr(getattr(config, "dataset_builder", None), "common_config", None)
    if config.base_url is None:
        config = chz.replace(config, model_name=models.loaded_name(config.model_name))
    name = config.renderer_name
    if common is not None:
        if name not in (None, common.renderer_name):
            raise ConfigurationError(
                f"renderer_name={name}, but the data's common_config renders with "
                f"{common.renderer_name}: drop renderer_name"
            )
        name = common.renderer_name
    path = config.load_checkpoint_path
    if path is not None:
        path = locate_checkpoint(path, "weights", "load_checkpoint_path", config.base_url)
        name = resolve_renderer_name_from_checkpoint_or_default(
            model_name=config.model_name,
            explicit_renderer_name=name,
            load_checkpoint_path=path,
            base_url=config.base_url,
        )
    if name is not None:
        renderer_factory(name)  # refused before anything is said of it
    located = chz.replace(config, renderer_name=name, load_checkpoint_path=path)
    filled = models.fill_defaults(located, method)
    if path != config.load_checkpoint_path:
        filled.filled["load_checkpoint_path"] = path
    if config.renderer_name is None:
        filled.filled.setdefault("renderer_name", filled.config.renderer_name)
    warn_if_renderer_not_recommended(config.model_name, filled.config.renderer_name)
    return filled


def check_types(config: Any, prefix: str = "") -> None:
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


def check(config: Any) -> None:
    """Raises ConfigurationError for lengths that the model cannot read. The ranges of single keys
    are checked where a config is made (`CheckedConfig`)."""
    data = getattr(config, "dataset_builder", None)
    for holder in (config, getattr(data, "common_config", None)):
        _check_length(getattr(holder, "max_length", None), config.model_name)


def _is_of_type(value: Any, annotation: Any) -> bool:
    if isinstance(value, bool) and annotation not in (Any, object):
        return bool in (annotation, *get_args(annotation))  # True is an int to Python
    plain: Any = value
    if isinstance(value, Integral):
        plain = int(value)
    elif isinstance(value, Real):
        plain = float(value)
    return is_subtype_instance(plain, annotation)


def _check_length(max_length: int | None, model_name: str) -> None:
    """A row above the model's context would fail only when its step comes, perhaps hours later."""
    if max_length is None:
        return
    context_length = models.context_length(model_name)
    if context_length is not None and max_length > context_length:
        raise ConfigurationError(
            f"max_length={max_length}: {model_name} has a context of {context_length} tokens; "
            f"set max_length={context_length} or less"
        )
