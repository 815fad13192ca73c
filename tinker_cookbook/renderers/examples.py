"""A conversation as what is trained on: one example or several, what is cut off them, and why one
would train nothing."""

from __future__ import annotations

from collections.abc import Sequence as Messages
from dataclasses import dataclass

from tinker_cookbook.renderers.base import Renderer
from tinker_cookbook.renderers.messages import Message
from tinker_cookbook.renderers.training_modes import REPLY_MODES, TrainOnWhat
from tinker_cookbook.sequences import Sequence
from tinker_cookbook.utils.misc_utils import counted

SEVERAL_REPLIES = frozenset({TrainOnWhat.LAST_ASSISTANT_TURN, TrainOnWhat.ALL_ASSISTANT_MESSAGES})
"""The modes that train replies which are not the last message."""


def split_note(num_conversations: int, num_examples: int) -> str:
    """To be told where conversations became several examples each."""
    return (
        f"{counted(num_conversations, 'conversation')} became {num_examples:,} examples, one for "
        "each reply, as this renderer writes earlier replies otherwise than they are sampled; "
        "train_on_what=last_assistant_message trains one of each"
    )


@dataclass(frozen=True)
class Example:
    """One example of a conversation.

    whole: all its tokens with their weights. length: tokens of them that are kept, the first ones.
    problem: why it cannot be trained on; None where it can.
    """

    whole: Sequence
    length: int
    problem: str | None

    @property
    def kept(self) -> Sequence:
        return self.whole.truncate(self.length)

    @property
    def is_cut(self) -> bool:
        return self.length < len(self.whole)


def conversation_examples(
    conversation: Messages[Message],
    renderer: Renderer,
    max_length: int | None = None,
    train_on_what: TrainOnWhat | str = TrainOnWhat.ALL_ASSISTANT_MESSAGES,
) -> list[Example]:
    """The examples of a conversation, each cut to `max_length` tokens (None: whole).

    A renderer with the extension property gives one. One without it (default qwen3, which shows an
    earlier reply without its reasoning block) would train the earlier replies in a form in which
    the model never samples them; there each trained assistant message becomes an example of its own
    that ends with it, rendered as it is sampled. This costs the shared beginning once per reply.
    Modes that train other messages than replies always give one example. None at all: there is no
    message that the mode trains, and the renderer lacks the property.
    """
    mode = TrainOnWhat.of(train_on_what)
    if mode in REPLY_MODES:
        rendered = renderer.build_supervised_examples(conversation, train_on_what=mode)
    else:
        rendered = [renderer.build_supervised_example(conversation, train_on_what=mode)]
    examples = []
    for number, (model_input, weights) in enumerate(rendered, start=1):
        whole = Sequence(model_input.to_ints(), weights)
        kept = whole.truncate(max_length)
        problem = None
        if not whole.num_loss_tokens:
            problem = f"no token is trained under train_on_what={mode.value}"
        elif not kept.num_loss_tokens:
            problem = (
                f"the trained part begins after max_length={max_length} of {len(whole)} tokens"
            )
        if problem and len(rendered) > 1:
            problem = f"reply {number} of {len(rendered)}: {problem}"
        examples.append(Example(whole, len(kept), problem))
    return examples
