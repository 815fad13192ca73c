"""The model table: everything the cookbook knows of a model by its name, in one place.

`resolve` answers for the names in the table, for local directories (through their config.json) and
for other hub names (the same files, from the cache or the hub).
"""

from __future__ import annotations

import difflib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.utils import hub_reach
from tinker_cookbook.utils.misc_utils import is_whole

logger = logging.getLogger(__name__)

# The exponent of the learning-rate formula in hyperparam_utils, by family. For Llama and Qwen the
# official Tinker cookbook fitted it to sweeps and takes it for every generation, as is done here by
# how the family's name begins. For the others nobody has published one, and theirs here is a
# choice: of the two fitted exponents the one that gives models wider than 2000, as all of them are,
# the lower rate.
LLAMA_EXPONENT = 0.781
QWEN_EXPONENT = 0.0775
CHOSEN_EXPONENT = max(LLAMA_EXPONENT, QWEN_EXPONENT)
_FITTED_EXPONENTS: Mapping[str, float] = {
    "llama": LLAMA_EXPONENT,
    "mllama": LLAMA_EXPONENT,  # Llama with vision
    "qwen": QWEN_EXPONENT,
}
_CHOSEN_FAMILIES = ("deepseek_v3", "gpt_oss", "kimi_k2")
_NANO_DIRECTORY = Path(__file__).with_name("nano")


def exponent_is_fitted(family: str) -> bool:
    """Whether the family's exponent was fitted to sweeps, rather than chosen."""
    return family.startswith(tuple(_FITTED_EXPONENTS))


def _exponent(family: str) -> float | None:
    for beginning, exponent in _FITTED_EXPONENTS.items():
        if family.startswith(beginning):
            return exponent
    return CHOSEN_EXPONENT if family in _CHOSEN_FAMILIES else None


@dataclass(frozen=True)
class ModelInfo:
    """What is known of one model. None: not known.

    `renderers`: fitting chat formats, the recommended one first; empty when there is no tokenizer
    that tells. `size_str`: parameters, behind -A those active for a token; "" where not known.
    `context_length`: tokens, max_position_embeddings of config.json (DeepSeek-V3.1: what its card
    promises). `lr_exponent`: of the learning-rate formula in hyperparam_utils. `gated`: the hub
    wants a licence accepted.
    """

    name: str
    family: str
    organization: str
    version_str: str
    size_str: str
    is_chat: bool
    is_moe: bool
    is_vl: bool
    renderers: tuple[str, ...]
    hidden_size: int | None
    context_length: int | None
    lr_exponent: float | None
    gated: bool


def _qwen3(
    size: str,
    hidden_size: int,
    suffix: str = "",
    renderers: tuple[str, ...] = ("qwen3", "qwen3_disable_thinking"),
    context_length: int = 40_960,
) -> ModelInfo:
    return ModelInfo(
        name=f"Qwen/Qwen3-{size}{suffix}",
        family="qwen3_moe" if "-A" in size else "qwen3",
        organization="Qwen",
        version_str="3",
        size_str=size,
        is_chat=renderers != ("role_colon",),
        is_moe="-A" in size,
        is_vl=False,
        renderers=renderers,
        hidden_size=hidden_size,
        context_length=context_length,
        lr_exponent=_exponent("qwen3"),
        gated=False,
    )


def _llama(version: str, size: str, hidden_size: int, suffix: str = "") -> ModelInfo:
    return ModelInfo(
        name=f"meta-llama/Llama-{version}-{size}{suffix}",
        family="llama3",
        organization="meta-llama",
        version_str=version,
        size_str=size,
        is_chat=bool(suffix),
        is_moe=False,
        is_vl=False,
        renderers=("llama3",) if suffix else ("role_colon",),
        hidden_size=hidden_size,
        context_length=131_072,
        lr_exponent=_exponent("llama3"),
        gated=True,
    )


