r"""Problems whose answer is asked for in `\boxed{}`, as an Inspect task."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageAssistant, ChatMessageUser
from inspect_ai.scorer import (
    CORRECT,
    INCORRECT,
    NOANSWER,
    Score,
    Scorer,
    Target,
    accuracy,
    scorer,
    stderr,
)
from inspect_ai.solver import TaskState, generate

from tinker_cookbook.math_problems.boxed_prompt import ONE_SHOT, REQUEST
from tinker_cookbook.math_problems.math_grading import extract_boxed, grade_answer
from tinker_cookbook.math_problems.problem_rows import Problem
from tinker_cookbook.renderers import Message, ensure_text


def boxed_answers_task(problems: Sequence[Problem], name: str, one_shot: bool = False) -> Task:
    """A task with the prompt and the grading of recipes.math_rl.

    one_shot: show one solved problem before each question. Sample ids count from 1.
    """
    prefix = [_chat_message(message) for message in ONE_SHOT] if one_shot else []
    samples = [
        Sample(
            input=[*prefix, ChatMessageUser(content=problem.question + REQUEST)],
            target=problem.answer,
            id=number,
        )
        for number, problem in enumerate(problems, start=1)
    ]
    return Task(dataset=MemoryDataset(samples, name), solver=generate(), scorer=boxed_answer())


@scorer(metrics=[accuracy(), stderr()])
def boxed_answer() -> Scorer:
    r"""Whether the last `\boxed{}` of the reply equals the known answer (`grade_answer`)."""

    async def score(state: TaskState, target: Target) -> Score:
        reply = state.output.completion
        try:
            answer = extract_boxed(reply)
        except ValueError as error:
            return Score(value=NOANSWER, explanation=f"{error}")
        # in a thread: grading may take seconds
        correct = await asyncio.to_thread(grade_answer, answer, target.text)
        return Score(value=CORRECT if correct else INCORRECT, answer=answer)

    return score


def _chat_message(message: Message) -> ChatMessage:
    text = ensure_text(message["content"])
    if message["role"] == "assistant":
        return ChatMessageAssistant(content=text)
    return ChatMessageUser(content=text)
