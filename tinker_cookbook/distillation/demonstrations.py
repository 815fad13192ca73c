"""Data for self-distillation: pairs of a question without and with its demonstration.

The last message of a conversation is the demonstration, and the messages before it are the
question. `DemonstrationChats` reads any data set of conversations.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

import chz
import numpy as np

from tinker_cookbook.exceptions import ConfigurationError, DataFormatError
from tinker_cookbook.renderers import Message, Renderer, TrainOnWhat
from tinker_cookbook.renderers.chats import Chat, is_jsonl
from tinker_cookbook.renderers.examples import Example, conversation_examples
from tinker_cookbook.renderers.messages import ensure_text, format_content_as_string
from tinker_cookbook.sequences import to_datum
from tinker_cookbook.supervised.data import Datasets, HubChats
from tinker_cookbook.supervised.datasets import IndexedRows, Rendered, skip_bad_rows
from tinker_cookbook.supervised.row_datasets import make_dataset
from tinker_cookbook.supervised.types import ChatDatasetBuilder, SupervisedDataset
from tinker_cookbook.training.fields import SEED
from tinker_cookbook.utils.data_files import Rows

T = TypeVar("T")

QUESTION, DEMONSTRATION = "{question}", "{demonstration}"
TEMPLATE = (
    f"{QUESTION}\n\nFor orientation, this is how an expert replied:\n\n{DEMONSTRATION}\n\n"
    "Now reply to the question yourself."
)
MIN_ROOM = 2  # tokens left by the teacher's prompt: one to complete, one that scoring samples


@chz.chz
class DemonstrationDatasetBuilder(ChatDatasetBuilder):
    """Base of the data sets of demonstrations; `batch_size` counts questions.

    A batch holds 2 * batch_size datums: each question without its demonstration, which is what the
    student sees, followed by the same question with it. Both end with the demonstrated reply.
    """

    template: str = chz.field(
        default=TEMPLATE,
        doc="text that replaces the last user message for the teacher, with {question} (that"
        " message) and {demonstration}",
    )
    shuffle_seed: int = chz.field(
        default=0, doc="seed of the train/test split and of each epoch's shuffle", metadata=SEED
    )

    @chz.validate
    def _check_template(self) -> None:
        for name in (QUESTION, DEMONSTRATION):
            if name not in self.template:
                raise ConfigurationError(f"template={self.template!r} lacks {name}: add it")

    @chz.validate
    def _check_train_on_what(self) -> None:
        mode = self.common_config and self.common_config.train_on_what
        if mode not in (None, TrainOnWhat.LAST_ASSISTANT_MESSAGE):
            raise ConfigurationError(
                f"train_on_what={mode}: self-distillation trains on sampled replies; remove the key"
            )

    def build_split(
        self,
        rows: IndexedRows[T],
        read: Callable[[T], Chat],
        name: str,
        *,
        is_test: bool = False,
        render_up_front: bool = True,
        source_formats: Sequence[str] = (),
    ) -> SupervisedDataset:
        """The data set of one split. Rows that cannot be used are skipped and reported.

        read: the conversation of a row; DataFormatError skips the row.
        """
        config = self.config

        def render(row: T) -> Rendered:
            return render_pair(read(row), self.template, self.renderer, config.max_length)

        return make_dataset(
            rows,
            skip_bad_rows(render),
            render_up_front=render_up_front,
            batch_size=None if is_test else config.batch_size,
            shuffle_seed=self.shuffle_seed,
            max_length=config.max_length,
            name=f"{name} (test)" if is_test else name,
            unit="question",
            source_formats=source_formats,
        )


@chz.chz
class DemonstrationChats(HubChats, DemonstrationDatasetBuilder):
    """A data set of conversations, each ending with the demonstration: a file, a directory or a
    name on the hub. A JSONL file is rendered before training starts, other data when it is used."""

    def __call__(self) -> Datasets:
        train, test, read = self.open_splits()

        def build(rows: Rows, is_test: bool) -> SupervisedDataset:
            return self.build_split(
                rows,
                lambda row: read(row, "row"),
                self.path,
                is_test=is_test,
                render_up_front=is_jsonl(self.path),
                source_formats=read.source_formats,
            )

        return build(train, False), None if test is None else build(test, True)


def render_pair(chat: Chat, template: str, renderer: Renderer, max_length: int | None) -> Rendered:
    """Render a conversation to the datums of the student's and of the teacher's example, truncated
    on the right to `max_length` tokens.

    No datums if the chat is excluded, or if there is no room for a completion after the teacher's
    prompt. Raises DataFormatError if the conversation is no question with a demonstration as text.
    """
    if chat.is_excluded:
        return Rendered([], notes=chat.notes)
    messages = chat.messages_for(renderer)
    problem: str | None = None
    examples: list[Example] = []
    for variant in (messages, show_demonstration(messages, template)):
        (example,) = conversation_examples(
            variant, renderer, max_length, TrainOnWhat.LAST_ASSISTANT_MESSAGE
        )
        examples.append(example)
        prompt = renderer.build_generation_prompt(variant[:-1]).to_ints()
        problem = problem or _find_problem(example, prompt, max_length)
    return Rendered(
        [] if problem else [to_datum(each.truncated, reduction="mean") for each in examples],
        truncated=any(each.is_truncated for each in examples),
        num_lost=sum(
            each.full.num_loss_tokens - each.truncated.num_loss_tokens for each in examples
        ),
        skipped=[problem] if problem else [],
        notes=chat.notes,
    )


def show_demonstration(messages: Sequence[Message], template: str) -> list[Message]:
    """The conversation with its last reply shown in the last user message before it.

    Raises DataFormatError if there is no such message, or if the reply is not text.
    """
    *question, reply = messages
    asked = max((i for i, each in enumerate(question) if each["role"] == "user"), default=None)
    if reply["role"] != "assistant" or asked is None:
        roles = [message["role"] for message in messages]
        raise DataFormatError(
            f"the roles are {', '.join(roles)}; expected a user message and, as the last message,"
            " the assistant's reply as its demonstration"
        )
    demonstration = format_content_as_string(reply["content"])
    if reply.get("tool_calls") or not demonstration.strip():
        found = "tool calls" if reply.get("tool_calls") else "no text"
        raise DataFormatError(f"the last message has {found}; a demonstration is text")
    texts = {QUESTION: ensure_text(question[asked]["content"]), DEMONSTRATION: demonstration}
    # in one go: either text may contain the names
    content = re.sub(r"{question}|{demonstration}", lambda name: texts[name[0]], template)
    shown: Message = {**question[asked], "content": content}
    return [*question[:asked], shown, *question[asked + 1 :], reply]


def _find_problem(example: Example, prompt: list[int], max_length: int | None) -> str | None:
    """Why an example cannot be used; None if it can. prompt: that of sampling a reply."""
    if example.problem:
        return example.problem
    start = int(np.flatnonzero(example.full.loss_mask)[0])
    if example.full.tokens[:start].tolist() != prompt:
        return "this renderer does not render the reply as a continuation of the prompt"
    if max_length is not None and start + MIN_ROOM > max_length:
        return f"its prompt of {start} tokens leaves no room in max_length={max_length}"
    return None