def _moe(
    name: str,
    family: str,
    version: str,
    size: str,
    hidden_size: int,
    context_length: int,
    renderers: tuple[str, ...],
) -> ModelInfo:
    """The mixtures of experts of other families."""
    return ModelInfo(
        name=name,
        family=family,
        organization=name.split("/")[0],
        version_str=version,
        size_str=size,
        is_chat=renderers != ("role_colon",),
        is_moe=True,
        is_vl=False,
        renderers=renderers,
        hidden_size=hidden_size,
        context_length=context_length,
        lr_exponent=_exponent(family),
        gated=False,
    )


_NANO = ModelInfo(
    name="nano",
    family="nano",
    organization="",
    version_str="1",
    size_str="2M",
    is_chat=True,
    is_moe=False,
    is_vl=False,
    renderers=("qwen3_instruct", "qwen3_disable_thinking", "qwen3"),
    hidden_size=192,
    context_length=2048,
    lr_exponent=None,  # its rates were measured, method by method
    gated=False,
)
_QWEN3_SIZES = {
    "0.6B": 1024,
    "1.7B": 2048,
    "4B": 2560,
    "8B": 4096,
    "14B": 5120,
    "32B": 5120,
    "30B-A3B": 2048,
    "235B-A22B": 4096,
}
_QWEN3_2507 = ("4B", "30B-A3B", "235B-A22B")
_GPT_OSS = (
    "gpt_oss_no_sysprompt",
    "gpt_oss_low_reasoning",
    "gpt_oss_medium_reasoning",
    "gpt_oss_high_reasoning",
)
_DEEPSEEK = ("deepseekv3", "deepseekv3_disable_thinking", "deepseekv3_thinking")
_TEMPLATE = ("template",)  # whatever the tokenizer's own chat template says

