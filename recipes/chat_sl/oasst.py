"""Conversations of OpenAssistant (Köpf et al. 2023): one for each tree of messages.

A tree holds several replies to a message, ranked by people. Its conversation starts at the prompt,
takes the best-ranked reply at each turn, and ends with the last message of the assistant. Deleted
messages, and those that reviewers rejected, are left out with all replies to them.

Two formats: a table of single messages with `message_id` and `parent_id` (OpenAssistant/oasst1 and
oasst2 on the hub), or one tree per line with nested `replies` (the files `*.trees.jsonl.gz` there).
Both give the same conversations.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import chz
from pydantic import BaseModel, ValidationError

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message
from tinker_cookbook.renderers.chats import Chat
from tinker_cookbook.renderers.row_formats import canonical_role, excerpt
from tinker_cookbook.supervised.data import Datasets, render_and_hold_out
from tinker_cookbook.supervised.types import ChatDatasetBuilder
from tinker_cookbook.training.fields import NON_NEGATIVE, SEED
from tinker_cookbook.utils.data_files import Rows, open_rows
from tinker_cookbook.utils.data_identity import path_identity
from tinker_cookbook.utils.json_types import Plain
from tinker_cookbook.utils.misc_utils import counted

_EXPECTED = (
    "expected trees ('prompt' with 'replies') or messages ('message_id', 'parent_id', 'text',"
    " 'role')"
)


class TreeMessage(BaseModel):
    """A message and the replies to it, in file order. rank: 0 for the best reply, None if unranked.

    In a table, `replies` is empty at first and `parent_id` tells the message replied to.
    """

    text: str
    role: Literal["prompter", "assistant"]
    lang: str | None = None
    rank: int | None = None
    deleted: bool | None = None
    review_result: bool | None = None
    replies: list[TreeMessage] = []
    message_id: str | None = None
    parent_id: str | None = None

    @property
    def is_usable(self) -> bool:
        return not self.deleted and self.review_result is not False


class Tree(NamedTuple):
    prompt: TreeMessage
    location: str  # file and line of the prompt


class Trees(NamedTuple):
    """num_orphans: messages of a table that are not below any prompt."""

    trees: list[Tree]
    num_orphans: int = 0


class Conversations(NamedTuple):
    """notes: lines for the data report, with the counts of what was taken and left out."""

    chats: list[Chat]
    notes: list[str]


@chz.chz
class Oasst(ChatDatasetBuilder):
    """OpenAssistant's message trees, one conversation each: the best-ranked reply at each turn."""

    path: str = chz.field(
        default="OpenAssistant/oasst1",
        doc="table of messages or file of trees: name on the hub, directory or file",
    )
    split: str = chz.field(default="train", doc="split of the data set")
    lang: str | None = chz.field(
        default="en", doc="language of the prompts, e.g. de or pt-BR (None: all languages)"
    )
    test_size: int = chz.field(
        default=0,
        doc="conversations held out for evaluation, chosen by shuffle_seed",
        metadata=NON_NEGATIVE,
    )
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of a local data set's files; nothing for a name on the hub."""
        return path_identity(self.path)

    def __call__(self) -> Datasets:
        conversations = self.read_conversations()
        train, test = render_and_hold_out(
            self, conversations.chats, self.path, self.test_size, self.shuffle_seed
        )
        train.report.notes[:0] = conversations.notes
        return train, test

    def read_conversations(self) -> Conversations:
        trees = read_trees(open_rows(self.path, None, self.split), self.path)
        return take_conversations(trees, self.lang, self.path)


def take_conversations(trees: Trees, lang: str | None, path: str) -> Conversations:
    """Take the best-ranked conversation of each tree whose prompt is in `lang` (None: any).

    Raises ConfigurationError if no tree has that language, DataFormatError if none has a reply.
    """
    languages = Counter(tree.prompt.lang for tree in trees.trees)
    if lang is not None and lang not in languages:
        found = ", ".join(f"{name} ({count:,})" for name, count in languages.most_common(5))
        raise ConfigurationError(
            f"data.lang={lang}: {path} has no such tree: set one of {found}, or None for all"
        )
    taken = [tree for tree in trees.trees if lang is None or lang == tree.prompt.lang]
    chats = [chat for chat in map(best_conversation, taken) if chat is not None]
    if not chats:
        raise DataFormatError(
            f"{path}: none of {counted(len(taken), 'tree')} has a reply of the assistant"
        )
    num_messages = sum(len(chat.messages) for chat in chats)
    num_usable = sum(_count(tree.prompt, usable_only=True) for tree in taken)
    num_all = sum(_count(tree.prompt) for tree in taken)
    left_out = [
        (len(trees.trees) - len(taken), "tree", f"in other languages than {lang}"),
        (len(taken) - len(chats), "tree", "without a reply"),
        (num_all - num_usable, "message", "deleted or rejected, or below such a message"),
        (num_usable - num_messages, "message", "outside the best-ranked conversations"),
        (trees.num_orphans, "message", "below no prompt"),
    ]
    notes = [
        f"{counted(len(trees.trees), 'tree')}, {counted(len(chats), 'conversation')} of"
        f" {counted(num_messages, 'message')}"
    ]
    if parts := [f"{counted(number, unit)} {which}" for number, unit, which in left_out if number]:
        notes.append(f"left out: {', '.join(parts)}")
    return Conversations(chats, notes)


