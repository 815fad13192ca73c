"""Models by name: what is known of each, and where its files lie.

`resolve` answers for the names in the table (whose rows are in the files of families/), for local
directories (through their config.json) and for other hub names (the same files, from the cache or
the hub).
"""

from __future__ import annotations

import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from tinker_cookbook import families
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.families import Family, ModelInfo
from tinker_cookbook.utils import hub_reach, model_directory

logger = logging.getLogger(__name__)

_NANO_DIRECTORY = Path(__file__).with_name("nano")


def exponent_is_fitted(family: str) -> bool:
    """Whether the family's exponent was fitted to sweeps, rather than chosen."""
    exponent = families.exponent(family)
    return exponent is not None and exponent.fitted


TABLE: Mapping[str, ModelInfo] = {
    row.name: row for family in families.FAMILIES.values() for row in family.models
}
# Names in Tinker's lists of models that are not those of the published repositories
TINKER_NAMES: Mapping[str, str] = {
    name: meant
    for family in families.FAMILIES.values()
    for name, meant in family.tinker_names.items()
}
_said: set[str] = set()  # names of which `loaded_name` has spoken


def published_name(model_name: str) -> str:
    """The repository that a name from Tinker's lists means, without the `:suffix` that some have;
    any other name as it is, and what is a directory here."""
    name = model_name.partition(":")[0]
    if is_local_path(model_name) or not ("/" in name or name in TINKER_NAMES):
        return model_name
    return TINKER_NAMES.get(name, name)


def loaded_name(model_name: str) -> str:
    """`published_name`, for those who load the model's files: another name is said, once."""
    name = published_name(model_name)
    if name != model_name and model_name not in _said:
        _said.add(model_name)
        logger.warning("model_name=%s: loading %s, the published repository", model_name, name)
    return name


def lookup(model_name: str) -> ModelInfo:
    """What is known of a model. ConfigurationError, with the nearest known names, if nothing is."""
    model_name = published_name(model_name)
    if model_name in TABLE:
        return TABLE[model_name]
    if is_local_path(model_name):
        path = Path(model_name).expanduser()
        if not path.is_dir():
            raise ConfigurationError(f"model_name={model_name!r}: there is no such directory")
        if is_nano(model_name):
            return TABLE["nano"]
        if not (path / "config.json").is_file():
            raise ConfigurationError(
                f"model_name={model_name!r}: the directory holds no config.json, so it is not a "
                "model in Hugging Face format"
            )
        return _from_directory(model_name, path)
    directory, why = None, ""
    if model_name.count("/") == 1:
        reason = hub_reach.problem(model_name, "config.json")
        directory = model_directory.of_hub(model_name) if reason is None else None
        why = f"{reason}; " if reason else ""
    if directory is None:
        near = ", ".join(_nearest(model_name)) or "nano, " + ", ".join(list(TABLE)[1:4])
        raise ConfigurationError(
            f"model_name={model_name!r} is not a known model, and no config.json can be had for it "
            f"({why}known names near it: {near}). Use a known name or a local directory; for any "
            "other model renderer_name= and learning_rate= cannot be guessed and must be given"
        )
    return _from_directory(model_name, directory)


def context_length(model_name: str) -> int | None:
    """Tokens that a model can read at once; None where that is not known here."""
    try:
        return lookup(model_name).context_length
    except ConfigurationError:  # a server may have models that the table does not know
        return None


def load_path(model_name: str) -> str:
    """What to hand to `from_pretrained`: a directory in the package for nano, else the name."""
    model_name = loaded_name(model_name)
    if model_name == "nano":
        return str(_NANO_DIRECTORY)
    return os.path.expanduser(model_name) if model_name.startswith("~") else model_name


def is_local_path(model_name: str) -> bool:
    """Whether a name means a directory here, present or not, rather than a model on the hub."""
    return model_name.startswith(("/", "./", "../", "~")) or os.path.isdir(model_name)


def is_nano(model_name: str) -> bool:
    if model_name == "nano":
        return True
    return is_local_path(model_name) and (
        Path(model_name).expanduser().resolve() == _NANO_DIRECTORY.resolve()
    )