_ROWS = [
    _NANO,
    *(_qwen3(size, hidden) for size, hidden in _QWEN3_SIZES.items()),
    *(
        _qwen3(size, _QWEN3_SIZES[size], "-Base", ("role_colon",), 32_768)
        for size in ("0.6B", "1.7B", "4B", "8B", "14B", "30B-A3B")
    ),
    *(
        _qwen3(size, _QWEN3_SIZES[size], "-Instruct-2507", ("qwen3_instruct",), 262_144)
        for size in _QWEN3_2507
    ),
    *(
        _qwen3(size, _QWEN3_SIZES[size], "-Thinking-2507", ("qwen3",), 262_144)
        for size in _QWEN3_2507
    ),
    *(
        _llama(version, size, hidden, suffix)
        for version, size, hidden in (
            ("3.1", "8B", 4096),
            ("3.1", "70B", 8192),
            ("3.1", "405B", 16_384),
            ("3.2", "1B", 2048),
            ("3.2", "3B", 3072),
        )
        for suffix in ("", "-Instruct")
    ),
    _llama("3.3", "70B", 8192, "-Instruct"),
    _moe("deepseek-ai/DeepSeek-V3.1", "deepseek_v3", "3", "671B-A37B", 7168, 131_072, _DEEPSEEK),
    _moe(
        "deepseek-ai/DeepSeek-V3.1-Base",
        "deepseek_v3",
        "3",
        "671B-A37B",
        7168,
        131_072,
        ("role_colon",),
    ),
    _moe("openai/gpt-oss-20b", "gpt_oss", "1", "21B-A3.6B", 2880, 131_072, _GPT_OSS),
    _moe("openai/gpt-oss-120b", "gpt_oss", "1", "117B-A5.1B", 2880, 131_072, _GPT_OSS),
    _moe("moonshotai/Kimi-K2-Base", "kimi_k2", "K2", "1T-A32B", 7168, 131_072, ("role_colon",)),
    # kimi_k2 is the format of the thinking model: the others' replies have no think block
    _moe("moonshotai/Kimi-K2-Instruct", "kimi_k2", "K2", "1T-A32B", 7168, 131_072, _TEMPLATE),
    _moe("moonshotai/Kimi-K2-Instruct-0905", "kimi_k2", "K2", "1T-A32B", 7168, 262_144, _TEMPLATE),
    _moe("moonshotai/Kimi-K2-Thinking", "kimi_k2", "K2", "1T-A32B", 7168, 262_144, ("kimi_k2",)),
]
TABLE: Mapping[str, ModelInfo] = {row.name: row for row in _ROWS}
# Names in Tinker's lists of models that are not those of the published repositories
TINKER_NAMES: Mapping[str, str] = {
    **{f"Qwen/Qwen3-{size}-Instruct": f"Qwen/Qwen3-{size}-Instruct-2507" for size in _QWEN3_2507},
    "meta-llama/Llama-3.3-70B": "meta-llama/Llama-3.3-70B-Instruct",
    "DeepSeek-V3.1": "deepseek-ai/DeepSeek-V3.1",
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


def resolve(model_name: str) -> ModelInfo:
    """What is known of a model. ConfigurationError, with the nearest known names, if nothing is."""
    model_name = published_name(model_name)
    if model_name in TABLE:
        return TABLE[model_name]
    if is_local_path(model_name):
        path = Path(model_name).expanduser()
        if not path.is_dir():
            raise ConfigurationError(f"model_name={model_name!r}: there is no such directory")
        if is_nano(model_name):
            return _NANO
        if not (path / "config.json").is_file():
            raise ConfigurationError(
                f"model_name={model_name!r}: the directory holds no config.json, so it is not a "
                "model in Hugging Face format"
            )
        return _from_directory(model_name, path)
    directory, why = None, ""
    if model_name.count("/") == 1:
        reason = hub_reach.problem(model_name, "config.json")
        directory = _hub_files(model_name) if reason is None else None
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
        return resolve(model_name).context_length
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


# What holds a tokenizer's vocabulary, by its kind
VOCABULARY_FILES = (
    "tokenizer.json",
    *("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tiktoken.model"),
    *("vocab.json", "vocab.txt", "tekken.json"),
)


def lacks_tokenizer(path: str | Path) -> bool:
    """Whether this is a directory with no file that could hold a tokenizer's vocabulary."""
    path = Path(path)
    return path.is_dir() and not any((path / file).is_file() for file in VOCABULARY_FILES)


def is_nano(model_name: str) -> bool:
    """Whether a name means the bundled model."""
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
    renderers = resolve(model_name).renderers
    if not renderers and lacks_tokenizer(path):
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


def _hub_files(model_name: str) -> Path | None:
    """A directory with the small files of a hub model, each from the cache, else from the hub; None
    if there is no config.json."""
    config = _hub_file(model_name, "config.json")
    if config is None:
        return None
    # of the same revision, or they would lie in another directory
    revision = config.parent.name
    for name in ("tokenizer_config.json", "chat_template.jinja"):  # many models have only one
        _hub_file(model_name, name, revision)
    return config.parent


def _hub_file(model_name: str, file: str, revision: str | None = None) -> Path | None:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        cached = huggingface_hub.try_to_load_from_cache(model_name, file, revision=revision)
        if cached is not None:  # if no path, then the cache knows that the model lacks the file
            return Path(cached) if isinstance(cached, str) else None
        if hub_reach.problem(model_name, file):
            return None
        return Path(huggingface_hub.hf_hub_download(model_name, file, revision=revision))
    except (HfHubHTTPError, HFValidationError, OSError, ValueError):
        return None


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path} should hold a JSON object")
    return content


def _text_config(path: Path) -> dict[str, Any]:
    """config.json with what vision models nest, their text model, on top; the values that are read
    here have the right type, and those that may be unknown can be None."""
    config = _read_json(path)
    text = config.get("text_config")
    if not isinstance(text, dict | None):
        raise ConfigurationError(f"{path}: text_config={text!r}, but should be an object")
    config = {**config, **(text or {})}
    if not isinstance(family := config.get("model_type", ""), str):
        raise ConfigurationError(f"{path}: model_type={family!r}, but should be a string")
    for key in ("vocab_size", "hidden_size", "max_position_embeddings"):
        if key not in config or (config[key] is None and key != "vocab_size"):
            continue
        value = config[key]
        if not is_whole(value) or value < 1:
            raise ConfigurationError(
                f"{path}: {key}={value!r}, but should be a whole number of at least 1"
            )
    return config


