"""The data sets of supervised training, as configuration: `data=JsonlChats data.path=chats.jsonl`.

| builder | conversations from |
|---|---|
| `JsonlChats`, `FromConversationFileBuilder` | a JSONL file, one conversation a line |
| `HubChats` | a data set on the hub, or a local file or directory |
| `NoRobots`, `Tulu3` | the two that recipes name |
| `InterleavedChatDatasetBuilder` | several hub or local data sets, mixed by weight |
| `StreamedHubChats` | a hub data set that is read while training runs |
| `InMemoryChats` | Python: a list of rows |

A row is `{"messages": [...]}` or has another of the forms of `renderers/row_formats.py`.
Beside its messages a row may have `tools`, which are declared as the renderer does it. Files and
lists are rendered at the start; hub data is rendered as it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import chz
import numpy as np

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.chats import (
    Chat,
    RowReader,
    check_file_exists,
    is_jsonl,
    read_chats,
    row_reader,
)
from tinker_cookbook.supervised.datasets import (
    LazyChats,
    RenderedChats,
    SupervisedDatasetFromHFDataset,
    conversation_to_datum,
    conversation_to_datums,
    render_conversation,
    render_rows,
)
from tinker_cookbook.supervised.mixture import HFDatasetSource, InterleavedChatDatasetBuilder
from tinker_cookbook.supervised.streaming import (
    StreamedHubChats,
    StreamingSupervisedDatasetFromHFDataset,
)
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.utils import data_files
from tinker_cookbook.utils.data_files import Rows
from tinker_cookbook.utils.data_identity import file_identity, path_identity
from tinker_cookbook.utils.json_types import Plain

__all__ = [
    "FromConversationFileBuilder",
    "HFDatasetSource",
    "HubChats",
    "InMemoryChats",
    "InterleavedChatDatasetBuilder",
    "JsonlChats",
    "NoRobots",
    "StreamedHubChats",
    "StreamingSupervisedDatasetFromHFDataset",
    "SupervisedDatasetFromHFDataset",
    "Tulu3",
    "conversation_to_datum",
    "conversation_to_datums",
    "render_conversation",
]

# Any: chz checks the types of fields at run time, and recursive ones are more than it knows
Conversations = list[dict[str, Any]]
Datasets = tuple[SupervisedDataset, SupervisedDataset | None]


@chz.chz
class _ChatLists(ChatDatasetBuilder):
    """Base of the builders that hold all conversations and render them at the start."""

    shuffle_seed: int = chz.field(
        default=0, doc="seed of the test split and of each epoch's order", metadata=SEED
    )

    def _rendered(self, chats: list[Chat], name: str, test: bool) -> RenderedChats:
        """A test set is one batch in the order of the file: an evaluation leaves nothing out."""
        config = self.config
        return RenderedChats(
            chats,
            self.renderer,
            batch_size=max(1, len(chats)) if test else config.batch_size,
            max_length=config.max_length,
            train_on_what=config.train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES,
            shuffle_seed=None if test else self.shuffle_seed,
            name=name,
        )

    def _from_file(self, path: str, key: str, test_size: int) -> Datasets:
        chats = read_chats(path, key)
        if not 0 <= test_size < len(chats):
            raise ConfigurationError(
                f"test_size={test_size}: {path} has {len(chats)} conversations; "
                f"expected 0 to {len(chats) - 1}"
            )
        order = np.random.default_rng(self.shuffle_seed).permutation(len(chats)).tolist()
        held_out = set(order[:test_size])
        train = [chat for number, chat in enumerate(chats) if number not in held_out]
        test = [chat for number, chat in enumerate(chats) if number in held_out]
        return (
            self._rendered(train, path, test=False),
            self._rendered(test, f"{path} (test)", test=True) if test else None,
        )


@chz.chz
class JsonlChats(_ChatLists):
    """A JSONL file of conversations, one a line."""

    path: str = chz.field(doc="JSONL file, one conversation a line")
    test_path: str | None = chz.field(
        default=None, doc="JSONL file to evaluate on (None: test_size conversations of path)"
    )
    test_size: int = chz.field(
        default=0, doc="conversations held out for evaluation, drawn by shuffle_seed"
    )

    def identity(self) -> Mapping[str, Plain]:
        """The content of the files, whatever their path."""
        files = {"path": self.path, "test_path": self.test_path}
        return {key: file_identity(path) for key, path in files.items() if path is not None}

    def __call__(self) -> Datasets:
        if self.test_path is None:
            return self._from_file(self.path, "path", self.test_size)
        if self.test_size:
            raise ConfigurationError(
                f"test_path={self.test_path} and test_size={self.test_size} both name the test "
                "data: drop either"
            )
        train, _ = self._from_file(self.path, "path", 0)
        test = read_chats(self.test_path, "test_path")
        return train, self._rendered(test, self.test_path, test=True)


@chz.chz
class FromConversationFileBuilder(_ChatLists):
    """`JsonlChats` under the name and the key that users know."""

    file_path: str = chz.field(doc="JSONL file, one conversation a line")
    test_size: int = chz.field(
        default=0, doc="conversations held out for evaluation, drawn by shuffle_seed"
    )

    def identity(self) -> Mapping[str, Plain]:
        """The content of the file, whatever its path."""
        return {"file_path": file_identity(self.file_path)}

    def __call__(self) -> Datasets:
        return self._from_file(self.file_path, "file_path", self.test_size)


@chz.chz
class InMemoryChats(_ChatLists):
    """Conversations that a program has made: lists of `{"messages": [...]}` or the like."""

    conversations: Conversations = chz.field(doc="training data")
    test_conversations: Conversations | None = chz.field(default=None, doc="test data")
    label: str = chz.field(default="data", doc="what reports and errors call it")

    def __call__(self) -> Datasets:
        return (
            self._rendered(_named(self.conversations, self.label), self.label, test=False),
            self._rendered(
                _named(self.test_conversations, f"{self.label} (test)"),
                f"{self.label} (test)",
                test=True,
            )
            if self.test_conversations
            else None,
        )


def _named(rows: Conversations, label: str) -> list[Chat]:
    places = [f"{label}, conversation {number}" for number in range(len(rows))]
    return list(map(RowReader(), rows, places))


@chz.chz
class HubChats(ChatDatasetBuilder):
    """A hub or local data set of conversations."""

    path: str = chz.field(doc="data set: name on the hub, directory or file")
    name: str | None = chz.field(default=None, doc="configuration of the data set")
    split: str = chz.field(default="train", doc="split that is trained on")
    test_split: str | None = chz.field(
        default=None, doc="split that is evaluated (None: test_size rows of the training split)"
    )
    test_size: int = chz.field(
        default=0, doc="rows: the first of the shuffled training split, or at most of test_split"
    )
    message_field: str = chz.field(
        default="messages",
        doc="column with the list of messages (where there is no such column as the default: by"
        " the form of the rows)",
    )
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the test rows and of each epoch's order", metadata=SEED
    )

    def identity(self) -> Mapping[str, Plain]:
        """Of a local data set, what its files tell at a glance; a name on the hub is enough."""
        return path_identity(self.path)

    def __call__(self) -> Datasets:
        train_rows = data_files.open_rows(self.path, self.name, self.split)
        read = row_reader(train_rows, self.message_field, self.path)
        train_rows, test_rows = train_rows.shuffle(seed=self.shuffle_seed), None
        if self.test_split is not None:
            test_rows = data_files.open_rows(self.path, self.name, self.test_split)
            if self.test_size:
                test_rows = test_rows.select(range(min(self.test_size, len(test_rows))))
        elif self.test_size:
            if self.test_size >= len(train_rows):
                raise ConfigurationError(
                    f"test_size={self.test_size}: {self.path} has only {len(train_rows)} rows"
                )
            test_rows = train_rows.select(range(self.test_size))
            train_rows = train_rows.select(range(self.test_size, len(train_rows)))
        return (
            self._lazy(train_rows, read, self.config.batch_size, self.shuffle_seed, self.path),
            self._lazy(test_rows, read, len(test_rows), None, f"{self.path} (test)")
            if test_rows is not None
            else None,
        )

    def default_train_on_what(self) -> TrainOnWhat:
        """What is trained where the key train_on_what is None."""
        return TrainOnWhat.ALL_ASSISTANT_MESSAGES

    def _lazy(
        self, rows: Rows, read: RowReader, batch_size: int, shuffle_seed: int | None, name: str
    ) -> LazyChats:
        config = self.config
        return LazyChats(
            rows,
            render_rows(
                self.renderer,
                config.max_length,
                config.train_on_what or self.default_train_on_what(),
                read,
            ),
            batch_size=batch_size,
            shuffle_seed=shuffle_seed,
            name=name,
            max_length=config.max_length,
            forms=read.forms,
        )


def data_at(path: str, key: str) -> JsonlChats | HubChats:
    """The builder for conversations at a path, or under a name on the hub: what `dataset_path=`
    means. ConfigurationError, with the key that named it, for a file that is not there."""
    check_file_exists(path, key)
    return JsonlChats(path=path) if is_jsonl(path) else HubChats(path=path)


@chz.chz
class NoRobots(HubChats):
    """9,500 instructions with answers written by people, and 500 for the test."""

    path: str = chz.field(default="HuggingFaceH4/no_robots", doc="name on the hub, or local copy")
    test_split: str | None = chz.field(default="test", doc="split that is evaluated")


@chz.chz
class Tulu3(HubChats):
    """The Tulu 3 mixture, 939,000 conversations; the first 1024 after shuffling are the test."""

    path: str = chz.field(
        default="allenai/tulu-3-sft-mixture", doc="name on the hub, or local copy"
    )
    test_size: int = chz.field(default=1024, doc="rows held out: the first of the shuffled data")

    def default_train_on_what(self) -> TrainOnWhat:
        return TrainOnWhat.LAST_ASSISTANT_MESSAGE