def check_files(model_name: str, file: str = "config.json") -> None:
    """Raise ConfigurationError, with the nearest known names, for a hub model whose files cannot be
    had; at once, where the libraries that load them would try for minutes."""
    name = load_path(model_name)
    if not is_local_path(name) and (reason := hub_reach.problem(name, file)):
        raise ConfigurationError(
            f"model_name={model_name!r}: its files cannot be had ({reason})"
            + access_hint(model_name)
        )


def access_hint(model_name: str) -> str:
    """What to try when a model's files cannot be had, to be put behind the reason."""
    row = TABLE.get(published_name(model_name))
    if row is not None and row.gated:
        return (
            f"; {row.name} is gated: accept its licence on the hub and set HF_TOKEN, or set "
            "model_name= to a local directory"
        )
    near = [] if row is not None else _nearest(model_name)
    return f"; known names near it: {', '.join(near)}" if near else ""


def recommended_renderer(model_name: str) -> str:
    """The first of the model's renderers; ConfigurationError where none can be told."""
    path = Path(load_path(model_name))
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigurationError(
            f"model_name={model_name!r}: the directory holds no config.json, so the renderer "
            "cannot be told; set renderer_name=, which is enough where only the tokenizer is used"
        )
    renderers = lookup(model_name).renderers
    if not renderers and model_directory.lacks_tokenizer(path):
        raise ConfigurationError(
            f"model_name={model_name!r}: there is no tokenizer beside its config.json, and "
            "renderer_name= alone would not help; put the tokenizer's files there "
            "(tokenizer.json, tokenizer_config.json), such as those of the model it was trained "
            "from"
        )
    if not renderers:
        raise ConfigurationError(
            f"model_name={model_name!r}: there is neither tokenizer_config.json nor "
            "chat_template.jinja beside its config.json, so renderer_name= cannot be guessed and "
            "must be given"
        )
    return renderers[0]


_NEAR = 0.6  # likeness, 0 to 1, from which on a known name is worth naming


def _nearest(model_name: str) -> list[str]:
    """Known names that are alike, with or without the organization, or that begin alike; first
    those that begin with exactly what was given."""
    wanted = model_name.lower()

    def likeness(name: str) -> tuple[bool, float, float]:
        whole, short = name.lower(), name.lower().split("/")[-1]
        begins = whole.startswith(wanted) or short.startswith(wanted)
        forms = (whole, short, short[: len(wanted)])
        each = [difflib.SequenceMatcher(None, form, wanted).ratio() for form in forms]
        return begins, max(each), each[0]

    by_likeness = {name: likeness(name) for name in TABLE}
    near = [name for name in TABLE if wanted and max(by_likeness[name][:2]) >= _NEAR]
    return sorted(near, key=by_likeness.__getitem__, reverse=True)[:3]


def _from_directory(model_name: str, directory: Path) -> ModelInfo:
    config = model_directory.config(directory)
    template = model_directory.chat_template(directory)
    # qwen3_vl_text, mllama_text_model: what a nested text model is called
    model_type = config.model_type.removesuffix("_model").removesuffix("_text")
    family = families.of_model_type(model_type)
    if family is not None and config.vocab_size < family.smallest_vocabulary:
        family = None
    name = model_type if family is None else family.name
    exponent = families.exponent(name)
    if family is not None and family.base_end_token is not None:
        is_base = model_directory.end_token(directory) == family.base_end_token
        template = "" if is_base else template
    return ModelInfo(
        name=model_name,
        family=name,
        organization="" if is_local_path(model_name) else model_name.split("/")[0],
        version_str="",
        size_str="",
        is_chat=bool(template),
        is_moe=config.is_moe,
        is_vl=config.is_vl,
        # a vision model's format is its own, whatever the format of its text model was
        renderers=_fitting_renderers(None if config.is_vl else family, template),
        hidden_size=config.hidden_size,
        context_length=config.context_length,
        lr_exponent=None if exponent is None else exponent.value,
        gated=False,
    )


def _fitting_renderers(family: Family | None, template: str | None) -> tuple[str, ...]:
    """Renderers told from the chat template itself; `template` for those that no other renderer
    writes; none where there is no tokenizer to ask."""
    if template is None:
        return ()
    if not template:
        return families.PLAIN_TRANSCRIPT
    formats = () if family is None else family.chat_formats
    fitting = (each.renderers for each in formats if each.fits(template))
    return next(fitting, families.OWN_TEMPLATE)