def _chat_template(directory: Path) -> str | None:
    """The chat template among a model's files; "" if it has none, None if it has no tokenizer."""
    template = directory / "chat_template.jinja"
    if template.is_file():
        try:
            return template.read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{template} cannot be read as text: {error}") from error
    config = directory / "tokenizer_config.json"
    if not config.is_file():
        return None
    found = _read_json(config).get("chat_template")
    named = found if isinstance(found, list) else [{"name": "default", "template": found or ""}]
    try:  # several, by name; the one for chatting is called default
        by_name = {one["name"]: one["template"] for one in named}
        template = by_name.get("default", "")
        if not isinstance(template, str):
            raise TypeError
    except (KeyError, TypeError):
        raise ConfigurationError(
            f"{config}: chat_template={str(found)[:60]}, but should be a string or a list of"
            ' objects {"name": ..., "template": ...} with strings'
        ) from None
    return template


def _is_qwen3_base(family: str, directory: Path) -> bool:
    """Whether the files are those of a Qwen3 base model, whose tokenizer has the chat models'
    template all the same.

    Told from the end-of-sequence token: a chat model ends its turns with `<|im_end|>`, a base model
    its documents with `<|endoftext|>`. That is in the model's own files, while the name of a
    directory is up to who made it (`checkpoint-500`, a snapshot in the hub's cache).
    """
    config = directory / "tokenizer_config.json"
    if family not in ("qwen3", "qwen3_moe") or not config.is_file():
        return False
    token = _read_json(config).get("eos_token")
    return (token.get("content") if isinstance(token, dict) else token) == "<|endoftext|>"


def _from_directory(model_name: str, directory: Path) -> ModelInfo:
    config = _text_config(directory / "config.json")
    template = _chat_template(directory)
    # qwen3_vl_text, mllama_text_model: what a nested text model is called
    family = config.get("model_type", "unknown").removesuffix("_model").removesuffix("_text")
    if family == "llama" and config.get("vocab_size", 0) >= 128_256:
        family = "llama3"  # earlier Llamas had other vocabularies and templates
    if _is_qwen3_base(family, directory):
        template = ""
    experts = ("num_experts", "num_local_experts", "n_routed_experts")
    is_vl = "vision_config" in config
    return ModelInfo(
        name=model_name,
        family=family,
        organization="" if is_local_path(model_name) else model_name.split("/")[0],
        version_str="",
        size_str="",
        is_chat=bool(template),
        is_moe=any(config.get(key) for key in experts),
        is_vl=is_vl,
        # a vision model's format is its own, whatever the format of its text model was
        renderers=_fitting_renderers("" if is_vl else family, template),
        hidden_size=config.get("hidden_size"),
        context_length=config.get("max_position_embeddings"),
        lr_exponent=_exponent(family),
        gated=False,
    )


def _fitting_renderers(family: str, template: str | None) -> tuple[str, ...]:
    """Renderers told from the chat template itself; `template` for those that no other renderer
    writes; none where there is no tokenizer to ask."""
    if template is None:
        return ()
    if not template:
        return ("role_colon",)
    match family:
        # <function=: Qwen3-Coder, which writes calls in another form
        case "qwen3" | "qwen3_moe" if "<|im_start|>" in template and "<function=" not in template:
            if "enable_thinking" in template:
                return ("qwen3", "qwen3_disable_thinking")
            return ("qwen3",) if "<think>" in template else ("qwen3_instruct",)
        case "llama3" if "<|start_header_id|>" in template:
            return ("llama3",)
        case "deepseek_v3" if "<｜Assistant｜></think>" in template:  # V3 and R1 write it otherwise
            return _DEEPSEEK
        case "gpt_oss" if "<|channel|>" in template:
            return _GPT_OSS
        case "kimi_k2" if "<|im_middle|>" in template and "<think>" in template:
            return ("kimi_k2",)
        case _:
            return _TEMPLATE