def best_conversation(tree: Tree) -> Chat | None:
    """The best-ranked reply at each turn, up to the last one of the assistant; None without any.

    Unranked replies come after ranked ones; among equals, the first in the file is taken.
    """
    branch: list[TreeMessage] = []
    candidates = _usable([tree.prompt])
    while candidates:
        branch.append(min(candidates, key=_rank_order))
        candidates = _usable(branch[-1].replies)
    while branch and branch[-1].role != "assistant":
        branch.pop()
    messages = [Message(role=canonical_role(each.role), content=each.text) for each in branch]
    return Chat(messages, tree.location) if messages else None


def _rank_order(message: TreeMessage) -> float:
    return math.inf if message.rank is None else message.rank


def _usable(messages: Iterable[TreeMessage]) -> list[TreeMessage]:
    return [message for message in messages if message.is_usable]


def _count(prompt: TreeMessage, usable_only: bool = False) -> int:
    """The messages of a tree; usable_only: without unusable ones and all below them."""
    return sum(1 for _ in _walk(prompt, usable_only))


def _walk(prompt: TreeMessage, usable_only: bool = False) -> Iterator[TreeMessage]:
    # A stack, not recursion: a table can hold a chain of any length.
    stack = [prompt]
    while stack:
        message = stack.pop()
        if usable_only and not message.is_usable:
            continue
        yield message
        stack += message.replies


def read_trees(rows: Rows, path: str) -> Trees:
    """Read either format. Raises DataFormatError, with the location, for a malformed row."""
    columns = rows.column_names
    if "prompt" in columns:
        trees = Trees([_parse_tree(row, rows.where(index)) for index, row in enumerate(rows)])
    elif "message_id" in columns:
        trees = _link_messages(rows)
    else:
        found = ", ".join(map(repr, columns))
        raise DataFormatError(f"data set {path}: found {found}; {_EXPECTED}")
    if not trees.trees:
        raise DataFormatError(
            f"data set {path}: every message has a 'parent_id', so no tree begins"
        )
    for tree in trees.trees:
        _check_roles(tree)
    return trees


def _parse_tree(row: Mapping[str, Plain], location: str) -> Tree:
    if "prompt" not in row:
        raise DataFormatError(f"{location}: no 'prompt'; all rows must be trees")
    return Tree(_parse_message(row["prompt"], location), location)


def _link_messages(rows: Rows) -> Trees:
    """Build the trees of a table, whose replies may stand before the message replied to."""
    fields = set(TreeMessage.model_fields) - {"replies"}
    rows = rows.only(*(column for column in rows.column_names if column in fields))
    messages: dict[str, TreeMessage] = {}
    prompts: list[Tree] = []
    for index, row in enumerate(rows):
        location = rows.where(index)
        message = _parse_message(row, location)
        if message.message_id is None or message.message_id in messages:
            raise DataFormatError(
                f"{location}: 'message_id' must be unique, found {excerpt(message.message_id)}"
            )
        messages[message.message_id] = message
        if message.parent_id is None:
            prompts.append(Tree(message, location))
    for message in messages.values():
        if message.parent_id in messages:
            messages[message.parent_id].replies.append(message)
    num_linked = sum(_count(tree.prompt) for tree in prompts)
    return Trees(prompts, num_orphans=len(messages) - num_linked)


def _parse_message(row: Plain, location: str) -> TreeMessage:
    try:
        return TreeMessage.model_validate(row)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "message"
        raise DataFormatError(
            f"{location}: {key}: {first['msg']}, found {excerpt(first['input'])}"
        ) from error


def _check_roles(tree: Tree) -> None:
    """Raise DataFormatError unless prompter and assistant alternate, the prompter first."""
    if tree.prompt.role != "prompter":
        raise DataFormatError(
            f"{tree.location}: the tree begins with a message of the assistant; expected a prompt"
        )
    for message in _walk(tree.prompt):
        for reply in message.replies:
            if reply.role == message.role:
                raise DataFormatError(
                    f"{tree.location}: the {reply.role} replies to the {message.role}; expected"
                    " alternating roles"
                )
