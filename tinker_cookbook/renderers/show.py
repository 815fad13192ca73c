"""Conversations as the model will see them in training: every token, and which of them are trained.

    python -m tinker_cookbook.renderers.show model_name=Qwen/Qwen3-8B
    python -m tinker_cookbook.renderers.show model_name=Qwen/Qwen3-8B data.path=my.jsonl
    python -m tinker_cookbook.renderers.show dataset_path=my.jsonl train_on_what=last_assistant_turn
    python -m tinker_cookbook.renderers.show data.path=HuggingFaceH4/no_robots data.split=test

On a terminal trained tokens stand on green, in two shades that change at each token; elsewhere,
and with NO_COLOR, they are put between « and ». Behind the conversations come the totals, and what
training would leave out: ends that max_length cuts off, examples that train nothing, replies
without weight, reasoning that the format drops, rows that cannot be rendered (for one of these
training refuses a file, of a data set it leaves out the row). The exit code is 1 where training
would refuse the data. Without data.path: a few conversations of our own.
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
    read_chats,
    row_chat,
    row_reader,
)
from tinker_cookbook.renderers.examples import conversation_examples
from tinker_cookbook.renderers.lengths import usual_length
from tinker_cookbook.renderers.messages import ToolSpec
from tinker_cookbook.renderers.registry import get_renderer
from tinker_cookbook.renderers.training_modes import TrainOnWhat
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.display import is_terminal
from tinker_cookbook.utils.program import cli


@chz.chz
class Conversations:
    path: str | None = chz.field(
        default=None,
        doc="JSONL file of conversations; or a data set: name on the hub, directory or file (None:"
        " a few built-in conversations)",
    )
    name: str | None = chz.field(default=None, doc="configuration of the data set")
    split: str = chz.field(default="train", doc="split of the data set")
    message_field: str = chz.field(
        default="messages",
        doc="column with the list of messages (where there is no such column as the default: by"
        " the form of the rows)",
    )


@chz.chz
class Config:
    model_name: str = chz.field(
        default="nano", doc="whose tokenizer: nano, a hub name, a directory"
    )
    renderer_name: str | None = chz.field(
        default=None, doc="how messages become tokens (None: by the model)"
    )
    data: Conversations = chz.field(default_factory=Conversations, doc="what is shown")
    dataset_path: str | None = chz.field(default=None, doc="short for data.path")
    train_on_what: TrainOnWhat = chz.field(
        default=TrainOnWhat.ALL_ASSISTANT_MESSAGES, doc="which messages are trained"
    )
    max_length: int | None = chz.field(
        default=None, doc="tokens an example; longer ones lose their end (None: as in sl_basic)"
    )
    start: int = chz.field(default=0, doc="conversations that are passed over")
    shown: int = chz.field(default=5, doc="conversations that are printed (0: only the totals)")
    limit: int | None = chz.field(
        default=None,
        doc="conversations that are rendered and counted (None: all of a file, 1000 of a data set)",
    )


def main(config: Config) -> None:
    from tinker_cookbook.renderers.show_page import Page, Totals  # slow; --help does without

    _check(config)
    path = config.dataset_path or config.data.path
    name = config.renderer_name or models.recommended_renderer(config.model_name)
    renderer = get_renderer(name, get_tokenizer(config.model_name), model_name=config.model_name)
    warn_if_renderer_not_recommended(config.model_name, name)
    max_length = config.max_length or _usual_length(config.model_name)
    chats = itertools.islice(_chats(config, path), config.start, None)
    is_file = path is None or is_jsonl(path)
    limit = config.limit or (None if is_file else _ROWS)
    read = list(itertools.islice(chats, limit))
    if not read:
        raise ConfigurationError(f"start={config.start}: there are not that many conversations")

    refused_as_a_whole = path is not None and is_file
    unknown = []
    if path is None:
        unknown = [chat.where for chat in read if not _is_known(renderer, chat)]
        read = [chat for chat in read if chat.where not in unknown]
    totals = Totals(renderer, max_length, config.train_on_what, refused_as_a_whole)
    page = Page(renderer, sys.stdout, colours=is_terminal(sys.stdout) and not _no_colour())
    page.line(
        f"{config.model_name}, renderer {name}, train_on_what={config.train_on_what},"
        f" max_length={max_length}"
    )
    if config.shown:
        page.legend()
    for number, chat in enumerate(read):
        notes = totals.add(chat)
        if number < config.shown:
            page.chat(chat.where, totals.examples, notes)
    page.summary(path or "built-in", totals)
    if unknown:
        page.line(f"Left out, for this format has no place for them: {', '.join(unknown)}.")
    if next(chats, None) is not None:
        page.line(f"There are more than these {limit:,}: limit= renders more of them.")
    if not totals.num_examples or (totals.num_refused and refused_as_a_whole):
        raise SystemExit(1)  # training would refuse it, too


def _is_known(renderer: Renderer, chat: Chat | BadRow) -> bool:
    """Whether the format has a place for what a built-in conversation shows."""
    assert isinstance(chat, Chat)
    try:
        conversation_examples(chat.messages_for(renderer), renderer)
    except RendererError:
        return False
    return True


def _check(config: Config) -> None:
    if config.dataset_path is not None and config.data.path is not None:
        raise ConfigurationError(
            f"dataset_path={config.dataset_path} and data.path={config.data.path} both name the"
            " data: drop either"
        )
    least = {"max_length": 2, "start": 0, "shown": 0, "limit": 1}
    for key, minimum in least.items():
        value = getattr(config, key)
        if value is not None and value < minimum:
            raise ConfigurationError(f"{key}={value}: expected {minimum} or more")


def _no_colour() -> bool:
    return bool(os.environ.get("NO_COLOR"))  # any value but the empty one: no-color.org


def _usual_length(model_name: str) -> int | None:
    """What recipes.sl_basic takes; None where that cannot be told, as of a bare tokenizer."""
    try:
        return usual_length(model_name)
    except ConfigurationError:
        return None


def _chats(config: Config, path: str | None) -> Iterator[Chat | BadRow]:
    """A file that has a bad line is refused, as in training; a bad row of a data set is passed on,
    for training would leave it out."""
    data = config.data
    if path is None:
        yield from _built_in()
        return
    key = "dataset_path" if config.dataset_path else "data.path"
    check_file_exists(path, key)
    if is_jsonl(path):
        yield from read_chats(path, key, data.message_field)
    else:
        way_out = "data.path=FILE.jsonl shows a file of your own"
        rows = data_files.open_stream(path, data.name, data.split, way_out)
        read = row_reader((placed.row for placed in rows), data.message_field, path)
        for number, (row, place) in enumerate(rows):
            where = place or f"{path}, row {number}"
            try:
                yield read(row, where)
            except DataFormatError as error:
                yield BadRow(where, str(error).removeprefix(f"{where}: "))


_ROWS = 1000  # of a data set, which may have millions

_TOOL: ToolSpec = {
    "name": "get_weather",
    "description": "The weather in a city",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "its name"}},
        "required": ["city"],
    },
}


def _built_in() -> Iterator[Chat]:
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
        function = {"name": _TOOL["name"], "arguments": arguments}
        return {"type": "function", "id": f"functions.get_weather:{number}", "function": function}

    def result(number: int, text: str) -> dict:
        found = f"functions.get_weather:{number}"
        return {"role": "tool", "content": text, "tool_call_id": found, "name": _TOOL["name"]}

    hello = [user("What is the capital of Peru?"), assistant("Lima.")]
    yield _chat("two turns", [system, *hello, user("And of Chile?"), assistant("Santiago.")])
    thought = [
        user("What is 17 + 28?"),
        assistant("45", "7 + 8 = 15, so 5 and carry 1; 1 + 2 + 1 = 4."),
        user("Twice that?"),
        assistant("90", "2 * 45 = 90."),
    ]
    yield _chat("reasoning", thought)
    question = user("Is it warmer in Oslo or in Rome?")
    calls = {**assistant(""), "tool_calls": [call(0, "Oslo"), call(1, "Rome")]}
    results = [result(0, "4 degrees"), result(1, "15 degrees")]
    yield _chat("tools", [system, question, calls, *results, assistant("In Rome.")], [_TOOL])


def _chat(where: str, messages: list[Any], tools: Sequence[Any] = ()) -> Chat:
    return row_chat({"messages": messages, "tools": list(tools)}, where)


if __name__ == "__main__":
    cli(main, Config)
