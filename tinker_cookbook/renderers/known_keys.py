"""Keys of rows, messages, content parts and tools: which are used, dropped or rejected.

One table serves all data sets. A key that another tool uses to change tokens or loss weights, or a
misspelling of a key used here, is rejected with an error that says what to write instead: dropping
it silently would train something else than the data asks for. A key whose value is null counts as
absent. All other keys have no effect on tokens; they are dropped, and the summary of the data names
them (`row_summary.py`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple, SupportsFloat

from tinker_cookbook.utils.json_types import Plain

Level = Literal["row", "message", "part", "tool"]

REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
ROW_KEYS = ("tools", "system")  # besides those that hold the conversation
MESSAGE_KEYS = (
    *("role", "content", "tool_calls", "unparsed_tool_calls", "trainable", "tool_call_id", "name"),
    *REASONING_KEYS,
    "tools",  # rejected by every renderer except `template`, whose chat template writes them
)
TOOL_KEYS = ("type", "function", "name", "description", "parameters", "strict")
PART_KEYS = ("type", "text", "thinking", "image")
REPLY_KEYS = frozenset(
    {"completion", "response", "output", "answer", "reply", "target", "chosen", "rejected"}
)
"""Keys of rows that hold the reply to a conversation that does not end with one."""

SYSTEM_PROMPT_KEYS = frozenset(
    {
        *("system_prompt", "system_message", "system_instruction", "system_instructions"),
        *("sys_prompt", "system_text", "system_content", "systemprompt", "custom_system_prompt"),
        *("developer_message", "developer_prompt", "custom_instructions", "sys"),
    }
)
_OTHER_REASONING_KEYS = frozenset(
    {
        *("thinking_content", "reasoning_details", "thought", "thoughts", "think"),
        *("reasoning_text", "thinking_blocks", "chain_of_thought"),
    }
)
TEXT_KEYS = REPLY_KEYS | SYSTEM_PROMPT_KEYS | _OTHER_REASONING_KEYS | frozenset(REASONING_KEYS)
"""Keys of rows whose text may be dropped if the messages hold the same text in the same role."""

_TRUE_VALUES = (True, "true", "yes", "1", "1.0")  # the number 1 equals True
_FALSE_VALUES = (False, "false", "no", "0", "0.0", "", [], {})


class _KeyRule(NamedTuple):
    """Keys that are rejected for the same reason.

    matters(value, role): whether this value would change tokens or loss weights. advice: the rest
    of the error message, after the quoted key.
    """

    levels: tuple[Level, ...]
    keys: frozenset[str]
    matters: Callable[[Plain, str], bool]
    advice: str


def _is_set(value: Plain, role: str) -> bool:
    return bool(value)


def _is_true(value: Plain) -> bool:
    return _normalise(value) in _TRUE_VALUES


def _is_false(value: Plain) -> bool:
    return _normalise(value) in _FALSE_VALUES


def _is_yes_or_no(value: Plain) -> bool:
    return _is_true(value) or _is_false(value)


def _normalise(value: Plain) -> Plain:
    return value.strip().lower() if isinstance(value, str) else value


def _differs_from_default(value: Plain, role: str) -> bool:
    """False only for a request to train an assistant message, which is trained anyway."""
    return not (_is_true(value) and role == "assistant")


def _asks_to_mask(value: Plain, role: str) -> bool:
    return not _is_false(value)


def _is_structure(value: Plain, role: str) -> bool:
    """Whether the value is a non-empty list or object, or a JSON string that begins like one."""
    return bool(value) and (
        isinstance(value, list | dict)
        or (isinstance(value, str) and value.lstrip().startswith(("[", "{")))
    )


def _unless_in(*harmless: Plain) -> Callable[[Plain, str], bool]:
    return lambda value, role: bool(value) and _normalise(value) not in harmless


_NOT_SUPPORTED = " is not supported; "
_HOW_TO_CUSTOMIZE = "give each message 'trainable': true or false, and set train_on_what=customized"
_USE_TRAINABLE = ": {value} is not supported; " + _HOW_TO_CUSTOMIZE
_WEIGHT_DATA_SETS = (
    ": {value} is not supported; all examples have the same weight: mix data sets by weight with"
    " data=InterleavedChatDatasetBuilder, or remove the key"
)
_ANY_LEVEL: tuple[Level, ...] = ("row", "message", "part")
_split_words = str.split

_RULES = (
    _KeyRule(
        ("message",),
        frozenset({"function_call"}),
        _is_set,
        " is OpenAI's deprecated format of a tool call, which is not supported; use 'tool_calls'",
    ),
    _KeyRule(
        ("message",),
        frozenset({"function_calls", "functions"}),
        _is_set,
        _NOT_SUPPORTED + "use 'tool_calls' in the message and 'tools' in the row",
    ),
    _KeyRule(
        ("message",),
        _OTHER_REASONING_KEYS,
        _is_set,
        _NOT_SUPPORTED + "use 'reasoning_content'",
    ),
    _KeyRule(
        ("message",),
        frozenset({"channel"}),
        _unless_in("final"),
        ": {value} is not supported; write reasoning as 'reasoning_content' and a tool call as"
        " 'tool_calls'",
    ),
    _KeyRule(
        ("message",),
        frozenset({"recipient"}),
        _unless_in("all", "assistant", "user"),
        ": {value} is not supported; write a tool call as 'tool_calls'",
    ),
    _KeyRule(
        ("message",),
        frozenset(_split_words("end_turn end_of_turn eot eos add_eos add_eot")),
        lambda value, role: _is_false(value),
        ": {value} is not supported; every message is rendered with its end-of-turn token, which is"
        " trained if the message is",
    ),
    _KeyRule(
        ("row",),
        frozenset(
            _split_words(
                "functions function_definitions available_functions available_tools tool_list"
                " tool_definitions tool_specs tool_schemas tools_json openai_tools function_specs"
                " tools_schema tool_schema apis api_list function_list"
            )
        ),
        _is_set,
        _NOT_SUPPORTED + "write them as 'tools'",
    ),
    _KeyRule(
        ("row",), frozenset({"function"}), _is_structure, _NOT_SUPPORTED + "write it as 'tools'"
    ),
    _KeyRule(
        ("row",),
        SYSTEM_PROMPT_KEYS,
        _is_set,
        _NOT_SUPPORTED + "write it as 'system', or as the first message",
    ),
    _KeyRule(
        ("row",),
        _OTHER_REASONING_KEYS | frozenset(REASONING_KEYS),
        _is_set,
        _NOT_SUPPORTED + "put it into the assistant's message as 'reasoning_content'",
    ),
    _KeyRule(
        ("row",),
        frozenset(
            _split_words(
                "chat_template chat_template_kwargs enable_thinking reasoning_effort"
                " add_generation_prompt continue_final_message documents"
            )
        ),
        lambda value, role: value not in ("", [], {}),
        ": {value} is not supported; set renderer_name= to choose how messages become tokens",
    ),
    _KeyRule(
        ("row",),
        frozenset(_split_words("label desirable is_desirable kto_tag kto_label")),
        lambda value, role: _is_false(value),
        ": {value} is not supported; remove rows with bad completions from the data",
    ),
    _KeyRule(
        ("row",),
        frozenset({"undesirable", "is_undesirable"}),
        _asks_to_mask,
        ": {value} is not supported; remove rows with bad completions from the data",
    ),
    _KeyRule(
        ("row",),
        frozenset(_split_words("input_ids token_ids labels")),
        lambda value, role: isinstance(value, list) and isinstance([*value, ""][0], int),
        _NOT_SUPPORTED + "tokens are rendered from the messages",
    ),
    _KeyRule(
        ("row", "message"),
        frozenset(_split_words("image images image_url video videos audio audios pixel_values")),
        _is_set,
        _NOT_SUPPORTED + "all renderers here are for text",
    ),
    _KeyRule(
        _ANY_LEVEL,
        frozenset({"skip", "prefix", "context_only", "prompt_only"}),
        _asks_to_mask,
        _USE_TRAINABLE,
    ),
    _KeyRule(
        ("tool",),
        frozenset(
            _split_words(
                "input_schema inputs_schema parameters_schema parameter_schema args_schema"
                " arguments_schema json_schema schema args arguments argument params param inputs"
                " input input_parameters properties parameters_json_schema"
            )
        ),
        _is_set,
        _NOT_SUPPORTED + "write it as 'parameters'",
    ),
    _KeyRule(
        ("tool",),
        frozenset({"required"}),
        _is_structure,
        _NOT_SUPPORTED + "write it inside 'parameters'",
    ),
    _KeyRule(
        ("tool",),
        frozenset(_split_words("desc descr docstring")),
        _is_set,
        _NOT_SUPPORTED + "write it as 'description'",
    ),
)
_RULE_BY_KEY = {(level, key): rule for rule in _RULES for level in rule.levels for key in rule.keys}
# Words inside keys, from which `_flag_problem` tells what a flag such as "do_not_train" asks for.
_TRAIN_WORDS = frozenset(
    _split_words(
        "train training trainable trained loss learn learnable supervise supervised unmasked grad"
        " gradient"
    )
)
_MASK_WORDS = frozenset(
    _split_words(
        "mask masks masked ignore ignored exclude excluded untrained untrainable freeze frozen"
    )
)
_NEGATIONS = frozenset(_split_words("no not non dont skip without"))
_PROMPT_WORDS = frozenset(
    _split_words(
        "input inputs prompt prompts user users human system instruction instructions question"
        " questions query context header headers"
    )
)
"""Parts of a conversation that are not trained by default."""
_SUBSET_WORDS = frozenset(_split_words("last final first only just"))
_WEIGHT_WORDS = frozenset(_split_words("weight weights scale multiplier factor coefficient coef"))
_NEUTRAL_WORDS = frozenset(
    _split_words(
        "is are do does should use calculate compute include requires on in for from to this what"
        " the of all turn turns message messages token tokens completion completions response"
        " responses reply replies output outputs assistant assistants role roles sample samples"
        " example examples range ranges span spans index indexes indices idx position positions"
    )
)
_TEXT_KEYS_OF_ROWS = frozenset(
    _split_words("system instruction input output prompt completion question answer")
)
_CAMEL_CASE_BOUNDARY = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


def find_key_problem(
    level: Level, key: str, value: Plain, known: Iterable[str], role: str = "assistant"
) -> str | None:
    """Why a key that is not among the `known` ones is rejected; None if it may be dropped.

    The answer is half a line, to follow a location. role: the role of the message with the key.
    """
    if value is None:
        return None
    name = _CAMEL_CASE_BOUNDARY.sub("_", str(key)).lower().replace("-", "_").replace(" ", "_")
    if rule := _RULE_BY_KEY.get((level, name)):
        if not rule.matters(value, role):
            return None
        return repr(key) + rule.advice.replace("{value}", f"{value!r:.40}")
    if level != "tool" and (problem := _flag_problem(level, name, value, role)):
        return repr(key) + problem.replace("{value}", f"{value!r:.40}")
    if level == "message" and key == "tool":  # some data sets name the tool of a tool result here
        return None
    candidates = [*known] if level == "tool" else [*known, "trainable"]
    near = difflib.get_close_matches(name, candidates, n=1, cutoff=0.85)
    if not near or not _is_plausible_typo(near[0], value, level):
        return None
    if near[0] == "trainable" and level != "message":
        return repr(key) + _USE_TRAINABLE.replace("{value}", f"{value!r:.40}")
    return f"unknown key {key!r}; did you mean {near[0]!r}?"


def _flag_problem(level: Level, key: str, value: Plain, role: str) -> str | None:
    """The problem with a key whose words select what is trained ("do_not_train", "loss_mask") or
    weigh it ("sample_weight"); None if it asks for nothing that differs from the default.

    Data sets spell such flags in too many ways to list, so the words of the key are looked up
    instead. If one of them is in none of the sets above, the key may mean something else: then only
    the values that flags have are rejected (on rows booleans and lists, elsewhere also numbers and
    yes or no as text).
    """
    words = frozenset(key.replace("don't", "dont").split("_"))
    if level == "row" and key.endswith(("_weight", "_weights")) and _is_number_like(value):
        return _WEIGHT_DATA_SETS
    all_words_known = (
        words
        <= _TRAIN_WORDS
        | _MASK_WORDS
        | _NEGATIONS
        | _NEUTRAL_WORDS
        | _PROMPT_WORDS
        | _SUBSET_WORDS
        | _WEIGHT_WORDS
    )
    if level == "row":
        if not (all_words_known or isinstance(value, bool | list)):
            return None
        if key == "loss" and isinstance(value, float):  # a measured loss, not a flag
            return None
    elif not (
        all_words_known or isinstance(value, bool | int | float | list) or _is_yes_or_no(value)
    ):
        return None
    if words & {"weight", "weights"} or (
        all_words_known and words & _WEIGHT_WORDS and words & _TRAIN_WORDS
    ):
        return _WEIGHT_DATA_SETS if level == "row" else _USE_TRAINABLE
    negative = bool(words & _MASK_WORDS or (words & _TRAIN_WORDS and words & _NEGATIONS))
    positive = bool(words & _TRAIN_WORDS) and not negative
    # Rejected whatever its value: whether the prompt is trained depends on train_on_what, so even a
    # flag that masks it does not hold for every mode.
    names_prompt = bool(words & _PROMPT_WORDS)
    differs = (negative and (names_prompt or _asks_to_mask(value, role))) or (
        positive
        and (names_prompt or bool(words & _SUBSET_WORDS) or _differs_from_default(value, role))
    )
    return _USE_TRAINABLE if differs else None


def _is_number_like(value: Plain) -> bool:
    """Whether the value is a number, a numeric string, or a non-empty list of these."""
    if isinstance(value, list):
        return bool(value) and all(map(_is_number_like, value))
    if not isinstance(value, str | SupportsFloat):
        return False
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_plausible_typo(name: str, value: Plain, level: Level) -> bool:
    """Whether the value fits the key `name`, so that a similar key is probably a typo of it."""
    if name == "trainable":
        return isinstance(value, bool | int | float | str)
    if level != "row":
        return bool(value)
    if name in _TEXT_KEYS_OF_ROWS:
        return isinstance(value, str) and bool(value)
    return _is_structure(value, "")
