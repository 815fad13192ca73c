"""The modes of training: which messages carry loss weight."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from tinker_cookbook.exceptions import ConfigurationError, RendererError
from tinker_cookbook.renderers.messages import Message


class TrainOnWhat(StrEnum):
    """Which messages' outputs have loss weight 1. Headers have 0, except in ALL_TOKENS."""

    LAST_ASSISTANT_MESSAGE = "last_assistant_message"  # the final message, if the assistant's
    LAST_ASSISTANT_TURN = "last_assistant_turn"  # assistant messages after the last user message
    ALL_ASSISTANT_MESSAGES = "all_assistant_messages"
    ALL_MESSAGES = "all_messages"
    ALL_TOKENS = "all_tokens"  # headers too, but no beginning-of-text token
    ALL_USER_AND_SYSTEM_MESSAGES = "all_user_and_system_messages"
    CUSTOMIZED = "customized"  # the messages with `trainable: true`

    @classmethod
    def from_value(cls, value: TrainOnWhat | str) -> TrainOnWhat:
        """The mode with this value. Raises ConfigurationError that lists the modes otherwise."""
        try:
            return cls(value)
        except ValueError:
            raise ConfigurationError(
                f"train_on_what={value!r} is not one of {', '.join(cls)}"
            ) from None


LAST_MODES = frozenset({TrainOnWhat.LAST_ASSISTANT_MESSAGE, TrainOnWhat.LAST_ASSISTANT_TURN})
# `developer` is a system message in gpt-oss, `tool_declare` a tool declaration in Kimi K2.
_USER_AND_SYSTEM = frozenset({"user", "system", "developer", "tool_declare"})
REPLY_MODES = LAST_MODES | {TrainOnWhat.ALL_ASSISTANT_MESSAGES}
"""The modes in which every trained message is a reply that the model would sample."""


def last_user_index(messages: Sequence[Message]) -> int:
    return max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)


def trained_messages(messages: Sequence[Message], mode: TrainOnWhat) -> list[bool]:
    """Whether each message's output is trained.

    Raises RendererError if the key `trainable` is missing in CUSTOMIZED or given in another mode.
    """
    customized = mode is TrainOnWhat.CUSTOMIZED
    for i, message in enumerate(messages):
        if customized != ("trainable" in message):
            raise RendererError(
                f"message {i} has no key 'trainable', which train_on_what=customized needs"
                if customized
                else f"message {i} has the key 'trainable', which train_on_what={mode} does not "
                "use; remove it, or set train_on_what=customized"
            )
    assistant = [message["role"] == "assistant" for message in messages]
    match mode:
        case TrainOnWhat.LAST_ASSISTANT_MESSAGE:
            return [is_reply and i == len(messages) - 1 for i, is_reply in enumerate(assistant)]
        case TrainOnWhat.LAST_ASSISTANT_TURN:
            last_user = last_user_index(messages)
            return [is_reply and i > last_user for i, is_reply in enumerate(assistant)]
        case TrainOnWhat.ALL_ASSISTANT_MESSAGES:
            return assistant
        case TrainOnWhat.ALL_USER_AND_SYSTEM_MESSAGES:
            return [message["role"] in _USER_AND_SYSTEM for message in messages]
        case TrainOnWhat.CUSTOMIZED:
            return [bool(message.get("trainable")) for message in messages]
        case TrainOnWhat.ALL_MESSAGES | TrainOnWhat.ALL_TOKENS:
            return [True] * len(messages)
