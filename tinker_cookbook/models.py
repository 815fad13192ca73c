"""Look up models by name: their facts (family, renderers, sizes) and the location of their files.

`lookup` accepts the published names in the table (from the files of families/), local directories
(through their config.json) and other hub names (the same file, from the hub or its cache).
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
    """Whether the family's learning-rate exponent was fitted to sweeps, not just chosen."""
    exponent = families.lookup_exponent(family)
    return exponent is not None and exponent.fitted


TABLE: Mapping[str, ModelInfo] = {
    row.name: row for family in families.FAMILIES.values() for row in family.models
}
# Names in Tinker's model lists that differ from the published repository -> the repository
TINKER_NAMES: Mapping[str, str] = {
    name: meant
    for family in families.FAMILIES.values()
    for name, meant in family.tinker_names.items()
}
_logged_names: set[str] = set()  # names whose replacement `loaded_name` has logged


def published_name(model_name: str) -> str:
    """Replace a name from Tinker's model lists by its published repository, and drop a `:suffix`.

    Other names and local directories are returned unchanged.
    """
    name = model_name.partition(":")[0]
    if is_local_path(model_name) or not ("/" in name or name in TINKER_NAMES):
        return model_name
    return TINKER_NAMES.get(name, name)


def loaded_name(model_name: str) -> str:
    """`published_name`, for code that loads the files: logs a replacement once per name."""
    name = published_name(model_name)
    if name != model_name and model_name not in _logged_names:
        _logged_names.add(model_name)
        logger.warning("model_name=%s: loading %s, the published repository", model_name, name)
    return name


def absolute_name(model_name: str) -> str:
    """The name under which programs in other directories find the same model: a relative path
    becomes absolute."""
    if model_name.startswith(("/", "~")) or not is_local_path(model_name):
        return model_name
    return os.path.abspath(model_name)


def lookup(model_name: str) -> ModelInfo:
    """The facts about a model, by name or directory.

    Raises ConfigurationError, with the nearest known names, for an unknown model.
    """
    model_name = published_name(model_name)
    if model_name in TABLE:
        return TABLE[model_name]
    if is_local_path(model_name):
        path = Path(model_name).expanduser()
        if not path.is_dir():
            raise ConfigurationError(f"model_name={model_name!r}: no such directory")
        if is_nano(model_name):
            return TABLE["nano"]
        if not (path / "config.json").is_file():
            raise ConfigurationError(
                f"model_name={model_name!r}: the directory has no config.json, so it is not a "
                "model in Hugging Face format"
            )
        return _from_directory(model_name, path)
    directory, why = None, ""
    if model_name.count("/") == 1:
        reason = hub_reach.problem(model_name, "config.json")
        directory = model_directory.of_hub(model_name) if reason is None else None
        why = f"{reason}; " if reason else ""
    if directory is None:
        near = ", ".join(_nearest_names(model_name)) or "nano, " + ", ".join(list(TABLE)[1:4])
        raise ConfigurationError(
            f"model_name={model_name!r} is not a known model, and its config.json could not be "
            f"downloaded ({why}similar known names: {near}). Use a known name or a local "
            "directory; for any other model set renderer_name= and learning_rate="
        )
    return _from_directory(model_name, directory)


def context_length(model_name: str) -> int | None:
    """Maximum context length of a model in tokens; None if it is unknown here."""
    try:
        return lookup(model_name).context_length
    except ConfigurationError:  # a server may have models that the table does not know
        return None


def load_path(model_name: str) -> str:
    """The argument for `from_pretrained`: the package's directory for nano, else the name."""
    model_name = loaded_name(model_name)
    if model_name == "nano":
        return str(_NANO_DIRECTORY)
    return os.path.expanduser(model_name) if model_name.startswith("~") else model_name


def is_local_path(model_name: str) -> bool:
    """Whether a name is a local path, existing or not, and not a name on the hub."""
    return model_name.startswith(("/", "./", "../", "~")) or os.path.isdir(model_name)


def is_nano(model_name: str) -> bool:
    if model_name == "nano":
        return True
    return is_local_path(model_name) and (
        Path(model_name).expanduser().resolve() == _NANO_DIRECTORY.resolve()
    )


