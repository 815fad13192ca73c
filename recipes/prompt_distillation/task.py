"""What a bundled task consists of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recipes.prompts import Conversation
from tinker_cookbook.renderers.chats import read_chats
from tinker_cookbook.supervised.exact_match import IsRight


@dataclass(frozen=True)
class Task:
    """A long prompt and questions that it helps with.

    questions: to sample replies to. held_out: other questions, each with its right reply.
    is_right: (reply, right reply) -> whether the reply counts as right. num_samples: replies per
    question that are enough to train on.
    """

    prompt: str
    questions: Sequence[Conversation]
    held_out: Sequence[Conversation]
    is_right: IsRight
    num_samples: int


def read_task(prompt: str, folder: Path, name: str, is_right: IsRight, num_samples: int) -> Task:
    """A task from NAME_train.jsonl and NAME_held_out.jsonl: questions with their right replies."""
    train, held_out = (
        [chat.messages for chat in read_chats(folder / f"{name}_{split}.jsonl")]
        for split in ("train", "held_out")
    )
    return Task(prompt, [messages[:-1] for messages in train], held_out, is_right, num_samples)
