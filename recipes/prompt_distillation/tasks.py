"""Long prompts and questions by name or file, and the evaluation of the bundled tasks."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import chz

from recipes.prompt_distillation.bakery import bakery
from recipes.prompt_distillation.languages import languages
from recipes.prompt_distillation.reply_rule import reply_rule
from recipes.prompt_distillation.task import Task
from recipes.prompts import Conversation, load_prompts
from tinker_cookbook import models
from tinker_cookbook.exceptions import ConfigurationError
from tinker_cookbook.renderers import Message, get_renderer, get_text_content
from tinker_cookbook.supervised.exact_match import ExactMatchEvaluator
from tinker_cookbook.tokenizer_utils import get_tokenizer
from tinker_cookbook.utils.files import existing_file

TASKS: Mapping[str, Callable[[], Task]] = {
    "reply_rule": reply_rule,
    "bakery": bakery,
    "languages": languages,
}


def default_task(model_name: str) -> str:
    return "reply_rule" if models.is_nano(model_name) else "languages"


def check_is_task(name: str, key: str) -> None:
    """Raise ConfigurationError for an unknown name."""
    if name not in TASKS:
        raise ConfigurationError(f"{key}={name!r} is unknown; set one of {', '.join(TASKS)}")


def load_prompt(name: str) -> str:
    """The long prompt of a bundled task or in a text file."""
    if name in TASKS:
        return TASKS[name]().prompt
    if not any(character in name for character in "./\\") and not Path(name).exists():
        check_is_task(name, "prompt")
    text = existing_file(name, "prompt").read_text(encoding="utf-8").strip()
    if not text:
        raise ConfigurationError(f"prompt={name}: the file is empty")
    return text


def load_questions(name: str, number: int, seed: int, model_name: str) -> list[Conversation]:
    """Up to `number` questions, shuffled by the seed; a larger number adds to them.

    name: a bundled task, or what `load_prompts` accepts.
    """
    if name not in TASKS:
        return load_prompts(name, "questions", number, seed, model_name)
    questions = [*TASKS[name]().questions]
    random.Random(seed).shuffle(questions)
    return questions[:number]


def put_before(prompt: str, conversation: Sequence[Message]) -> list[Message]:
    """The conversation with the prompt as its system message, before one that it may have."""
    first, rest = conversation[0], [*conversation[1:]]
    if first["role"] != "system":
        return [Message(role="system", content=prompt), *conversation]
    return [Message(role="system", content=f"{prompt}\n\n{get_text_content(first)}"), *rest]


@chz.chz
class HeldOutQuestions:
    """Builder of the evaluator of greedy replies to the held-out questions of a task:
    `test/exact_match`, or `with_prompt/exact_match` with the long prompt before each question."""

    task: str = chz.field(doc="bundled task")
    with_prompt: bool = chz.field(doc="whether the model sees the long prompt")
    model_name: str = chz.field(doc="model whose tokenizer is used")
    renderer_name: str = chz.field(doc="renderer, e.g. qwen3_instruct")
    max_tokens: int = chz.field(doc="maximum tokens per reply, as many as those to train on")

    def __call__(self) -> ExactMatchEvaluator:
        task = TASKS[self.task]()
        tokenizer = get_tokenizer(self.model_name)
        conversations = [[*messages] for messages in task.held_out]
        if self.with_prompt:
            conversations = [put_before(task.prompt, messages) for messages in conversations]
        return ExactMatchEvaluator(
            conversations,
            get_renderer(self.renderer_name, tokenizer, model_name=self.model_name),
            "with_prompt" if self.with_prompt else "test",
            self.max_tokens,
            task.is_right,
            models.context_length(self.model_name),
        )