def check_files(model_name: str, file: str = "config.json") -> None:
    """Raise ConfigurationError at once for a hub model whose files cannot be downloaded.

    transformers and huggingface_hub would retry for minutes first. The message lists the nearest
    known names.
    """
    name = load_path(model_name)
    if not is_local_path(name) and (reason := hub_reach.problem(name, file)):
        raise ConfigurationError(
            f"model_name={model_name!r}: its files could not be downloaded ({reason})"
            + access_hint(model_name)
        )


def access_hint(model_name: str) -> str:
    """A suggestion to append to a download error: accept the licence, or similar known names."""
    row = TABLE.get(published_name(model_name))
    if row is not None and row.gated:
        return (
            f"; {row.name} is gated: accept its licence on the hub and set HF_TOKEN, or set "
            "model_name= to a local directory"
        )
    near = [] if row is not None else _nearest_names(model_name)
    return f"; similar known names: {', '.join(near)}" if near else ""


def recommended_renderer(model_name: str) -> str:
    """The recommended renderer; raises ConfigurationError if it cannot be inferred."""
    path = Path(load_path(model_name))
    if path.is_dir() and not (path / "config.json").is_file():
        raise ConfigurationError(
            f"model_name={model_name!r}: the directory has no config.json to infer the "
            "renderer from; set renderer_name=, which is enough if only the tokenizer is used"
        )
    renderers = lookup(model_name).renderers
    if not renderers and model_directory.lacks_tokenizer(path):
        raise ConfigurationError(
            f"model_name={model_name!r}: there is no tokenizer next to its config.json, and "
            "renderer_name= alone would not help; put the tokenizer's files there "
            "(tokenizer.json, tokenizer_config.json), e.g. those of the model it was trained from"
        )
    if not renderers:
        raise ConfigurationError(
            f"model_name={model_name!r}: there is neither tokenizer_config.json nor "
            "chat_template.jinja next to its config.json, so renderer_name= cannot be "
            "inferred and must be given"
        )
    return renderers[0]


_MIN_SIMILARITY = 0.6  # difflib ratio from which a known name is suggested


def _nearest_names(model_name: str) -> list[str]:
    """Up to 3 known names similar to `model_name`, exact prefix matches first.

    Similarity is the best of three: of the whole name, of the name without the organization, and of
    that name cut to the length of what was typed, so that "qwen3" finds "Qwen/Qwen3-8B".
    """
    wanted = model_name.lower()

    def similarity(name: str) -> tuple[bool, float, float]:
        whole, short = name.lower(), name.lower().split("/")[-1]
        begins = whole.startswith(wanted) or short.startswith(wanted)
        variants = (whole, short, short[: len(wanted)])
        ratios = [difflib.SequenceMatcher(None, text, wanted).ratio() for text in variants]
        return begins, max(ratios), ratios[0]

    similarities = {name: similarity(name) for name in TABLE}
    near = [name for name in TABLE if wanted and max(similarities[name][:2]) >= _MIN_SIMILARITY]
    return sorted(near, key=similarities.__getitem__, reverse=True)[:3]


def _from_directory(model_name: str, directory: Path) -> ModelInfo:
    """Infer the facts about a model from its config.json and chat template."""
    config = model_directory.config(directory)
    template = model_directory.chat_template(directory)
    # The text model inside a vision model has a suffix: qwen3_vl_text, mllama_text_model.
    model_type = config.model_type.removesuffix("_model").removesuffix("_text")
    family = families.find_family(model_type)
    if family is not None and config.vocab_size < family.smallest_vocabulary:
        family = None
    name = model_type if family is None else family.name
    exponent = families.lookup_exponent(name)
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
        # A vision model has its own chat format, whatever family its text model is.
        renderers=_fitting_renderers(None if config.is_vl else family, template),
        hidden_size=config.hidden_size,
        context_length=config.context_length,
        lr_exponent=None if exponent is None else exponent.value,
        gated=False,
    )


def _fitting_renderers(family: Family | None, template: str | None) -> tuple[str, ...]:
    """The renderers that fit a chat template.

    None: there is no tokenizer, so nothing can be inferred. "": a base model. `template` if no
    other renderer fits.
    """
    if template is None:
        return ()
    if not template:
        return families.PLAIN_TRANSCRIPT
    formats = () if family is None else family.chat_formats
    fitting = (chat.renderers for chat in formats if chat.fits(template))
    return next(fitting, families.OWN_TEMPLATE)
