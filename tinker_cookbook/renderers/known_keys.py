"""The keys of rows, messages and parts of content: which are read, and which are refused.

One table for all data. A key that decides about tokens or weights in some other tool, or that is a
near miss of one that is read here, is refused by name with what to write instead; null counts as
absent. Whatever else there is says nothing of tokens: it is not read, and the account of the data
names it (`row_account.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, SupportsFloat

from tinker_cookbook.utils.json_types import Plain

Level = Literal["row", "message", "part", "tool"]

REASONING = ("reasoning_content", "reasoning", "thinking")
ROW_KEYS = ("tools", "system")  # beside those that hold the conversation
MESSAGE_KEYS = (
    *("role", "content", "tool_calls", "unparsed_tool_calls", "trainable", "tool_call_id", "name"),
    *REASONING,
    "tools",  # refused by all renderers but `template`, which writes them itself
)
TOOL_KEYS = ("type", "function", "name", "description", "parameters", "strict")
PART_KEYS = ("type", "text", "thinking", "image")
REPLIES = frozenset(
    {"completion", "response", "output", "answer", "reply", "target", "chosen", "rejected"}
)
"""Keys of rows that hold a reply where the conversation does not end with one."""

SYSTEM = frozenset(
    {
        *("system_prompt", "system_message", "system_instruction", "system_instructions"),
        *("sys_prompt", "system_text", "system_content", "systemprompt", "custom_system_prompt"),
        *("developer_message", "developer_prompt", "custom_instructions", "sys"),
    }
)
_THOUGHTS = frozenset(
    {
        *("thinking_content", "reasoning_details", "thought", "thoughts", "think"),
        *("reasoning_text", "thinking_blocks", "chain_of_thought"),
    }
)
TEXTS = REPLIES | SYSTEM | _THOUGHTS | frozenset(REASONING)
"""Keys of rows whose text is not lost where the messages have it, too, as what the key says."""

_TRUE = (True, "true", "yes", "1", "1.0")  # the number 1 equals True
_FALSE = (False, "false", "no", "0", "0.0", "", [], {})


class _Group(NamedTuple):
    """Keys that are refused alike. matters(value, role): whether the value would change a thing."""

    levels: tuple[Level, ...]
    keys: frozenset[str]
    matters: Callable[[Plain, str], bool]
    advice: str  # behind "'key' "


def _any(value: Plain, role: str) -> bool:
    return True


def _filled(value: Plain, role: str) -> bool:
    return bool(value)


def _is_true(value: Plain) -> bool:
    return _plain(value) in _TRUE


def _is_false(value: Plain) -> bool:
    return _plain(value) in _FALSE


def _says_yes_or_no(value: Plain) -> bool:
    return _is_true(value) or _is_false(value)


def _plain(value: Plain) -> Plain:
    return value.strip().lower() if isinstance(value, str) else value


def _asks_otherwise(value: Plain, role: str) -> bool:
    """All but a yes to what is trained anyway."""
    return not (_is_true(value) and role == "assistant")


def _asks_to_mask(value: Plain, role: str) -> bool:
    return not _is_false(value)


def _structured(value: Plain, role: str) -> bool:
    """A list or an object, as it is or as JSON in text."""
    return bool(value) and (
        isinstance(value, list | dict)
        or (isinstance(value, str) and value.lstrip().startswith(("[", "{")))
    )


def _unlike(*harmless: Plain) -> Callable[[Plain, str], bool]:
    return lambda value, role: bool(value) and _plain(value) not in harmless


_NOT_READ = " is not read; "
_CUSTOMIZED = "give each message 'trainable': true or false, and set train_on_what=customized"
_FLAG = ": {value} is not read; " + _CUSTOMIZED
_ROW_WEIGHT = (
    ": {value} is not read; every example counts alike: mix data sets by weight with"
    " data=InterleavedChatDatasetBuilder, or remove the key"
)
_EVERY: tuple[Level, ...] = ("row", "message", "part")
_words = str.split

_GROUPS = (
    _Group(
        ("message",),
        frozenset({"function_call"}),
        _filled,
        " is the older form of a call, which is not read; use 'tool_calls'",
    ),
    _Group(
        ("message",),
        frozenset({"function_calls", "functions"}),
        _filled,
        _NOT_READ + "use 'tool_calls', and 'tools' beside the messages",
    ),
    _Group(
        ("message",),
        _THOUGHTS,
        _filled,
        _NOT_READ + "use 'reasoning_content'",
    ),
    _Group(
        ("message",),
        frozenset({"channel"}),
        _unlike("final"),
        ": {value} is not read; reasoning is 'reasoning_content', a call 'tool_calls'",
    ),
    _Group(
        ("message",),
        frozenset({"recipient"}),
        _unlike("all", "assistant", "user"),
        ": {value} is not read; a call is 'tool_calls'",
    ),
    _Group(
        ("message",),
        frozenset(_words("end_turn end_of_turn eot eos add_eos add_eot")),
        lambda value, role: _is_false(value),
        ": {value} is not read; every message ends its turn, and a trained one learns it",
    ),
    _Group(
        ("row",),
        frozenset(
            _words(
                "functions function_definitions available_functions available_tools tool_list"
                " tool_definitions tool_specs tool_schemas tools_json openai_tools function_specs"
                " tools_schema tool_schema apis api_list function_list"
            )
        ),
        _filled,
        _NOT_READ + "write them as 'tools'",
    ),
    _Group(("row",), frozenset({"function"}), _structured, _NOT_READ + "write it as 'tools'"),
    _Group(
        ("row",),
        SYSTEM,
        _filled,
        _NOT_READ + "write it as 'system', or as the first message",
    ),
    _Group(
        ("row",),
        _THOUGHTS | frozenset(REASONING),
        _filled,
        _NOT_READ + "put it into the assistant's message as 'reasoning_content'",
    ),
    _Group(
        ("row",),
        frozenset(
            _words(
                "chat_template chat_template_kwargs enable_thinking reasoning_effort"
                " add_generation_prompt continue_final_message documents"
            )
        ),
        lambda value, role: value not in ("", [], {}),
        ": {value} is not read; how messages become tokens is for renderer_name= to say",
    ),
    _Group(
        ("row",),
        frozenset(_words("label desirable is_desirable kto_tag kto_label")),
        lambda value, role: _is_false(value),
        ": {value} is not read; leave out the completions that are not good",
    ),
    _Group(
        ("row",),
        frozenset({"undesirable", "is_undesirable"}),
        _asks_to_mask,
        ": {value} is not read; leave out the completions that are not good",
    ),
    _Group(
        ("row",),
        frozenset(_words("input_ids token_ids labels")),
        lambda value, role: isinstance(value, list) and isinstance([*value, ""][0], int),
        _NOT_READ + "tokens are made of the messages",
    ),
    _Group(
        ("row", "message"),
        frozenset(_words("image images image_url video videos audio audios pixel_values")),
        _filled,
        _NOT_READ + "the formats here are for text",
    ),
    _Group(
        _EVERY, frozenset({"skip", "prefix", "context_only", "prompt_only"}), _asks_to_mask, _FLAG
    ),
    _Group(
        ("tool",),
        frozenset(
            _words(
                "input_schema inputs_schema parameters_schema parameter_schema args_schema"
                " arguments_schema json_schema schema args arguments argument params param inputs"
                " input input_parameters properties parameters_json_schema"
            )
        ),
        _filled,
        _NOT_READ + "write it as 'parameters'",
    ),
    _Group(
        ("tool",),
        frozenset({"required"}),
        _structured,
        _NOT_READ + "write it inside 'parameters'",
    ),
    _Group(
        ("tool",),
        frozenset(_words("desc descr docstring")),
        _filled,
        _NOT_READ + "write it as 'description'",
    ),
)
_GROUP_OF = {
    (level, key): group for group in _GROUPS for level in group.levels for key in group.keys
}
# words of keys that say what is trained
_TRAIN = frozenset(
    _words(
        "train training trainable trained loss learn learnable supervise supervised unmasked grad"
        " gradient"
    )
)
_MASK = frozenset(
    _words("mask masks masked ignore ignored exclude excluded untrained untrainable freeze frozen")
)
_NOT = frozenset(_words("no not non dont skip without"))
_OTHERS = frozenset(
    _words(
        "input inputs prompt prompts user users human system instruction instructions question"
        " questions query context header headers"
    )
)
"""What is not trained by default."""
_FEWER = frozenset(_words("last final first only just"))
_AMOUNT = frozenset(_words("weight weights scale multiplier factor coefficient coef"))
_BESIDE = frozenset(
    _words(
        "is are do does should use calculate compute include requires on in for from to this what"
        " the of all turn turns message messages token tokens completion completions response"
        " responses reply replies output outputs assistant assistants role roles sample samples"
        " example examples range ranges span spans index indexes indices idx position positions"
    )
)
_CASE = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def refusal(
    level: Level, key: str, value: Plain, read: Iterable[str], role: str = "assistant"
) -> str | None:
    """Why a key is refused that is none of those which are `read`, in half a line; None where it
    says nothing of tokens or weights. role: of the message that has it."""
    if value is None:
        return None
    plain = _CASE.sub("_", str(key)).lower().replace("-", "_").replace(" ", "_")
    if group := _GROUP_OF.get((level, plain)):
        if not group.matters(value, role):
            return None
        return repr(key) + group.advice.replace("{value}", f"{value!r:.40}")
    if level != "tool" and (problem := _flag_problem(level, plain, value, role)):
        return repr(key) + problem.replace("{value}", f"{value!r:.40}")
    if level == "message" and key == "tool":  # some name the tool of a result so
        return None
    names = [*read] if level == "tool" else [*read, "trainable"]
    near = difflib.get_close_matches(plain, names, n=1, cutoff=0.85)
    if not near or not _could_be(near[0], value, level):
        return None
    if near[0] == "trainable" and level != "message":
        return repr(key) + _FLAG.replace("{value}", f"{value!r:.40}")
    return f"unknown key {key!r}; did you mean {near[0]!r}?"


def _flag_problem(level: Level, key: str, value: Plain, role: str) -> str | None:
    """Of a key whose words say what is trained ("do_not_train", "loss_mask") or how much."""
    words = frozenset(key.replace("don't", "dont").split("_"))
    if level == "row" and key.endswith(("_weight", "_weights")) and _is_amount(value):
        return _ROW_WEIGHT
    says_all = words <= _TRAIN | _MASK | _NOT | _BESIDE | _OTHERS | _FEWER | _AMOUNT
    if level == "row":
        if not (says_all or isinstance(value, bool | list)):
            return None
        if key == "loss" and isinstance(value, float):  # a figure of somebody's model
            return None
    elif not (says_all or isinstance(value, bool | int | float | list) or _says_yes_or_no(value)):
        return None
    if words & {"weight", "weights"} or (says_all and words & _AMOUNT and words & _TRAIN):
        return _ROW_WEIGHT if level == "row" else _FLAG
    negative = bool(words & _MASK or (words & _TRAIN and words & _NOT))
    positive = bool(words & _TRAIN) and not negative
    others = bool(words & _OTHERS)  # to mask these is no more than usual, but not for all modes
    asks = (negative and (others or _asks_to_mask(value, role))) or (
        positive and (others or bool(words & _FEWER) or _asks_otherwise(value, role))
    )
    return _FLAG if asks else None


def _is_amount(value: Plain) -> bool:
    """A number, as it is or as text of it, or a list of them."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_amount, value))
    if not isinstance(value, str | SupportsFloat):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _could_be(name: str, value: Plain, level: Level) -> bool:
    """Whether the value of a near miss would be one of the key that is meant."""
    if name == "trainable":
        return isinstance(value, bool | int | float | str)
    if level != "row":
        return bool(value)
    if name in ("system", "instruction", "input", "output", "prompt", "completion"):
        return isinstance(value, str) and bool(value)
    return _structured(value, "")
