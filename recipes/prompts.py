"""Conversations to which a model replies: nano's sums, or those of a file or data set."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable

from tinker_cookbook import models
from tinker_cookbook.exceptions import DataFormatError
from tinker_cookbook.nano import tasks
from tinker_cookbook.preference.comparison_rows import (
    Row,
    detect_in_first_rows,
    make_comparison_reader,
    read_messages,
)
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import check_file_exists, make_row_reader
from tinker_cookbook.renderers.known_keys import REPLY_KEYS
from tinker_cookbook.renderers.row_formats import to_row_dict
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.files import existing_file
from tinker_cookbook.utils.json_types import Plain

logger = logging.getLogger(__name__)

Conversation = list[Message]
ReadConversation = Callable[[Row, str], Conversation]

NANO_SUMS, HHH = "nano_sums", "hhh"
HHH_PATH = "Anthropic/hh-rlhf"
MAX_NAMED = 3  # skipped rows that are named in the log


def load_prompts(
    name: str | None, key: str, number: int, seed: int, model_name: str
) -> list[Conversation]:
    """Up to `number` conversations to reply to, shuffled by the seed; a larger number adds to them.

    name: nano_sums, hhh, a text file with one prompt per line, or a file, a directory or a data set
    on the hub with conversations, comparisons or rows of `prompt`; a reply at the end is dropped.
    None: nano_sums for nano, else hhh. Rows that cannot be used are skipped with a warning; raises
    DataFormatError if no row can be used.
    """
    if name is None:
        name = NANO_SUMS if models.is_nano(model_name) else HHH
    if name == NANO_SUMS:
        return _draw_sums(number, seed)
    if name.endswith(".txt"):
        return _read_lines(name, key, number, seed)
    path = HHH_PATH if name == HHH else name
    check_file_exists(path, key)
    rows = open_rows(path)
    return _read_prompts(rows.shuffle(seed=seed), _make_reader(rows, path), number, f"{key}={path}")


def _draw_sums(number: int, seed: int) -> list[Conversation]:
    rng = random.Random(seed)
    problems = [tasks.add_problem(rng, "train", phrasing=None) for _ in range(number)]
    return [[Message(role="user", content=each["messages"][-1]["content"])] for each in problems]


def _read_lines(path: str, key: str, number: int, seed: int) -> list[Conversation]:
    lines = existing_file(path, key).read_text(encoding="utf-8").splitlines()
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise DataFormatError(f"{key}={path}: the file is empty; expected one prompt per line")
    random.Random(seed).shuffle(prompts)
    return [[Message(role="user", content=prompt)] for prompt in prompts[:number]]


def _make_reader(rows: Rows, name: str) -> ReadConversation:
    """A reader for the format of the first rows: prompts, comparisons or conversations."""
    try:
        detect_in_first_rows(rows, name, _check_is_prompt)
    except DataFormatError:
        pass
    else:
        return lambda row, location: read_messages(row, "prompt", "user", Counter())
    try:
        read_comparison = make_comparison_reader(rows, name)
    except DataFormatError:
        read_chat = make_row_reader(rows, "messages", name)
        return lambda row, location: read_chat(row, location).messages
    return lambda row, location: (
        read_comparison(row, location).labeled.comparison.prompt_conversation
    )


def _check_is_prompt(row: Plain) -> None:
    """Raise DataFormatError for a row that is not a prompt without a reply."""
    keys = to_row_dict(row).keys()
    if "prompt" not in keys or keys & REPLY_KEYS:
        raise DataFormatError(f"found {', '.join(keys)}; expected 'prompt' without a reply")


def _read_prompts(rows: Rows, read: ReadConversation, number: int, name: str) -> list[Conversation]:
    prompts: list[Conversation] = []
    problems: list[str] = []
    for index, row in enumerate(rows):
        if len(prompts) == number:
            break
        try:
            prompts.append(_without_reply(read(row, rows.where(index))))
        except DataFormatError as error:
            problems.append(str(error))
    if not prompts:
        raise DataFormatError(f"{name}: no row can be used as a prompt; the first: {problems[0]}")
    if problems:
        shown = "; ".join(problems[:MAX_NAMED])
        logger.warning("%s: %d rows cannot be used and are skipped: %s", name, len(problems), shown)
    return prompts


def _without_reply(conversation: Conversation) -> Conversation:
    """The messages up to the last one of the user."""
    end = max((i for i, m in enumerate(conversation, 1) if m["role"] == "user"), default=0)
    if not end:
        raise DataFormatError("the conversation has no message of the user")
    return conversation[:end]
