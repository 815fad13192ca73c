"""Show conversations as training renders them: every token, and which tokens are trained.

    python -m tinker_cookbook.renderers.show model_name=Qwen/Qwen3-8B
    python -m tinker_cookbook.renderers.show model_name=Qwen/Qwen3-8B data.path=my.jsonl
    python -m tinker_cookbook.renderers.show dataset_path=my.jsonl train_on_what=last_assistant_turn
    python -m tinker_cookbook.renderers.show data.path=HuggingFaceH4/no_robots data.split=test

On a terminal, trained tokens have a green background, in two shades that alternate so that token
boundaries show. Elsewhere, and with NO_COLOR set, trained spans are enclosed in « and ». After the
conversations come the totals, and warnings about whatever training would leave out: examples
truncated at max_length, examples without trained tokens, replies with weight 0, reasoning that the
chat format drops, rows that cannot be rendered (training rejects a JSONL file for one such row, and
skips it in a data set). The exit code is 1 if training would reject the data. Without data.path, it
shows a few built-in conversations.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import chz

from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError, DataFormatError, RendererError
from tinker_cookbook.model_info import warn_if_renderer_not_recommended
from tinker_cookbook.renderers.base import Renderer
from tinker_cookbook.renderers.chats import (
    BadRow,
    Chat,
    check_file_exists,
    is_jsonl,
    make_row_reader,
    parse_row,
    read_chats,
)
from tinker_cookbook.renderers.examples import conversation_examples
from tinker_cookbook.renderers.lengths import default_max_length
from tinker_cookbook.renderers.messages import ToolSpec
from tinker_cookbook.renderers.registry import get_renderer
from tinker_cookbook.renderers.training_modes import TrainOnWhat
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.display import is_terminal
from tinker_cookbook.utils.program import cli


@chz.chz
class Conversations:
    """Where the conversations come from."""

    path: str | None = chz.field(
        default=None,
        doc="JSONL file of conversations, or a data set: hub name, directory or file (None: a few"
        " built-in conversations)",
    )
    name: str | None = chz.field(default=None, doc="configuration (subset) of the data set")
    split: str = chz.field(default="train", doc="split of the data set")
    message_field: str = chz.field(
        default="messages",
        doc="column with the list of messages (if there is no column `messages`, the format is"
        " detected from the other columns)",
    )


@chz.chz
class Config:
    model_name: str = chz.field(
        default="nano", doc="model whose tokenizer to use: nano, a hub name or a directory"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="chat format: how messages become tokens (None: the model's own)"
    )
    data: Conversations = chz.field(default_factory=Conversations, doc="conversations to show")
    dataset_path: str | None = chz.field(default=None, doc="alias of data.path")
    train_on_what: TrainOnWhat = chz.field(
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES, doc="which messages are trained"
    )
    max_length: int | None = chz.field(
        default=None,
        doc="tokens per example; longer ones are truncated on the right (None: as in sl_basic)",
    )
    start: int = chz.field(default=0, doc="conversations to skip")
    shown: int = chz.field(default=5, doc="conversations to print (0: only the totals)")
    limit: int | None = chz.field(
        default=None,
        doc="conversations to render and count (None: all of a file, 1000 of a data set)",
    )


def main(config: Config) -> None:
    # slow to import, and --help does not need it
    from tinker_cookbook.renderers.loss_mask_view import LossMaskPrinter, Totals

    _check_config(config)
    path = config.dataset_path or config.data.path
    name = config.renderer_name or models.recommended_renderer(config.model_name)
    renderer = get_renderer(name, get_tokenizer(config.model_name), model_name=config.model_name)
    warn_if_renderer_not_recommended(config.model_name, name)
    max_length = config.max_length or _default_max_length(config.model_name)
    chats = itertools.islice(_read_data(config, path), config.start, None)
    is_file = path is None or is_jsonl(path)
    limit = config.limit or (None if is_file else _DEFAULT_ROW_LIMIT)
    read = list(itertools.islice(chats, limit))
    if not read:
        raise ConfigurationError(f"start={config.start}: there are not that many conversations")

    rejects_file = path is not None and is_file
    unsupported = []
    if path is None:
        unsupported = [chat.location for chat in read if not _is_supported(renderer, chat)]
        read = [chat for chat in read if chat.location not in unsupported]
    totals = Totals(renderer, max_length, config.train_on_what, rejects_file)
    printer = LossMaskPrinter(
        renderer, sys.stdout, colours=is_terminal(sys.stdout) and not _is_colour_disabled()
    )
    printer.line(
        f"{config.model_name}, renderer {name}, train_on_what={config.train_on_what},"
        f" max_length={max_length}"
    )
    if config.shown:
        printer.legend()
    for number, chat in enumerate(read):
        notes = totals.add(chat)
        if number < config.shown:
            printer.chat(chat.location, totals.examples, notes)
    printer.summary(path or "built-in", totals)
    if unsupported:
        printer.line(
            f"Omitted, because this chat format does not support them: {', '.join(unsupported)}."
        )
    if next(chats, None) is not None:
        printer.line(
            f"The data has more conversations; set limit= to render more than these {limit:,}."
        )
    if not totals.num_examples or (totals.num_rejected and rejects_file):
        raise SystemExit(1)  # training would reject the data, too


def _is_supported(renderer: Renderer, chat: Chat | BadRow) -> bool:
    """Whether the chat format supports what a built-in conversation demonstrates."""
    assert isinstance(chat, Chat)
    try:
        conversation_examples(chat.messages_for(renderer), renderer)
    except RendererError:
        return False
    return True


def _check_config(config: Config) -> None:
    if config.dataset_path is not None and config.data.path is not None:
        raise ConfigurationError(
            f"dataset_path={config.dataset_path} and data.path={config.data.path} both name the"
            " data: remove one of them"
        )
    minima = {"max_length": 2, "start": 0, "shown": 0, "limit": 1}
    for key, minimum in minima.items():
        value = getattr(config, key)
        if value is not None and value < minimum:
            raise ConfigurationError(f"{key}={value}: expected {minimum} or more")


def _is_colour_disabled() -> bool:
    return bool(os.environ.get("NO_COLOR"))  # any non-empty value: https://no-color.org


def _default_max_length(model_name: str) -> int | None:
    """The default of recipes.sl_basic; None if the model is unknown, as for a bare tokenizer."""
    try:
        return default_max_length(model_name)
    except ConfigurationError:
        return None


def _read_data(config: Config, path: str | None) -> Iterator[Chat | BadRow]:
    """Yield the conversations of the data.

    As in training, one bad line in a JSONL file raises an error, and a bad row of a data set does
    not: it is yielded as a BadRow.
    """
    data = config.data
    if path is None:
        yield from _built_in_chats()
        return
    key = "dataset_path" if config.dataset_path else "data.path"
    check_file_exists(path, key)
    if is_jsonl(path):
        yield from read_chats(path, key, data.message_field)
    else:
        advice = "data.path=FILE.jsonl shows a file of your own"
        rows = data_files.open_stream(path, data.name, data.split, advice)
        parse = make_row_reader((placed.row for placed in rows), data.message_field, path)
        for number, (row, place) in enumerate(rows):
            location = place or f"{path}, row {number}"
            try:
                yield parse(row, location)
            except DataFormatError as error:
                yield BadRow(location, str(error).removeprefix(f"{location}: "))


_DEFAULT_ROW_LIMIT = 1000  # rows of a data set, which may have millions

_EXAMPLE_TOOL: ToolSpec = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "its name"}},
        "required": ["city"],
    },
}


def _built_in_chats() -> Iterator[Chat]:
    system = {"role": "system", "content": "Answer in one line."}

    def user(text: str) -> dict:
        return {"role": "user", "content": text}

    def assistant(text: str, thinking: str = "") -> dict:
        if not thinking:
            return {"role": "assistant", "content": text}
        parts = [{"type": "thinking", "thinking": thinking}, {"type": "text", "text": text}]
        return {"role": "assistant", "content": parts}

    def call(number: int, city: str) -> dict:
        arguments = f'{{"city": "{city}"}}'
        function = {"name": _EXAMPLE_TOOL["name"], "arguments": arguments}
        return {"type": "function", "id": f"functions.get_weather:{number}", "function": function}

    def result(number: int, text: str) -> dict:
        call_id = f"functions.get_weather:{number}"
        return {
            "role": "tool",
            "content": text,
            "tool_call_id": call_id,
            "name": _EXAMPLE_TOOL["name"],
        }

    hello = [user("What is the capital of Peru?"), assistant("Lima.")]
    yield _make_chat("two turns", [system, *hello, user("And of Chile?"), assistant("Santiago.")])
    thought = [
        user("What is 17 + 28?"),
        assistant("45", "7 + 8 = 15, so 5 and carry 1; 1 + 2 + 1 = 4."),
        user("Twice that?"),
        assistant("90", "2 * 45 = 90."),
    ]
    yield _make_chat("reasoning", thought)
    question = user("Is it warmer in Oslo or in Rome?")
    calls = {**assistant(""), "tool_calls": [call(0, "Oslo"), call(1, "Rome")]}
    results = [result(0, "4 degrees"), result(1, "15 degrees")]
    yield _make_chat(
        "tools", [system, question, calls, *results, assistant("In Rome.")], [_EXAMPLE_TOOL]
    )


def _make_chat(location: str, messages: list[Any], tools: Sequence[Any] = ()) -> Chat:
    return parse_row({"messages": messages, "tools": list(tools)}, location)


if __name__ == "__main__":
    cli(main, Config)
