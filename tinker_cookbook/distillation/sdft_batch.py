"""A step's data in self-distillation: from pairs of examples to completions, scored by the teacher.

_Q questions, _C completions (group_size of each question, in order), N positions, K tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import tinker

from tinker_cookbook.completers import derive_seed
from tinker_cookbook.distillation.soft_targets import TopK, score_top_k, to_soft_datum
from tinker_cookbook.exceptions import DataValidationError
from tinker_cookbook.sequences import from_datum

if TYPE_CHECKING:
    from tinker_cookbook.completers import StopCondition
    from tinker_cookbook.service.api import SamplingClient

# score_top_k samples a token after the completion, which has to fit into the context as well
SCORING_TOKENS = 1


@dataclass(frozen=True)
class Question:
    """The tokens of a question as the student sees it, and with its demonstration."""

    prompt: list[int]
    teacher_prompt: list[int]


@dataclass(frozen=True)
class Completion:
    """A completion that the student sampled, with its end-of-turn token unless it is truncated."""

    question: Question
    tokens: list[int]
    truncated: bool


@dataclass(frozen=True)
class ScoredCompletion:
    """A completion as it is trained.

    datum: the student's prompt and the completion; target_tokens and weights [N, K], with weights
    that sum to 1, or 0 if no token is trained. positions: the trained ones among the N. teacher:
    its tokens and probabilities there.
    """

    datum: tinker.Datum
    positions: np.ndarray
    teacher: TopK
    completion: Completion


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled. context: tokens of the model's context (None: unknown)."""

    group_size: int
    max_tokens: int
    temperature: float
    stop: StopCondition
    seed: int
    context: int | None = None

    def limit(self, question: Question) -> int:
        """Maximum tokens of a completion after either prompt of a question."""
        if self.context is None:
            return self.max_tokens
        longest = max(len(question.prompt), len(question.teacher_prompt))
        room = self.context - longest - SCORING_TOKENS
        if room < 1:  # only with data that has no max_length: others skip such questions
            raise DataValidationError(
                f"a prompt of {longest} tokens leaves no room for a completion in a context of"
                f" {self.context} tokens: set the data's max_length"
            )
        return min(self.max_tokens, room)


def read_questions(batch: Sequence[tinker.Datum]) -> list[Question]:
    """The questions of a batch [student, teacher, student, teacher, ...] of examples.

    Prompts are the tokens before the first trained one. Raises DataValidationError if two examples
    that should be a pair do not end with the same reply.
    """
    if len(batch) % 2:
        raise _not_pairs(f"a batch has {len(batch)} examples")
    questions = []
    for pair in zip(batch[::2], batch[1::2]):
        (prompt, reply), (teacher_prompt, teacher_reply) = map(_split, pair)
        shared = min(len(reply), len(teacher_reply))  # either may be truncated
        if reply[:shared] != teacher_reply[:shared]:
            raise _not_pairs("two examples that should be a pair have different replies")
        questions.append(Question(prompt, teacher_prompt))
    return questions


def _split(example: tinker.Datum) -> tuple[list[int], list[int]]:
    sequence = from_datum(example)
    start = int(np.flatnonzero(sequence.loss_mask)[0])
    tokens = sequence.tokens.tolist()
    return tokens[:start], tokens[start:]


def _not_pairs(problem: str) -> DataValidationError:
    return DataValidationError(
        f"the data is not of pairs of a question without and with its demonstration: {problem}; use"
        " data=DemonstrationChats"
    )


async def sample_completions(
    student: SamplingClient, questions: Sequence[Question], settings: SamplingSettings, step: int
) -> list[Completion]:
    """`group_size` completions of each question. Their seeds are functions of the seed, the step
    and the position in the batch, so a resumed run samples the same."""
    questions_C = [each for each in questions for _ in range(settings.group_size)]
    # all submitted before the first is awaited, so that the engine can decode them together
    futures = [
        student.sample(
            tinker.ModelInput.from_ints(question.prompt),
            1,
            tinker.SamplingParams(
                max_tokens=settings.limit(question),
                temperature=settings.temperature,
                stop=settings.stop,
                seed=derive_seed(settings.seed, step, index),
            ),
        )
        for index, question in enumerate(questions_C)
    ]
    completions = []
    for question, future in zip(questions_C, futures):
        sampled = (await future).sequences[0]
        truncated = sampled.stop_reason == "length"
        completions.append(Completion(question, list(sampled.tokens), truncated))
    return completions


async def score_completions(
    teacher: SamplingClient, completions: Sequence[Completion], k: int, skip_first_tokens: int
) -> list[ScoredCompletion]:
    """The teacher's k most probable tokens in place of each token of the completions."""
    sequences = [each.question.teacher_prompt + each.tokens for each in completions]
    top_k_C = await score_top_k(teacher, sequences, k)
    return [
        _to_scored(each, top_k[len(each.question.teacher_prompt) - 1 :], skip_first_tokens)
        for each, top_k in zip(completions, top_k_C, strict=True)
    ]


def _to_scored(completion: Completion, teacher: TopK, skip: int) -> ScoredCompletion:
    """teacher: aligned with the completion's tokens."""
    prompt, tokens = completion.question.prompt, completion.tokens
    before = len(prompt) - 1  # positions that predict tokens of the prompt
    positions = np.arange(before + skip, before + len(tokens))
    weights = np.zeros(before + len(tokens), dtype=np.float32)
    weights[positions] = 1 / max(len(positions), 1)
    datum = tinker.Datum(
        model_input=tinker.ModelInput.from_ints([*prompt, *tokens][:-1]),
        loss_fn_inputs={"weights": tinker.TensorData.from_numpy(weights)},
    )
    # the targets at the prompt's positions have weight 0: any token will do
    aligned = TopK(
        *(np.pad(each, ((before, 0), (0, 0))) for each in (teacher.tokens, teacher.logprobs))
    )
    return ScoredCompletion(to_soft_datum(datum, aligned), positions, teacher[skip:], completion)
