"""Render a conversation into one or more training examples, truncated to a maximum length."""

from __future__ import annotations

from collections.abc import Sequence as Messages
from dataclasses import dataclass

from tinker_cookbook.renderers.base import Renderer
from tinker_cookbook.renderers.messages import Message
from tinker_cookbook.renderers.training_modes import REPLY_MODES, TrainOnWhat
from tinker_cookbook.sequences import Sequence
from tinker_cookbook.utils.misc_utils import counted

MULTI_REPLY_MODES = frozenset({TrainOnWhat.LAST_ASSISTANT_TURN, TrainOnWhat.ALL_ASSISTANT_MESSAGES})
"""The modes in which one conversation can have several trained replies."""


def describe_split(num_conversations: int, num_examples: int) -> str:
    """A note for the user that some conversations became several examples each."""
    return (
        f"{counted(num_conversations, 'conversation')} became {num_examples:,} examples, one per "
        "reply, because this renderer writes earlier replies differently from how they are "
        "sampled; train_on_what=last_assistant_message makes one example per conversation"
    )


@dataclass(frozen=True)
class Example:
    """One training example of a conversation.

    full: all its tokens with their weights. length: number of tokens left after truncation on the
    right. problem: why the example cannot be trained on; None if it can.
    """

    full: Sequence
    length: int
    problem: str | None

    @property
    def truncated(self) -> Sequence:
        return self.full.truncate(self.length)

    @property
    def is_truncated(self) -> bool:
        return self.length < len(self.full)


def conversation_examples(
    conversation: Messages[Message],
    renderer: Renderer,
    max_length: int | None = None,
    train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
) -> list[Example]:
    """Render a conversation into examples of at most `max_length` tokens (None: no truncation).

    A renderer with the extension property gives one example. A renderer without it (such as qwen3,
    which drops reasoning from history) would train earlier replies on tokens that the model never
    samples, so each trained assistant message becomes an example of its own, which ends with it and
    is rendered as it is sampled. The shared prefix is then trained over once per reply. Modes that
    train other messages than replies always give one example. The list is empty if the mode trains
    no message and the renderer lacks the extension property.
    """
    mode = TrainOnWhat.from_value(train_on_what)
    if mode in REPLY_MODES:
        rendered = renderer.build_supervised_examples(conversation, train_on_what=mode)
    else:
        rendered = [renderer.build_supervised_example(conversation, train_on_what=mode)]
    examples = []
    for number, (model_input, weights) in enumerate(rendered, start=1):
        full = Sequence(model_input.to_ints(), weights)
        truncated = full.truncate(max_length)
        problem = None
        if not full.num_loss_tokens:
            problem = f"no token is trained under train_on_what={mode.value}"
        elif not truncated.num_loss_tokens:
            problem = f"the trained part begins after max_length={max_length} of {len(full)} tokens"
        if problem and len(rendered) > 1:
            problem = f"reply {number} of {len(rendered)}: {problem}"
        examples.append(Example(full, len(truncated), problem))
    return examples
