"""Configurable data sets for supervised training, e.g. `data=JsonlChats data.path=chats.jsonl`.

| builder | source of the conversations |
|---|---|
| `JsonlChats`, `FromConversationFileBuilder` | a JSONL file, one conversation per line |
| `HubChats` | a data set on the hub, or a local file or directory |
| `NoRobots`, `Tulu3` | the public data sets that recipes use |
| `InterleavedChatDatasetBuilder` | several hub or local data sets, mixed by weight |
| `StreamedHubChats` | a hub data set, streamed during training |
| `InMemoryChats` | a list of rows in Python |

A row is `{"messages": [...]}` or in another format of `renderers/row_formats.py`. It may also have
`tools`, which the renderer declares to the model. JSONL files and lists are rendered before
training starts; hub data is rendered lazily, when a batch needs it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import chz
import numpy as np

from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import TrainOnWhat
from tinker_cookbook.renderers.chats import (
    Chat,
    RowReader,
    check_file_exists,
    is_jsonl,
    make_row_reader,
    read_chats,
)
from tinker_cookbook.supervised.datasets import (
    LazyRows,
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

# Any: chz checks field types at run time and does not support recursive types such as JSON.
Conversations = list[dict[str, Any]]
Datasets = tuple[SupervisedDataset, SupervisedDataset | None]


def render_and_hold_out(
    builder: ChatDatasetBuilder,
    chats: Sequence[Chat],
    name: str,
    test_size: int,
    shuffle_seed: int,
) -> tuple[RenderedChats, RenderedChats | None]:
    """Render conversations with the settings of `builder`, `test_size` random ones of them as the
    test set, and count the excluded ones in the training set. Raises ConfigurationError if that
    leaves none for training."""
    usable = [i for i, chat in enumerate(chats) if not chat.is_excluded]
    if test_size and not 0 < test_size < len(usable):
        raise ConfigurationError(
            f"test_size={test_size}: {name} has {len(usable)} conversations; "
            f"expected 0 to {max(0, len(usable) - 1)}"
        )
    order = np.random.default_rng(shuffle_seed).permutation(len(usable)).tolist()
    held_out = {usable[index] for index in order[:test_size]}
    # Both parts stay in file order: `shuffle_seed` and the epoch alone decide about shuffling.
    train = [chat for i, chat in enumerate(chats) if i not in held_out]
    test = [chat for i, chat in enumerate(chats) if i in held_out]
    return (
        render_chats(builder, train, name, shuffle_seed),
        render_chats(builder, test, f"{name} (test)", None) if test else None,
    )


def render_chats(
    builder: ChatDatasetBuilder, chats: Sequence[Chat], name: str, shuffle_seed: int | None
) -> RenderedChats:
    """Render conversations with the settings of `builder`. shuffle_seed None: a test set, in one
    unshuffled batch, so that no example is dropped."""
    config = builder.config
    is_test = shuffle_seed is None
    return RenderedChats(
        chats,
        builder.renderer,
        batch_size=max(1, len(chats)) if is_test else config.batch_size,
        max_length=config.max_length,
        train_on_what=config.train_on_what or TrainOnWhat.ALL_ASSISTANT_MESSAGES,
        shuffle_seed=shuffle_seed,
        name=name,
    )


@chz.chz
class _EagerChats(ChatDatasetBuilder):
    """Base of the builders that render all conversations before training starts."""

    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def _render_all(self, chats: list[Chat], name: str, test: bool) -> RenderedChats:
        return render_chats(self, chats, name, None if test else self.shuffle_seed)

    def _load_file(self, path: str, key: str, test_size: int) -> Datasets:
        """Read a JSONL file and hold out `test_size` random conversations for the test set."""
        return render_and_hold_out(self, read_chats(path, key), path, test_size, self.shuffle_seed)


@chz.chz
class JsonlChats(_EagerChats):
    """A JSONL file of conversations, one per line."""

    path: str = chz.field(doc="JSONL file, one conversation per line")
    test_path: str | None = chz.field(
        default=None,
        doc="evaluation JSONL file (None: hold out test_size conversations of path)",
    )
    test_size: int = chz.field(
        default=0, doc="conversations held out for evaluation, chosen by shuffle_seed"
    )

    def identity(self) -> Mapping[str, Plain]:
        """The contents of the files; their paths do not matter."""
        files = {"path": self.path, "test_path": self.test_path}
        return {key: file_identity(path) for key, path in files.items() if path is not None}

    def __call__(self) -> Datasets:
        if self.test_path is None:
            return self._load_file(self.path, "path", self.test_size)
        if self.test_size:
            raise ConfigurationError(
                f"test_path={self.test_path} and test_size={self.test_size} both define the test "
                "data: drop either"
            )
        train, _ = self._load_file(self.path, "path", 0)
        test = read_chats(self.test_path, "test_path")
        return train, self._render_all(test, self.test_path, test=True)


@chz.chz
class FromConversationFileBuilder(_EagerChats):
    """`JsonlChats` under the class name and key of the Tinker cookbook."""

    file_path: str = chz.field(doc="JSONL file, one conversation per line")
    test_size: int = chz.field(
        default=0, doc="conversations held out for evaluation, chosen by shuffle_seed"
    )

    def identity(self) -> Mapping[str, Plain]:
        """The contents of the file; its path does not matter."""
        return {"file_path": file_identity(self.file_path)}

    def __call__(self) -> Datasets:
        return self._load_file(self.file_path, "file_path", self.test_size)


@chz.chz
class InMemoryChats(_EagerChats):
    """Conversations built in Python: lists of `{"messages": [...]}` or another row format."""

    conversations: Conversations = chz.field(doc="training data")
    test_conversations: Conversations | None = chz.field(default=None, doc="test data")
    label: str = chz.field(default="data", doc="name of the data in reports and errors")

    def __call__(self) -> Datasets:
        return (
            self._render_all(_parse_rows(self.conversations, self.label), self.label, test=False),
            self._render_all(
                _parse_rows(self.test_conversations, f"{self.label} (test)"),
                f"{self.label} (test)",
                test=True,
            )
            if self.test_conversations
            else None,
        )


def _parse_rows(rows: Conversations, label: str) -> list[Chat]:
    locations = [f"{label}, conversation {index}" for index in range(len(rows))]
    return list(map(RowReader(), rows, locations))


class Splits(NamedTuple):
    """Shuffled training rows, evaluation rows in order (None: no test set), and their parser."""

    train: Rows
    test: Rows | None
    read: RowReader


def hold_out_rows(
    train: Rows, test: Rows | None, test_size: int, name: str
) -> tuple[Rows, Rows | None]:
    """Limit the test rows to `test_size` (0: all); without any, hold out the first `test_size` of
    the training rows. Raises ConfigurationError if that leaves none for training."""
    if not test_size:
        return train, test
    if test is not None:
        return train, test.select(range(min(test_size, len(test))))
    if test_size >= len(train):
        raise ConfigurationError(f"test_size={test_size}: {name} has only {len(train)} rows")
    return train.select(range(test_size, len(train))), train.select(range(test_size))


@chz.chz
class HubChats(ChatDatasetBuilder):
    """A hub or local data set of conversations, rendered lazily."""

    path: str = chz.field(doc="data set: name on the hub, directory or file")
    name: str | None = chz.field(default=None, doc="configuration (subset) of the data set")
    split: str = chz.field(default="train", doc="training split")
    test_split: str | None = chz.field(
        default=None, doc="evaluation split (None: hold out test_size rows of the training split)"
    )
    test_size: int = chz.field(
        default=0,
        doc="rows to evaluate on: held out from the shuffled training split or, with test_split, at"
        " most this many of its rows (0: all of test_split; without test_split, none)",
    )
    message_field: str = chz.field(
        default="messages",
        doc="column with the list of messages (if there is no column of the default name: detected"
        " from the rows)",
    )
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    def identity(self) -> Mapping[str, Plain]:
        """Count, size and digest of a local data set's files; nothing for a name on the hub."""
        return path_identity(self.path)

    def __call__(self) -> Datasets:
        train_rows, test_rows, read = self.open_splits()
        return (
            self._build(train_rows, read, self.config.batch_size, self.shuffle_seed, self.path),
            self._build(test_rows, read, len(test_rows), None, f"{self.path} (test)")
            if test_rows is not None
            else None,
        )

    def open_splits(self) -> Splits:
        """Open the rows to train and to evaluate on."""
        train_rows = data_files.open_rows(self.path, self.name, self.split)
        read = make_row_reader(train_rows, self.message_field, self.path)
        test_rows = None
        if self.test_split is not None:
            test_rows = data_files.open_rows(self.path, self.name, self.test_split)
        train_rows = train_rows.shuffle(seed=self.shuffle_seed)
        train_rows, test_rows = hold_out_rows(train_rows, test_rows, self.test_size, self.path)
        return Splits(train_rows, test_rows, read)

    def default_train_on_what(self) -> TrainOnWhat:
        """The mode to use when the key train_on_what is None."""
        return TrainOnWhat.ALL_ASSISTANT_MESSAGES

    def _build(
        self, rows: Rows, read: RowReader, batch_size: int, shuffle_seed: int | None, name: str
    ) -> LazyRows:
        config = self.config
        return LazyRows(
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
            forms=read.source_formats,
        )


def builder_for_path(path: str, key: str) -> JsonlChats | HubChats:
    """Return the builder for `dataset_path=`: a local path or a name on the hub.

    Raises ConfigurationError, which names `key`, if the file does not exist.
    """
    check_file_exists(path, key)
    return JsonlChats(path=path) if is_jsonl(path) else HubChats(path=path)


@chz.chz
class NoRobots(HubChats):
    """No Robots: 9,500 human-written instruction/answer pairs for training, 500 for evaluation."""

    path: str = chz.field(
        default="HuggingFaceH4/no_robots", doc="name on the hub, or path of a local copy"
    )
    test_split: str | None = chz.field(default="test", doc="evaluation split")


@chz.chz
class Tulu3(HubChats):
    """The Tulu 3 SFT mixture: 939,000 conversations, 1024 of them held out after shuffling."""

    path: str = chz.field(
        default="allenai/tulu-3-sft-mixture", doc="name on the hub, or path of a local copy"
    )
    test_size: int = chz.field(default=1024, doc="rows held out: the first of the shuffled data")

    def default_train_on_what(self) -> TrainOnWhat:
        return TrainOnWhat.LAST_ASSISTANT_MESSAGE
